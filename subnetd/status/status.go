// Package status is the one read model: everything that the command line and
// the page show. A Snapshot is published by the engine after each change.
package status

import (
	"net/netip"
	"time"
)

// Phase says where this node stands on its way into the mesh.
type Phase string

// The phases, in their usual order.
const (
	PhaseDown       Phase = "down"        // the owner said `down`, or no coordinator is set
	PhaseConnecting Phase = "connecting"  // no answer from the coordinator yet
	PhaseNeedsLogin Phase = "needs-login" // LoginURL must be opened, or a key given
	PhaseWaiting    Phase = "waiting"     // an admin must approve this node
	PhaseJoined     Phase = "joined"
	PhaseCached     Phase = "cached" // running on the netmap of the last session
)

// Problem is a trouble told to the owner: what, since when, what to do.
type Problem struct {
	Code  string    `json:"code"`
	Text  string    `json:"text"`
	Fix   string    `json:"fix,omitempty"`
	Since time.Time `json:"since,omitzero"`
}

// Peer is one other member as seen from here.
type Peer struct {
	Name      string         `json:"name"`
	Addresses []netip.Addr   `json:"addresses"`
	Routes    []netip.Prefix `json:"routes,omitempty"`
	Online    bool           `json:"online"`
	OS        string         `json:"os,omitempty"`
	Path      string         `json:"path"` // none | relay | direct
	Endpoint  string         `json:"endpoint,omitempty"`
	Relay     string         `json:"relay,omitempty"`  // region code
	Reason    string         `json:"reason,omitempty"` // why it is relayed
	RTT       float64        `json:"rtt,omitempty"`    // milliseconds
	Rx        uint64         `json:"rx"`               // bytes
	Tx        uint64         `json:"tx"`
	Handshake time.Time      `json:"handshake,omitzero"`
}

// Openings is the ports at which the world calls this router itself.
type Openings struct {
	UDP []uint16 `json:"udp"`
	TCP []uint16 `json:"tcp"`
}

// Snapshot is the state of this node at one moment.
type Snapshot struct {
	Version      string           `json:"version"`
	Generation   uint64           `json:"generation"` // of the configuration it reflects
	Phase        Phase            `json:"phase"`
	Control      string           `json:"control"`
	LoginURL     string           `json:"loginURL,omitempty"`
	Error        string           `json:"error,omitempty"`      // the coordinator's last refusal, one sentence
	LastContact  time.Time        `json:"lastContact,omitzero"` // last frame from the coordinator
	Name         string           `json:"name,omitempty"`
	Domain       string           `json:"domain,omitempty"`
	Addresses    []netip.Addr     `json:"addresses,omitempty"`
	KeyExpiry    time.Time        `json:"keyExpiry,omitzero"`
	Engine       string           `json:"engine,omitempty"`
	EngineReason string           `json:"engineReason,omitempty"`
	Resolver     string           `json:"resolver,omitempty"` // of this machine that asks for the mesh's names, or why none does
	Port         uint16           `json:"port,omitempty"`
	Endpoints    []netip.AddrPort `json:"endpoints,omitempty"`
	HomeRelay    string           `json:"homeRelay,omitempty"`
	UDP          bool             `json:"udp"`
	LANs         []string         `json:"lans,omitempty"`     // interface names
	Openings     Openings         `json:"openings"`           // that the firewall towards the internet must have
	Exposed      []netip.Prefix   `json:"exposed,omitempty"`  // offered to the mesh
	Approved     []netip.Prefix   `json:"approved,omitempty"` // and accepted by the coordinator
	Peers        []Peer           `json:"peers"`
	Exits        Exits            `json:"exits"`
	System       *System          `json:"system,omitempty"` // nil: not updated through us
	Problems     []Problem        `json:"problems"`
}
