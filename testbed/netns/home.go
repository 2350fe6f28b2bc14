package netns

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// HomeMesh is the daemon as a mesh of its own: coordinator, relay and STUN answerer in a home router, which is the
// mesh's first node.
type HomeMesh struct {
	*Subnetd
	Options HomeOptions
	Policy  string // path of the policy file
}

// HomeOptions is what the owner has written. The zero value opens the whole LAN to members who joined at home.
type HomeOptions struct {
	URL       string   // home.url; a name in it gets the router's addresses, in the whole lab
	Expose    string   // lan.expose; "": all. The LAN's interface is lan0.
	Devices   []string // lan.devices: "address" or "name=address"
	Policy    string   // HuJSON for home.policy_file; "": the built-in policy
	CertFile  string   // home.cert_file
	KeyFile   string   // home.key_file
	ACME      string   // home.acme_directory
	Records   []string // home.records
	SplitDNS  []string // home.split_dns
	Hostname  string   // mesh.hostname; "": home
	NoSNAT    bool     // lan.snat = false
	OtherTOML string   // whole further tables
	Unjoined  bool     // it is in no mesh until somebody says `up`
}

// HomeMesh starts the daemon on a router and waits until it is a member of its own mesh.
func (l *Lab) HomeMesh(router *Host, o HomeOptions) *HomeMesh {
	l.t.Helper()
	h := l.HomeMeshIdle(router, o)
	h.Start()
	return h
}

// HomeMeshIdle is HomeMesh before its first Start.
func (l *Lab) HomeMeshIdle(router *Host, o HomeOptions) *HomeMesh {
	l.t.Helper()
	if u, err := url.Parse(o.URL); err == nil && o.URL != "" {
		if _, err := netip.ParseAddr(u.Hostname()); err != nil {
			l.NameHost(u.Hostname(), router.Addr4, router.Addr6)
		}
	}
	h := &HomeMesh{Subnetd: l.subnetd(router, ""), Options: o}
	h.Policy = filepath.Join(filepath.Dir(h.Config), "policy.hujson")
	if o.Policy != "" {
		l.replace(h.Policy, o.Policy)
	}
	l.replace(h.Config, h.toml())
	return h
}

// toml is the configuration file.
func (h *HomeMesh) toml() string {
	o := h.Options
	list := func(s []string) string {
		b, _ := json.Marshal(append([]string{}, s...)) // the same in both languages
		return string(b)
	}
	var b strings.Builder
	line := func(key, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s = %q\n", key, value)
		}
	}
	b.WriteString("[mesh]\n")
	if !o.Unjoined {
		line("control", "home")
	}
	line("hostname", cmp.Or(o.Hostname, "home"))
	b.WriteString("[lan]\ninterfaces = [\"lan0\"]\n")
	line("expose", cmp.Or(o.Expose, "all"))
	fmt.Fprintf(&b, "devices = %s\nsnat = %v\n", list(o.Devices), !o.NoSNAT)
	b.WriteString("[tunnel]\nengine = \"userspace\"\n[home]\n")
	line("url", o.URL)
	line("cert_file", o.CertFile)
	line("key_file", o.KeyFile)
	line("acme_directory", o.ACME)
	if o.Policy != "" {
		line("policy_file", h.Policy)
	}
	if len(o.Records) > 0 {
		fmt.Fprintf(&b, "records = %s\n", list(o.Records))
	}
	if len(o.SplitDNS) > 0 {
		fmt.Fprintf(&b, "split_dns = %s\n", list(o.SplitDNS))
	}
	b.WriteString(o.OtherTOML)
	return b.String()
}

// Start starts the daemon, again after Stop or Kill, and waits until it is online in its own mesh, and its things have
// their addresses there: these it asks for when it knows the mesh.
func (h *HomeMesh) Start() {
	h.t.Helper()
	h.Subnetd.Start()
	Eventually(h.t, 20*time.Second, "the router is online in its own mesh", func() error {
		all, err := h.Nodes()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(all.Nodes, func(n HomeNode) bool { return n.Self && n.Online })
		if i < 0 {
			return fmt.Errorf("nodes: %+v", all.Nodes)
		}
		for _, wish := range h.Options.Devices {
			name, _, _ := strings.Cut(wish, "=")
			if !slices.ContainsFunc(all.Nodes[i].Devices, func(d HomeDevice) bool { return firstLabel(d.Name) == name }) {
				return fmt.Errorf("no %s among its things: %+v", name, all.Nodes[i].Devices)
			}
		}
		return nil
	})
}

// Kill ends the daemon at once, without a word to anybody.
func (h *HomeMesh) Kill() { h.Kill9() }

// Restart stops the daemon in good order and starts it again.
func (h *HomeMesh) Restart() {
	h.t.Helper()
	if err := h.Stop(); err != nil {
		h.t.Fatalf("subnetd: %v", err)
	}
	h.Start()
}

// SetOptions writes another configuration and tells the daemon of it; it does not wait.
func (h *HomeMesh) SetOptions(o HomeOptions) {
	h.t.Helper()
	h.Options = o
	h.Reload(h.toml())
}

// replace writes a whole file.
func (l *Lab) replace(path, content string) {
	l.t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// NameHost gives a name addresses that every host of the lab finds.
func (l *Lab) NameHost(name string, addrs ...netip.Addr) {
	l.t.Helper()
	f, err := os.OpenFile(filepath.Join(l.dir, "hosts"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	for _, a := range addrs {
		if a.IsValid() {
			if _, err := fmt.Fprintf(f, "%s %s\n", a, name); err != nil {
				l.t.Fatal(err)
			}
		}
	}
	for _, g := range l.guests {
		g.tell()
	}
}
