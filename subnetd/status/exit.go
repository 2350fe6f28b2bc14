package status

import "time"

// Exits is how this home uses the internet by exits, and whether it is one.
type Exits struct {
	Offer    bool      `json:"offer"`              // members may use the internet from here
	Approved bool      `json:"approved,omitempty"` // and the coordinator lets them
	Rows     []ExitRow `json:"rows"`               // the first that fits decides
	There    []string  `json:"there"`              // nodes that are exits, by name
}

// ExitRow is a row of the configuration, and where its sources use the internet now.
type ExitRow struct {
	Row     int       `json:"row"` // from 1
	Sources []string  `json:"sources"`
	Exits   []string  `json:"exits"`            // as wished, the best first; "direct" or "block" at the end
	Now     string    `json:"now"`              // name of the exit in use, "direct" or "blocked"
	Why     string    `json:"why,omitempty"`    // why not the best of them
	Since   time.Time `json:"since,omitzero"`   // of that, if it is known
	No4     bool      `json:"noIPv4,omitempty"` // the exit in use does not carry that family
	No6     bool      `json:"noIPv6,omitempty"`
}

// The words of ExitRow.Now that are no names.
const (
	ExitDirect  = "direct"
	ExitBlocked = "blocked"
)

// ExitUse asks for exits for some devices.
type ExitUse struct {
	Exits   []string `json:"exits"`             // nodes, the best first; "direct" or "block" at the end
	Devices []string `json:"devices,omitempty"` // none: the whole home
}

// ExitOff takes devices off their exits; none: all there are.
type ExitOff struct {
	Devices []string `json:"devices,omitempty"`
}

// ExitOffer says whether members may use the internet from here.
type ExitOffer struct {
	On bool `json:"on"`
}

// ExitTest is where the internet traffic of one thing would go.
type ExitTest struct {
	What      string   `json:"what"` // a MAC address, or "router"
	Addresses []string `json:"addresses,omitempty"`
	Interface string   `json:"interface,omitempty"` // it is behind; "": not known
	Row       *ExitRow `json:"row,omitempty"`       // nil: no row fits, it goes direct
	Unsure    string   `json:"unsure,omitempty"`    // what could make it otherwise
}
