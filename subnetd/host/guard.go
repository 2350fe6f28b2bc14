package host

// Guard is the kill switch (NftGuardTable). It knows no more than what the owner
// wished and the LANs' names, so that it stays as it is while members, policies and
// exits change, and can be in force before the network is. The zero Guard holds
// nobody back.
type Guard struct {
	Interface string       `json:"interface"` // mesh interface
	LANs      []string     `json:"lans"`
	Sources   []ExitSource `json:"sources"` // up to the last that is blocked; their ways do not count
}

// Guard is the part of f that has to outlive everything.
func (f Firewall) Guard() Guard {
	g := Guard{Interface: f.Interface, LANs: f.LANs}
	for i, s := range f.Sources {
		if s.Block {
			g.Sources = append(g.Sources[:0:0], f.Sources[:i+1]...)
		}
	}
	for i := range g.Sources {
		g.Sources[i].Way = 0
	}
	if len(g.Sources) == 0 {
		return Guard{}
	}
	if g.Interface == "" {
		g.Interface = DefaultInterface
	}
	return g
}

// Blocks reports whether g holds anybody back.
func (g Guard) Blocks() bool { return len(g.Sources) > 0 }
