package status

import (
	"net/netip"
	"time"
)

// HomeNode is one member as the coordinator in this router knows it.
type HomeNode struct {
	ID        int64        `json:"id"`
	Name      string       `json:"name"`           // fully qualified, without a dot at its end
	User      string       `json:"user,omitempty"` // "" if tagged
	Tags      []string     `json:"tags,omitempty"`
	Addresses []netip.Addr `json:"addresses"`
	OS        string       `json:"os,omitempty"`
	Client    string       `json:"client,omitempty"` // version of its program
	Self      bool         `json:"self,omitempty"`   // this router
	Online    bool         `json:"online"`
	LastSeen  time.Time    `json:"lastSeen,omitzero"`
	Created   time.Time    `json:"created"`
	KeyExpiry time.Time    `json:"keyExpiry,omitzero"` // zero: never
	Expired   bool         `json:"expired,omitempty"`
	Ephemeral bool         `json:"ephemeral,omitempty"`
	Routes    []HomeRoute  `json:"routes,omitempty"`
	Devices   []HomeDevice `json:"devices,omitempty"`
	Answer    float64      `json:"answer,omitempty"` // of a probe: milliseconds it took
}

// HomeRoute is one prefix that a node offers, or that was approved before it did.
type HomeRoute struct {
	Prefix   netip.Prefix `json:"prefix"`
	Offered  bool         `json:"offered"`
	Approved bool         `json:"approved"`
	Primary  bool         `json:"primary,omitempty"` // it goes through this node now
}

// HomeDevice is a further address of a node: a thing behind it.
type HomeDevice struct {
	Name      string       `json:"name"` // fully qualified, without a dot at its end
	Addresses []netip.Addr `json:"addresses"`
}

// HomePending is a device that asks to be let in.
type HomePending struct {
	Code     string    `json:"code"`
	Hostname string    `json:"hostname"`
	OS       string    `json:"os,omitempty"`
	From     string    `json:"from,omitempty"` // address it asked from
	Since    time.Time `json:"since"`
}

// HomeNodes is everybody in the mesh, sorted by name, and everybody at the door.
type HomeNodes struct {
	Nodes   []HomeNode    `json:"nodes"`
	Pending []HomePending `json:"pending,omitempty"`
}

// HomeKey is a pre-auth key without its secret.
type HomeKey struct {
	ID        string    `json:"id"`
	User      string    `json:"user,omitempty"`
	Tags      []string  `json:"tags,omitempty"`
	Reusable  bool      `json:"reusable,omitempty"`
	Ephemeral bool      `json:"ephemeral,omitempty"`
	Created   time.Time `json:"created"`
	Expires   time.Time `json:"expires"`
	Uses      int       `json:"uses"`
	State     string    `json:"state"` // good | used | expired | revoked
}

// InviteRequest asks for a pre-auth key. Zero values: one use, a day, the owner.
type InviteRequest struct {
	User      string        `json:"user,omitempty"`
	Tags      []string      `json:"tags,omitempty"` // "tag:name"
	Reusable  bool          `json:"reusable,omitempty"`
	Ephemeral bool          `json:"ephemeral,omitempty"`
	Expires   time.Duration `json:"expires,omitempty"` // nanoseconds from now; 0: a day
}

// Invite is what a new member needs.
type Invite struct {
	URL     string    `json:"url"` // the login server
	Key     string    `json:"key"` // shown this once, never stored
	ID      string    `json:"id"`  // of the key
	Expires time.Time `json:"expires"`
	Line    string    `json:"line"`              // to be typed on a computer
	Outside bool      `json:"outside"`           // URL works from everywhere
	Missing []string  `json:"missing,omitempty"` // what stands between, one sentence each
}

// RevokeRequest names a key.
type RevokeRequest struct {
	ID string `json:"id"`
}

// NodeRequest says what shall become of one node.
type NodeRequest struct {
	Node   string         `json:"node,omitempty"`   // name (full or first label), address or ID
	Code   string         `json:"code,omitempty"`   // approve
	User   string         `json:"user,omitempty"`   // approve; "": as before, else the owner
	Name   string         `json:"name,omitempty"`   // rename
	In     time.Duration  `json:"in,omitempty"`     // expire: nanoseconds from now
	Routes []netip.Prefix `json:"routes,omitempty"` // routes: exactly these are approved
}

// HomePolicy is the policy in force.
type HomePolicy struct {
	File  string `json:"file,omitempty"` // "": the built-in one
	Text  string `json:"text"`
	Error string `json:"error,omitempty"` // why the file is not what is in force
}

// PolicyText is a policy to be looked at.
type PolicyText struct {
	Text string `json:"text"`
}

// PolicyVerdict says whether a policy could be put in force; Error names the line.
type PolicyVerdict struct {
	Error string `json:"error,omitempty"`
}
