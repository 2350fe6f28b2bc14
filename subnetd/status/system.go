package status

// System is the system of this machine, where the daemon can replace it.
type System struct {
	Version string  `json:"version"`
	Waiting bool    `json:"waiting,omitempty"` // another one is installed: the next start tries it, once
	Note    string  `json:"note,omitempty"`    // what the owner must know, as that the last update did not come up
	Update  *Update `json:"update,omitempty"`  // under way
}

// Update is an image that comes in.
type Update struct {
	Done int64 `json:"done"` // bytes
	Size int64 `json:"size"`
}

// Updated is the answer to an image that was installed.
type Updated struct {
	Text string `json:"text"` // what happens next, in the words of the program that installed it
}
