package netns

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// HeadscaleDefault is a Headscale without TLS whose tuning is nobody's but Headscale's own. The one for tests waits
// less before it tells of changes.
func (l *Lab) HeadscaleDefault() *Headscale {
	l.t.Helper()
	hs := l.HeadscaleHTTP()
	hs.Kill()
	text, err := os.ReadFile(hs.conf)
	if err != nil {
		l.t.Fatal(err)
	}
	var keep strings.Builder
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "tuning:") {
			keep.WriteString(line)
		}
	}
	if keep.Len() == len(text) {
		l.t.Fatal("the tests' configuration of Headscale has no tuning any more: this one is then the same")
	}
	l.write("headscale/config.yaml", keep.String())
	hs.Start()
	return hs
}

// Name gives members names that are no node's: each line is a name, a type and an address, as in "nas.lab.test A
// 192.168.1.9". Headscale is started anew.
func (hs *Headscale) Name(records ...string) {
	hs.t.Helper()
	text, err := os.ReadFile(hs.conf)
	if err != nil {
		hs.t.Fatal(err)
	}
	var all strings.Builder
	for _, r := range records {
		f := strings.Fields(r)
		fmt.Fprintf(&all, "{name: %s, type: %s, value: %q}, ", f[0], f[1], f[2])
	}
	const none = "nameservers: {global: []}"
	changed := strings.Replace(string(text), none, none+", extra_records: ["+all.String()+"]", 1)
	if changed == string(text) {
		hs.t.Fatal("Headscale's configuration has no place for records")
	}
	hs.Kill()
	hs.lab.write("headscale/config.yaml", changed)
	hs.Start()
}

// Pid is Headscale's process id.
func (hs *Headscale) Pid() int { return hs.proc.Pid() }

// Rename gives a machine another name. The machine is told by its number, so that no listing is part of the work.
func (hs *Headscale) Rename(id int64, name string) error {
	_, err := hs.CLI("nodes", "rename", "-i", strconv.FormatInt(id, 10), name)
	return err
}
