package status

import "time"

// Page is what the page must know before anybody has logged in, and who asks.
type Page struct {
	State   string    `json:"state"`
	Text    string    `json:"text,omitempty"`    // what to do, if State is PageShut
	Over    string    `json:"over"`              // lan | mesh | local: how the browser reaches this router
	Member  string    `json:"member,omitempty"`  // name of the node that asks, if it comes by the mesh
	Who     string    `json:"who,omitempty"`     // whose it is, or the name that was logged in with; "": the password alone
	Owner   bool      `json:"owner,omitempty"`   // may change things; else may look only
	Root    bool      `json:"root,omitempty"`    // the password is that of this machine's root
	Retry   int       `json:"retry,omitempty"`   // seconds until a password is looked at again
	Host    string    `json:"host,omitempty"`    // this router's name
	Version string    `json:"version,omitempty"` // of the program, once logged in
	Boot    string    `json:"boot"`              // another one after each start of the daemon
	Now     time.Time `json:"now"`
}

// The values of Page.State.
const (
	PageSetup = "setup" // no password is set yet: POST /v1/page/setup
	PageShut  = "shut"  // none is set, and it cannot be set from here now
	PageLogin = "login" // POST /v1/page/login, over the mesh without a password
	PageIn    = "in"
)

// PageSecret is the body of POST /v1/page/login and /v1/page/setup.
type PageSecret struct {
	User     string `json:"user,omitempty"` // of this machine; "": the page's own password
	Password string `json:"password,omitempty"`
}

// String keeps the password out of logs.
func (s PageSecret) String() string { return "user=" + s.User }

// PagePassword is the body of POST /v1/page/password.
type PagePassword struct {
	Old string `json:"old,omitempty"` // needs not be told by an owner who comes by the mesh
	New string `json:"new"`
}

// String keeps the passwords out of logs.
func (PagePassword) String() string { return "passwords" }

// Event is one message of GET /v1/events. The first has everything, of those after
// it each only what changed: a thing that is there replaces the one of that key.
type Event struct {
	Boot        string     `json:"boot"`            // another one: forget everything before
	Seq         uint64     `json:"seq"`             // one more each time something changed
	Whole       bool       `json:"whole,omitempty"` // everything is in it: forget everything before
	Time        time.Time  `json:"time"`
	House       *House     `json:"house,omitempty"`       // as a whole, if anything in it changed
	Peers       []Peer     `json:"peers,omitempty"`       // by name
	PeersGone   []string   `json:"peersGone,omitempty"`   // names
	Devices     []Device   `json:"devices,omitempty"`     // by MAC, or address if there is none
	DevicesGone []string   `json:"devicesGone,omitempty"` // MACs or addresses
	Nodes       []HomeNode `json:"nodes,omitempty"`       // by ID; if this router is the coordinator
	NodesGone   []int64    `json:"nodesGone,omitempty"`   // IDs
	Traffic     *Traffic   `json:"traffic,omitempty"`     // as a whole, once a minute
}

// House is all of an Event that is not in lists by key.
type House struct {
	Status  Snapshot      `json:"status"` // its Peers are left empty
	Expose  string        `json:"expose"` // what the mesh may reach at home: all | chosen | none
	Home    bool          `json:"home"`   // this router is the coordinator
	Pending []HomePending `json:"pending,omitempty"`
	Trial   *Trial        `json:"trial,omitempty"` // a change that waits for its confirmation
	Drop    uint64        `json:"drop"`            // another one: GET /v1/drop tells something else
}

// Traffic is what went through the mesh lately.
type Traffic struct {
	Seconds int            `json:"seconds"` // that a point stands for
	Until   time.Time      `json:"until"`   // the end of the last point
	Points  []TrafficPoint `json:"points"`  // the oldest first, at most 60
}

// TrafficPoint is the bytes of one span of time.
type TrafficPoint struct {
	Rx uint64 `json:"rx"` // from the mesh
	Tx uint64 `json:"tx"`
}

// Settings is what of the configuration the page shows and changes.
type Settings struct {
	Control    string   `json:"control"`    // "home" or a URL
	Hostname   string   `json:"hostname"`   // "": the system's
	Interfaces []string `json:"interfaces"` // of the LAN, as wished; none: found
	Found      []string `json:"found"`      // those of this machine that are the LAN now
	Expose     string   `json:"expose"`     // all | chosen | none
	SNAT       bool     `json:"snat"`
	Offer      bool     `json:"offer"`  // members may use the internet from here
	Rows       []string `json:"rows"`   // of exits: "SOURCES -> EXITS"; the first that fits decides
	URL        string   `json:"url"`    // how the world reaches the coordinator in this router
	Listen     string   `json:"listen"` // of this page
}

// SettingsChange has what shall be otherwise; what is not there stays. The page must
// confirm the change, or it is undone.
type SettingsChange struct {
	Control    *string   `json:"control,omitempty"`
	Hostname   *string   `json:"hostname,omitempty"`
	Interfaces *[]string `json:"interfaces,omitempty"`
	Expose     *string   `json:"expose,omitempty"`
	SNAT       *bool     `json:"snat,omitempty"`
	Offer      *bool     `json:"offer,omitempty"`
	Rows       *[]string `json:"rows,omitempty"`
	URL        *string   `json:"url,omitempty"`
	Listen     *string   `json:"listen,omitempty"`
}

// Trial is a change that is in force, and undone after Until unless it is confirmed.
type Trial struct {
	ID    string    `json:"id"`
	What  []string  `json:"what"` // keys of the configuration, such as "web.listen"
	Until time.Time `json:"until"`
}

// TrialRequest names a trial.
type TrialRequest struct {
	ID string `json:"id"`
}

// LogLine is one line of the daemon's log.
type LogLine struct {
	Time  time.Time `json:"time"`
	Level string    `json:"level"` // DEBUG | INFO | WARN | ERROR
	Part  string    `json:"part,omitempty"`
	Text  string    `json:"text"`
}
