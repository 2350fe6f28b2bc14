// Package path chooses the best way to each peer: direct over UDP when one
// works, through a relay otherwise. It is a pure machine: events and the time
// go in, actions come out; it holds no socket, no lock, no goroutine.
//
// The rules are those of the disco protocol as stock clients speak it; see
// the constants for the timing.
package path

import (
	"net/netip"
	"time"

	"subnetd/subnetd/mesh"

	"tailscale.com/types/key"
)

// TxID is the random number by which a pong answers a ping.
type TxID [12]byte

// Source says where a disco message came from: an address, or a relay region.
type Source struct {
	Addr   netip.AddrPort // valid: over UDP
	Region int            // else: over this relay region
	Node   key.NodePublic // over relay: the node key the relay names as sender
}

// Event is what happened. The concrete types are below.
type Event interface{ event() }

type (
	// SetPeers replaces the peers; what is known of those that stay is kept.
	SetPeers struct {
		Peers []mesh.Node
	}
	// SetLocal gives our own endpoints (best first) and whether UDP works at all.
	SetLocal struct {
		Endpoints []netip.AddrPort
		UDP       bool
		V6        bool
	}
	// Sent says that data was sent to the peer: its path is in use. It may be
	// said once a second only.
	Sent struct{ Peer key.NodePublic }
	// Received says that data of the peer came, over that way. It may be said
	// once a second only, for direct data and for relayed data each.
	Received struct {
		Peer key.NodePublic
		From Source
	}
	// Roamed says that WireGuard in the kernel took data of the peer from Addr,
	// which is not what the last Use said, and now sends there. It stands until
	// the next Use of the peer, which comes at most roamWait later. Said before
	// the SetPeers that names the peer, it is an endpoint of our last life.
	Roamed struct {
		Peer key.NodePublic
		Addr netip.AddrPort
	}
	// Stranger says that WireGuard data came from an address that is nobody's.
	Stranger struct{ From netip.AddrPort }
	// Ping is a disco ping; Sender is the disco key it was sealed with.
	Ping struct {
		From   Source
		Sender key.DiscoPublic
		TxID   TxID
		Node   key.NodePublic // zero in old clients
	}
	// Pong is a disco pong; Src is our address as the peer saw it.
	Pong struct {
		From   Source
		Sender key.DiscoPublic
		TxID   TxID
		Src    netip.AddrPort
	}
	// CallMeMaybe is a peer's wish, over a relay, to be pinged at Endpoints.
	CallMeMaybe struct {
		From      Source
		Sender    key.DiscoPublic
		Endpoints []netip.AddrPort
	}
	// RelayGone says that a relay no longer reaches the peer.
	RelayGone struct {
		Peer   key.NodePublic
		Region int
	}
	// Rebind says that our WAN address or sockets changed: nothing is trusted.
	Rebind struct{}
	// Probe asks for an explicit ping of the peer now (`subnetd ping`); its
	// answer is reported by the next Answered action with this ID.
	Probe struct {
		Peer key.NodePublic
		ID   uint64
	}
	// Tick says that the time asked for by Machine.Wake has come.
	Tick struct{}
)

func (SetPeers) event()    {}
func (SetLocal) event()    {}
func (Sent) event()        {}
func (Received) event()    {}
func (Roamed) event()      {}
func (Stranger) event()    {}
func (Ping) event()        {}
func (Pong) event()        {}
func (CallMeMaybe) event() {}
func (RelayGone) event()   {}
func (Rebind) event()      {}
func (Probe) event()       {}
func (Tick) event()        {}

// Action is what shall be done. The concrete types are below.
type Action interface{ action() }

type (
	// SendPing sends a disco ping to the peer's disco key, over To.
	SendPing struct {
		Peer  key.NodePublic
		Disco key.DiscoPublic
		To    Source
		TxID  TxID
	}
	// SendPong answers a ping the way it came; Src is the address it came from.
	SendPong struct {
		Peer  key.NodePublic
		Disco key.DiscoPublic
		To    Source
		TxID  TxID
		Src   netip.AddrPort
	}
	// SendCallMeMaybe sends our endpoints over the relay region.
	SendCallMeMaybe struct {
		Peer      key.NodePublic
		Disco     key.DiscoPublic
		Region    int
		Endpoints []netip.AddrPort
	}
	// Use sets the way of data packets to a peer. Addr and Region may both be
	// set: the direct path is then doubted and packets go both ways. After a
	// Roamed the same Use may be said again: the kernel shall turn back.
	Use struct {
		Peer   key.NodePublic
		Addr   netip.AddrPort // valid: send here
		Region int            // not 0: send over this relay
		Path   mesh.Path      // for status
	}
	// Map says that data packets from Addr belong to Peer.
	Map struct {
		Addr netip.AddrPort
		Peer key.NodePublic
	}
	// Restun asks for fresh endpoints: those we have are old, or UDP changed.
	Restun struct{}
	// Answered reports the result of a Probe.
	Answered struct {
		ID   uint64
		Path mesh.Path // Kind none: no answer in time
	}
)

func (SendPing) action()        {}
func (SendPong) action()        {}
func (SendCallMeMaybe) action() {}
func (Use) action()             {}
func (Map) action()             {}
func (Restun) action()          {}
func (Answered) action()        {}

// Config is what a Machine is made of.
type Config struct {
	// NewTxID gives a fresh random number; tests give a counter.
	NewTxID func() TxID
}

// The API of the machine (machine.go):
//
//	New(Config) *Machine
//	(*Machine).Step(now time.Time, e Event) []Action
//	(*Machine).Wake() time.Time        // when a Tick is wanted; zero: never
//	(*Machine).Path(key.NodePublic) mesh.Path
var _ = time.Time{}
