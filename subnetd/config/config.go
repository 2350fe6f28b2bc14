// Package config is the owner's wishes: the file, TOML or UCI, checked and typed.
package config

import "net/netip"

// Expose says how much of the LAN members of the mesh may be allowed to reach.
type Expose string

// The values of lan.expose.
const (
	ExposeAll    Expose = "all"
	ExposeChosen Expose = "chosen"
	ExposeNone   Expose = "none"
)

// Config is the owner's wishes with all defaults filled in.
type Config struct {
	Mesh   Mesh
	LAN    LAN
	Exit   Exit
	Tunnel Tunnel
	Home   Home
	DNS    DNS
	Web    Web
	Drop   Drop
}

// Mesh says which mesh this router belongs to.
type Mesh struct {
	Control     string // URL of the coordinator; "home" is this router itself
	Hostname    string // "" : the system's
	AuthKeyFile string
}

// LAN says what of the home is offered to the mesh.
type LAN struct {
	Interfaces []string // empty: found
	Expose     Expose
	Devices    []Device // for expose = "chosen", and those with names of their own in the mesh
	Names      []Named  // what the owner calls other things
	Web        []Served // devices whose web pages this router serves for them
	SNAT       bool
}

// Tunnel says how packets are carried.
type Tunnel struct {
	Engine string // auto | kernel | userspace
	Port   uint16 // 0: picked once at random and kept
}

// Exit says which ways to the internet are offered and used. Who asks for all
// rows that are used, the short form (Use, Devices) among them, calls All.
type Exit struct {
	Offer    bool      // members of the mesh may reach the internet through here
	Rows     []ExitRow // the first that fits decides
	Use      string    // the right side of a last row; "": there is none
	Devices  []string  // its MACs, in lower case with colons; empty: lan and router
	Priority uint32    // of the first of our policy rules; 0: found
}

// DNS is the answerer for the names of the mesh.
type DNS struct {
	Port           uint16   // on LAN, mesh and loopback addresses; 0: there is none
	Hook           bool     // this machine's own resolver asks it
	DnsmasqDir     string   // where dnsmasq reads files when it starts; "": found
	DnsmasqRestart []string // the command that restarts it; empty: found
}

// Home is the coordinator in this router, for mesh.control = "home".
type Home struct {
	URL        string // how the world reaches it; "": not set
	Listen     string // host:port, the host may be empty
	Domain     string // of the members' names, without dots at its ends
	PolicyFile string // HuJSON; "": the built-in policy
	// CertFile and KeyFile are PEM, the certificate with its chain; both are set
	// or none.
	CertFile, KeyFile string
	ACMEDirectory     string // URL; "": Let's Encrypt's
	Records           []Record
	SplitDNS          []Split
	STUN              string // host:port of UDP, the host may be empty
}

// Record is one further DNS record of the mesh, A or AAAA by its address.
type Record struct {
	Name string // fully qualified, in lower case, without dots at its ends
	Addr netip.Addr
}

// Split sends questions about a domain and all below it to a resolver. A domain
// may have several.
type Split struct {
	Domain   string // in lower case, without dots at its ends
	Resolver string // IP or IP:port, a v6 address with a port in brackets
}

// Web is the page.
type Web struct {
	Listen string // host:port, the host may be empty
}

// Default is what an empty file means.
func Default() Config {
	return Config{
		Mesh:   Mesh{Control: "home"},
		LAN:    LAN{Expose: ExposeChosen, SNAT: true},
		Tunnel: Tunnel{Engine: "auto"},
		Home:   Home{Listen: ":8410", Domain: "mesh.internal", STUN: ":3478"},
		DNS:    DNS{Port: 5335, Hook: true},
		Web:    Web{Listen: ":8411"},
		Drop:   Drop{Quota: QuotaAuto, KeepFree: 64_000_000},
	}
}
