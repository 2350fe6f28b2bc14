package netns

// Bare makes a host without any cable.
func (l *Lab) Bare(name string) *Host {
	l.t.Helper()
	return l.newHost(name)
}

// Namespace is the name of the network namespace that a host is.
func (h *Host) Namespace() string { return h.ns }
