package dns

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"subnetd/subnetd/host"
)

// header begins a resolv.conf of ours.
const header = "# Written by subnetd"

// ourResolvConf is a resolv.conf that names us; search domains and options stay. It
// cannot name a port: the firewall brings what goes there to the answerer.
func ourResolvConf(before string) string {
	var b strings.Builder
	b.WriteString(header + ", which puts the one from before back when it goes (`subnetd down`).\n")
	b.WriteString("nameserver " + host.ServiceAddrs()[0].String() + "\n")
	for line := range strings.Lines(before) {
		if f := strings.Fields(line); len(f) > 1 && (f[0] == "search" || f[0] == "domain" || f[0] == "options") {
			b.WriteString(strings.TrimRight(line, "\n") + "\n")
		}
	}
	return b.String()
}

// replaceResolvConf keeps what is there, then names us. What somebody else has
// written since is the one from before now.
func (h *Hand) replaceResolvConf() error {
	file := h.m.path(resolvConf)
	now, err := os.ReadFile(file)
	if err != nil || strings.HasPrefix(string(now), header) {
		return err
	}
	if err := replace(Backup(h.cfg.Dir.Path()), string(now), 0o600); err != nil {
		return err
	}
	return replace(file, ourResolvConf(string(now)), 0o644)
}

// restoreResolvConf puts the one from before back, unless somebody else has written
// another since.
func (h *Hand) restoreResolvConf() error {
	file, backup := h.m.path(resolvConf), Backup(h.cfg.Dir.Path())
	before, err := os.ReadFile(backup)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was replaced, or it is back already
	}
	if err != nil {
		return err
	}
	now, err := os.ReadFile(file)
	if err == nil && strings.HasPrefix(string(now), header) {
		err = replace(file, string(before), 0o644)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_ = os.Remove(temporary(file))
	return os.Remove(backup)
}
