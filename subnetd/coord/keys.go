package coord

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"subnetd/subnetd/status"

	"tailscale.com/tailcfg"
)

// authKey lets machines in without a question. Only its digest is kept, so that
// neither the disk nor a backup of it lets anybody in.
type authKey struct {
	ID        string         `json:"id"`
	Digest    string         `json:"digest"` // SHA-256 of the whole key, hex
	User      tailcfg.UserID `json:"user"`
	Tags      []string       `json:"tags,omitempty"`
	Reusable  bool           `json:"reusable,omitempty"`
	Ephemeral bool           `json:"ephemeral,omitempty"`
	Created   time.Time      `json:"created"`
	Expires   time.Time      `json:"expires"`
	Uses      int            `json:"uses,omitempty"`
	Revoked   bool           `json:"revoked,omitempty"`
}

// The states of a key.
const (
	keyGood    = "good"
	keyUsed    = "used"
	keyExpired = "expired"
	keyRevoked = "revoked"
)

func (k *authKey) state(now time.Time) string {
	switch {
	case k.Revoked:
		return keyRevoked
	case k.Uses > 0 && !k.Reusable:
		return keyUsed
	case !now.Before(k.Expires):
		return keyExpired
	}
	return keyGood
}

// keyPrefix marks our keys: the ID follows, then the secret.
const (
	keyPrefix = "subnetd-"
	keepKeys  = 90 * 24 * time.Hour // spent keys are listed for so long
)

func digest(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

// findKey gives the index of a key that is good.
func (d *draft) findKey(key string) (int, error) {
	sum := digest(key)
	i := slices.IndexFunc(d.keys, func(k authKey) bool { return k.Digest == sum })
	if i < 0 {
		return 0, refusal("this auth key is not one of this mesh: ask for another invitation")
	}
	switch k := &d.keys[i]; k.state(d.now) {
	case keyRevoked:
		return 0, refusal("this auth key was revoked: ask for another invitation")
	case keyUsed:
		return 0, refusal("this auth key was used already and is good for one device: ask for another invitation")
	case keyExpired:
		return 0, refusal("this auth key expired on " + k.Expires.Format("2006-01-02 15:04 MST") + ": ask for another invitation")
	}
	return i, nil
}

// Invite makes a key. Its secret is in the answer and nowhere else.
func (c *Coordinator) Invite(ctx context.Context, r status.InviteRequest) (key string, info status.HomeKey, err error) {
	if r.Expires == 0 {
		r.Expires = inviteFor
	}
	if r.Expires < 0 {
		return "", info, BadRequest("a key that has expired already lets nobody in")
	}
	id := randomText(5)
	key = keyPrefix + id + "-" + randomText(20)
	err = c.update(ctx, func(d *draft) error {
		d.keys = slices.DeleteFunc(d.keys, func(k authKey) bool {
			return k.state(d.now) != keyGood && d.now.Sub(k.Expires) > keepKeys
		})
		if len(d.keys) >= maxKeys {
			return badf("there are %d keys: revoke or wait for some to be over", maxKeys)
		}
		for _, t := range r.Tags {
			if !strings.HasPrefix(t, "tag:") || label(t[len("tag:"):]) != t[len("tag:"):] {
				return badf("%q is no tag: one is like \"tag:printer\"", t)
			}
		}
		user, err := d.userID(cmp.Or(r.User, OwnerName))
		if err != nil {
			return err
		}
		k := authKey{
			ID: id, Digest: digest(key), User: user, Tags: slices.Sorted(slices.Values(r.Tags)), Reusable: r.Reusable, Ephemeral: r.Ephemeral,
			Created: d.now.UTC().Truncate(time.Second), Expires: d.now.UTC().Add(r.Expires).Truncate(time.Millisecond),
		}
		d.keys, d.lasting = append(d.keys, k), true
		info = d.keyInfo(&k)
		return nil
	})
	return key, info, err
}

// randomText is n random bytes in lower-case letters and digits.
func randomText(n int) string {
	raw := make([]byte, n)
	_, _ = rand.Read(raw) // never fails (crypto/rand)
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(raw))
}

func (s *snapshot) keyInfo(k *authKey) status.HomeKey {
	return status.HomeKey{
		ID: k.ID, User: s.nameOf(k.User), Tags: k.Tags, Reusable: k.Reusable, Ephemeral: k.Ephemeral,
		Created: k.Created, Expires: k.Expires, Uses: k.Uses,
	}
}

// Keys lists the keys, the newest first.
func (c *Coordinator) Keys() []status.HomeKey {
	s, now := c.snap.Load(), c.cfg.Now()
	out := make([]status.HomeKey, 0, len(s.keys))
	for i := range s.keys {
		info := s.keyInfo(&s.keys[i])
		info.State = s.keys[i].state(now)
		out = append(out, info)
	}
	slices.Reverse(out)
	return out
}

// RevokeKey makes a key good for nobody. Who came in with it stays.
func (c *Coordinator) RevokeKey(ctx context.Context, id string) error {
	return c.update(ctx, func(d *draft) error {
		i := slices.IndexFunc(d.keys, func(k authKey) bool { return k.ID == id })
		if i < 0 {
			return fmt.Errorf("%w: %q; `subnetd keys` lists them", ErrUnknownKey, id)
		}
		d.keys[i].Revoked, d.lasting = true, true
		return nil
	})
}
