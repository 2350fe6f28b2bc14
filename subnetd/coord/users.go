package coord

import (
	"slices"
	"strings"

	"tailscale.com/tailcfg"
)

// OwnerName is the user whom devices belong to unless somebody says otherwise.
const OwnerName = "home"

const (
	ownerID    tailcfg.UserID = 1
	taggedID   tailcfg.UserID = 2147455555 // as clients know it
	taggedName                = "tagged-devices"
)

// userID gives the user of that name, new if need be.
func (d *draft) userID(name string) (tailcfg.UserID, error) {
	name = strings.TrimSuffix(strings.ToLower(name), "@")
	if name == "" || len(name) > maxText || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f || r == ':' || r == '*' }) {
		return 0, badf("%q is no user's name", name)
	}
	if i := slices.IndexFunc(d.users, func(u user) bool { return u.Name == name }); i >= 0 {
		return d.users[i].ID, nil
	}
	if len(d.users) >= maxUsers {
		return 0, badf("there are %d users, more are not kept", maxUsers)
	}
	id := ownerID
	for _, u := range d.users {
		id = max(id, u.ID+1)
	}
	d.users, d.lasting = append(d.users, user{ID: id, Name: name}), true
	return id, nil
}

func (s *snapshot) nameOf(id tailcfg.UserID) string {
	if i := slices.IndexFunc(s.users, func(u user) bool { return u.ID == id }); i >= 0 {
		return s.users[i].Name
	}
	return ""
}

// userName is whose the node is to the policy: nobody's if it is tagged.
func (s *snapshot) userName(n *node) string {
	if len(n.Tags) > 0 {
		return ""
	}
	return s.nameOf(n.User)
}

// profile is how clients show a user.
func (s *snapshot) profile(id tailcfg.UserID) tailcfg.UserProfile {
	if id == taggedID {
		return tailcfg.UserProfile{ID: id, LoginName: taggedName, DisplayName: "Tagged devices"}
	}
	name := s.nameOf(id)
	login := name
	if !strings.Contains(login, "@") {
		login += "@" // as policies write it
	}
	return tailcfg.UserProfile{ID: id, LoginName: login, DisplayName: name}
}
