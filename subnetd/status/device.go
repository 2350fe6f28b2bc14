package status

import (
	"net/netip"
	"time"
)

// Device is a thing at home.
type Device struct {
	MAC       string       `json:"mac"`                // its identity, in lower case with colons; "": spoken of by address only
	Private   bool         `json:"private,omitempty"`  // a made-up MAC (RFC 9542, 2.1.1): it may come back under another
	Name      string       `json:"name,omitempty"`     // the best known
	NameFrom  string       `json:"nameFrom,omitempty"` // owner | lease | dhcp | mdns
	Maker     string       `json:"maker,omitempty"`    // by the first half of the MAC
	Kind      string       `json:"kind,omitempty"`     // printer | tv | phone | computer | nas | camera | speaker | console | network
	Services  []string     `json:"services,omitempty"` // types of DNS-SD, such as _ipp._tcp
	Addresses []netip.Addr `json:"addresses"`          // now, v4 first
	Interface string       `json:"interface,omitempty"`
	Online    bool         `json:"online"`
	FirstSeen time.Time    `json:"firstSeen,omitzero"`
	LastSeen  time.Time    `json:"lastSeen,omitzero"`
	Mesh      *DeviceMesh  `json:"mesh,omitempty"`    // nil: the mesh cannot reach it
	Exit      string       `json:"exit,omitempty"`    // where its internet leaves now: an exit's name, "direct" or "blocked"; "": not known
	ExitRow   int          `json:"exitRow,omitempty"` // the row that decides, from 1; 0: none
}

// DeviceMesh is a device as members of the mesh reach it.
type DeviceMesh struct {
	Name      string       `json:"name,omitempty"` // fully qualified, without a dot at its end
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Ports     []string     `json:"ports,omitempty"` // "tcp/80", "udp/5000-5010"; none: all
	Wake      bool         `json:"wake,omitempty"`  // a packet of the mesh for it wakes it
	All       bool         `json:"all,omitempty"`   // not chosen, but reached as all of the LAN is
	Missing   string       `json:"missing,omitempty"`
	Web       *DeviceWeb   `json:"web,omitempty"` // nil: it answers for its web pages itself
}

// DeviceWeb is a device whose web pages this router serves, by https and with a
// certificate; it is told who calls.
type DeviceWeb struct {
	URL    string `json:"url,omitempty"` // "": not yet
	Target string `json:"target"`        // where it is asked itself: "http:5000"
}

// Devices is the things at home, those that can be reached first, then by name.
type Devices struct {
	Expose  string   `json:"expose"` // what the mesh may reach: all | chosen | none
	Devices []Device `json:"devices"`
}

// DeviceExpose makes a thing at home reachable for the mesh.
type DeviceExpose struct {
	Device string   `json:"device"`          // its name, MAC or address
	As     string   `json:"as,omitempty"`    // its name in the mesh; "": as it is called
	Ports  []string `json:"ports,omitempty"` // "tcp/80", "udp/5000-5010"; none: all
	Wake   bool     `json:"wake,omitempty"`
}

// DeviceRequest speaks of one thing at home.
type DeviceRequest struct {
	Device string `json:"device"` // its name, MAC or address
}

// DeviceName gives a thing the name that its owner calls it by.
type DeviceName struct {
	Device string `json:"device"`
	Name   string `json:"name"` // one label; "": as it calls itself
}

// DeviceWebRequest has this router serve a device's web pages.
type DeviceWebRequest struct {
	Device string `json:"device"` // its name, MAC or address
	Target string `json:"target"` // "80", "http:5000", "https:5001"; "": no more
}

// DeviceMode is what of the LAN the mesh may reach: all | chosen | none.
type DeviceMode struct {
	Expose string `json:"expose"`
}

// DeviceReach counts how often one member reached one device.
type DeviceReach struct {
	Device string     `json:"device"`         // its name in the mesh, else its address
	To     netip.Addr `json:"to"`             // on the LAN
	Who    string     `json:"who,omitempty"`  // the member's name; "": gone from the mesh
	User   string     `json:"user,omitempty"` // whose it is
	From   netip.Addr `json:"from"`
	Flows  uint64     `json:"flows"` // that began, since there was none for a week
	Last   time.Time  `json:"last,omitzero"`
}

// DeviceLog is what reached the devices lately, the newest first.
type DeviceLog struct {
	Reached []DeviceReach `json:"reached"`
	// Full: there were more pairs than are counted, some are missing.
	Full bool `json:"full,omitempty"`
}

// Whois is whose an address of the mesh is.
type Whois struct {
	Address netip.Addr `json:"address"`
	Kind    string     `json:"kind"` // node | device | route | self
	Name    string     `json:"name"` // fully qualified, without a dot at its end
	User    string     `json:"user,omitempty"`
	Owner   bool       `json:"owner,omitempty"` // User is the owner of this router
	Tags    []string   `json:"tags,omitempty"`  // a tagged node is nobody's
	Via     string     `json:"via,omitempty"`   // the router behind which it is, or that routes it
	Device  *Device    `json:"device,omitempty"`
}

// The values of Whois.Kind.
const (
	WhoisNode   = "node"
	WhoisDevice = "device" // of a LAN
	WhoisRoute  = "route"  // in a network that a node routes
	WhoisSelf   = "self"   // this router
)
