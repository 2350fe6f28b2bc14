// Package api is how other processes on this machine talk to the daemon: HTTP
// and JSON over a unix socket, with the client beside the server. It knows no
// engine: it is given functions.
package api

import (
	"context"
	"errors"
	"net/netip"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"
)

// Funcs is what the daemon can do. All must be set, and safe for concurrent
// use. They return when ctx ends.
type Funcs struct {
	// Status is the newest snapshot.
	Status func() status.Snapshot
	// Watch sends the newest snapshot at once and then each new one; snapshots
	// may be skipped if the reader is slow. The channel is closed after ctx ends.
	Watch func(ctx context.Context) <-chan status.Snapshot
	// Up starts to join. It returns once a snapshot is published that is no
	// longer about the time before: its Error belongs to this request.
	Up func(ctx context.Context, r UpRequest) error
	// Down leaves the mesh and removes everything from the machine's network;
	// Logout also forgets who this node was. Both return when it is done.
	Down, Logout func(ctx context.Context) error
	// Ping asks the peer of that name or address. ErrUnknownPeer if none is,
	// ErrSilent if it did not answer: asking again may help then, and only then.
	Ping func(ctx context.Context, target string) (PingResult, error)
	// Netcheck says how this network treats us, as something that marshals to JSON.
	Netcheck func(ctx context.Context) (any, error)
	// Debug is the daemon's inside: "plan", "netmap" or "paths".
	Debug func(what string) (any, error)
	// Home is the coordinator in this router. It is asked for anew by each
	// request, as the owner may change mesh.control at any time: ErrNotHome if
	// another is the coordinator now, or what keeps ours from working.
	Home         func() (Home, error)
	Exit         Exit
	Devices      Devices
	Page         Page
	System       System
	Certificates Certificates
	Drop         Drop
}

// ErrUnknownPeer is returned by Funcs.Ping, and arrives at the client as text.
var ErrUnknownPeer = errors.New("no peer has that name or address")

// ErrSilent is returned by Funcs.Ping, and arrives at the client as text.
var ErrSilent = errors.New("no answer")

// UpRequest is the body of POST /v1/up. An empty field means: as before.
type UpRequest struct {
	Control  string `json:"control,omitempty"` // URL or "home"
	AuthKey  string `json:"authKey,omitempty"` // used once, never stored
	Hostname string `json:"hostname,omitempty"`
}

// String keeps the key out of logs.
func (r UpRequest) String() string {
	return "control=" + r.Control + " hostname=" + r.Hostname
}

// PingResult is the answer of one peer. The time it took is Path.RTT.
type PingResult struct {
	Name  string     `json:"name"`
	Addr  netip.Addr `json:"addr"` // its mesh address
	Path  mesh.Path  `json:"path"`
	Relay string     `json:"relay,omitempty"` // code of the relay's region, if relayed
}

// failure is the body of every answer that is no success.
type failure struct {
	Error string `json:"error"`
}
