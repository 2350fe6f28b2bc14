package status

import "time"

// Drop is the files that members send here, and those that leave from here: GET /v1/drop.
type Drop struct {
	Folder    string         `json:"folder,omitempty"`  // where files land, as the owner chose; "": in the inbox
	Missing   string         `json:"missing,omitempty"` // why none can land there now
	Quota     int64          `json:"quota"`             // bytes that all of it may have; 0: as many as there is room for
	Used      int64          `json:"used"`              // bytes that it has, with what is under way
	Free      int64          `json:"free"`              // bytes that its file system has to give
	KeepFree  int64          `json:"keepFree"`          // bytes of those that are left alone
	Files     []DropFile     `json:"files"`             // of the inbox, or what arrived in the folder lately; the newest first
	Transfers []DropTransfer `json:"transfers"`         // under way, the oldest first
	Targets   []string       `json:"targets"`           // members who take files from here now, by name
	From      []string       `json:"from"`              // what at home may send, as it stands in drop.from
	Address   string         `json:"address,omitempty"` // where it sends them to: http://drop.cabin.mesh.internal
}

// DropFile is a file that arrived.
type DropFile struct {
	Name string    `json:"name"`
	Size int64     `json:"size"`           // bytes
	From string    `json:"from,omitempty"` // the member who sent it; "": not known any more
	At   time.Time `json:"at"`
}

// DropTransfer is a file under way.
type DropTransfer struct {
	ID      uint64    `json:"id"`
	Name    string    `json:"name"`
	Sending bool      `json:"sending,omitempty"` // from here; else to here
	Peer    string    `json:"peer"`              // the member at its other end
	Size    int64     `json:"size"`              // bytes; -1: not known before its end
	Done    int64     `json:"done"`              // bytes of those
	Since   time.Time `json:"since"`
	Waits   bool      `json:"waits,omitempty"` // for others to end first
}

// DropRequest is the body of POST /v1/drop/remove.
type DropRequest struct {
	Name string `json:"name"`
}

// DropFolder is the body of POST /v1/drop/folder.
type DropFolder struct {
	Folder string `json:"folder"` // absolute; "": the inbox
}

// DropAllow is the body of POST /v1/drop/allow.
type DropAllow struct {
	Device string `json:"device"` // a MAC, an address or a name of something at home; "lan": all of it
	Allow  bool   `json:"allow"`
}

// DropSent is the answer to PUT /v1/drop/send.
type DropSent struct {
	To   string `json:"to"`   // the member who has it
	Name string `json:"name"` // as it was sent
	Size int64  `json:"size"` // bytes
}
