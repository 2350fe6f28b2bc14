package web

import (
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"io"
	"runtime/debug"
	"sync"

	"golang.org/x/crypto/argon2"
)

// secretFile holds the page's password as argon2id (RFC 9106) makes it.
const secretFile = "page"

// What a guess costs: 9 MiB and a second or two of a small MIPS router's time, which the
// cheat sheet of OWASP on the storage of passwords counts as enough.
const (
	argonMemory = 9 << 10 // KiB
	argonTime   = 4
	saltBytes   = 16
	hashBytes   = 32

	leastPassword = 8   // characters
	mostPassword  = 256 // bytes
)

// stored is the file. What a guess costs is kept with it, so that a later version may
// choose otherwise.
type stored struct {
	Memory uint32 `json:"memory"` // KiB
	Time   uint32 `json:"time"`
	Salt   []byte `json:"salt"`
	Hash   []byte `json:"hash"`
}

// secret is the page's password.
type secret struct {
	mu   sync.Mutex // guards all below
	now  *stored    // nil: none is set
	lost bool       // one was set, but the file is damaged
}

func (s *secret) load(from Store) {
	var is stored
	found, err := from.Load(secretFile, &is)
	if found && err == nil && is.Memory <= 1<<20 && len(is.Hash) == hashBytes && is.Time > 0 {
		s.now = &is
		return
	}
	s.lost = err != nil || found || from.Lost(secretFile) != ""
}

// state says whether a password is set, or was and is lost.
func (s *secret) state() (set, lost bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now != nil, s.lost
}

// set makes a password the one, once it is on the disk.
func (s *secret) set(to Store, random io.Reader, password string) error {
	next := stored{Memory: argonMemory, Time: argonTime, Salt: make([]byte, saltBytes)}
	if _, err := io.ReadFull(random, next.Salt); err != nil {
		return err
	}
	next.Hash = next.hash(password)
	if err := to.Save(secretFile, next); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now, s.lost = &next, false
	return nil
}

var errWrong = errors.New("that is not the password")

// check reports with nil that it is the password.
func (s *secret) check(password string) error {
	s.mu.Lock()
	is := s.now
	s.mu.Unlock()
	if is == nil || len(password) > mostPassword || subtle.ConstantTimeCompare(is.hash(password), is.Hash) != 1 {
		return errWrong
	}
	return nil
}

// hash gives the memory back at once: it would double what the daemon has.
func (s *stored) hash(password string) []byte {
	out := argon2.IDKey([]byte(password), s.Salt, s.Time, s.Memory, 1, hashBytes)
	debug.FreeOSMemory()
	return out
}

// randomText is 256 bits that nobody guesses.
func randomText(random io.Reader) (string, error) {
	b := make([]byte, 32)
	_, err := io.ReadFull(random, b)
	return base64.RawURLEncoding.EncodeToString(b), err
}
