package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/config"
	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/plan"
	"subnetd/subnetd/state"
	"subnetd/subnetd/status"
	"subnetd/subnetd/web"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"tailscale.com/types/key"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestMemberAt(t *testing.T) {
	now := time.Unix(1e9, 0)
	node := func(name string, user int64, n string, tags ...string) mesh.Node {
		return mesh.Node{Name: name + ".lab.", User: user, Addresses: []netip.Prefix{prefix(n + "/32")}, Tags: tags,
			AllowedIPs: []netip.Prefix{prefix(n + "/32")}}
	}
	jailed, expired, cabin, box := node("shared", 3, "100.64.0.6"), node("old", 1, "100.64.0.7"), node("cabin", 1, "100.64.0.8"), node("box", 1, "100.64.0.9")
	jailed.Jailed, expired.Expired, cabin.Router = true, true, true
	box.AllowedIPs = append(box.AllowedIPs, prefix("10.1.0.0/16"))
	nm := &mesh.Netmap{
		Self: node("router", 1, "100.64.0.1"), Users: map[int64]string{1: "home@", 2: "anna@", 9: "tagged-devices"},
		Peers: []mesh.Node{node("phone", 1, "100.64.0.2"), node("tablet", 2, "100.64.0.3"), node("nas", 9, "100.64.0.4", "tag:nas"), node("cam", 1, "100.64.0.5", "tag:cam"), jailed, expired, cabin, box},
	}
	tagged := *nm
	tagged.Self = node("router", 9, "100.64.0.1", "tag:router")
	tests := []struct {
		nm   *mesh.Netmap
		addr string
		home bool
		want web.Member
		ok   bool
	}{
		{nm, "100.64.0.2", false, web.Member{Name: "phone.lab", User: "home", Owner: true}, true},
		{nm, "100.64.0.3", false, web.Member{Name: "tablet.lab", User: "anna"}, true},
		{nm, "100.64.0.4", false, web.Member{Name: "nas.lab"}, true},
		{nm, "100.64.0.5", true, web.Member{Name: "cam.lab"}, true},
		{nm, "100.64.0.6", false, web.Member{}, false},
		{nm, "100.64.0.7", false, web.Member{}, false},
		{nm, "100.64.0.8", true, web.Member{Name: "cabin.lab", Router: true}, true}, // whoever is at the cabin's LAN
		{nm, "100.64.0.9", true, web.Member{Name: "box.lab", Router: true}, true},
		{nm, "100.64.0.1", false, web.Member{}, false}, // this router
		{nm, "10.1.2.3", false, web.Member{}, false},   // behind a member
		{nil, "100.64.0.2", false, web.Member{}, false},
		{&tagged, "100.64.0.2", false, web.Member{Name: "phone.lab", User: "home"}, true},
		{&tagged, "100.64.0.2", true, web.Member{Name: "phone.lab", User: "home", Owner: true}, true},
		{&tagged, "100.64.0.3", true, web.Member{Name: "tablet.lab", User: "anna"}, true},
		{&tagged, "100.64.0.4", false, web.Member{Name: "nas.lab"}, true}, // the same user as ours, and nobody's
	}
	for _, tt := range tests {
		if got, ok := memberAt(tt.nm, netip.MustParseAddr(tt.addr), now, tt.home); got != tt.want || ok != tt.ok {
			t.Errorf("%s, home %v: %+v %v", tt.addr, tt.home, got, ok)
		}
	}
}

func TestPageSettings(t *testing.T) {
	c := config.Default()
	f := host.Facts{Hostname: "Router", Interfaces: []host.Interface{
		{Name: "br-lan", Addrs: []netip.Prefix{prefix("192.168.1.1/24"), prefix("fd00::1/64"), prefix("fe80::1/64")}},
		{Name: "wan", Addrs: []netip.Prefix{prefix("203.0.113.5/24"), prefix("192.168.100.2/24")}},
	}}
	p := plan.Plan{LANs: []string{"br-lan"}}
	p.Host.Firewall.Own = []netip.Addr{netip.MustParseAddr("100.64.0.1")}
	nm := &mesh.Netmap{Self: mesh.Node{Name: "home.mesh.internal."}}
	want := web.Settings{Port: 8411, Home: f.Interfaces[0].Addrs, Mesh: p.Host.Firewall.Own,
		Names: []string{"router", "router.lan", "router.local", "router.home.arpa", "home.mesh.internal", "home", "home.lan", "home.local", "home.home.arpa", "page.home.mesh.internal"}}
	eq := cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})
	if d := cmp.Diff(want, pageSettings(p, f, c, nm), eq); d != "" {
		t.Error(d)
	}
	c.Web.Listen = "192.168.1.1:80"
	if s := pageSettings(p, f, c, nil); s.Port != 80 || s.Only != netip.MustParseAddr("192.168.1.1") {
		t.Errorf("%+v", s)
	}
}

func TestEditsOf(t *testing.T) {
	was := config.Default()
	was.Exit.Use, was.Exit.Devices = "cabin", []string{"02:00:00:00:00:01"}
	p := func(s string) *string { return &s }
	on := true
	tests := []struct {
		c    status.SettingsChange
		want []edit
		err  string
	}{
		{status.SettingsChange{}, nil, "nothing"},
		{status.SettingsChange{Expose: p("none"), Interfaces: &[]string{"br0"}}, []edit{{"lan", "expose", "none"}, {"lan", "interfaces", []string{"br0"}}}, ""},
		{status.SettingsChange{Offer: &on}, []edit{{"exit", "offer", true}}, ""},
		{status.SettingsChange{Rows: &[]string{"lan -> far, direct"}}, []edit{{"exit", "devices", []string{}}, {"exit", "rows", []string{"lan -> far, direct"}}, {"exit", "use", ""}}, ""},
		{status.SettingsChange{Rows: &[]string{}}, []edit{{"exit", "devices", []string{}}, {"exit", "use", ""}}, ""},
		{status.SettingsChange{Rows: &[]string{"lan to far"}}, nil, "->"},
	}
	for _, tt := range tests {
		got, err := editsOf(was, tt.c)
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%+v: %v", tt.c, err)
		}
		less := cmpopts.SortSlices(func(a, b edit) bool { return a.section+a.key < b.section+b.key })
		if d := cmp.Diff(tt.want, got, less, cmp.AllowUnexported(edit{})); d != "" {
			t.Error(d)
		}
	}
}

func openDir(t testing.TB, path string) *state.Dir {
	t.Helper()
	d, err := state.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		file := filepath.Join(dir, "c.toml")
		over := make(chan string, 9)
		tr := &trial{file: file, dir: openDir(t, filepath.Join(dir, "s")), log: slog.New(slog.DiscardHandler), over: func(id string) { over <- id }}
		write := func(s string) {
			if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want := func(s string) {
			t.Helper()
			if b, _ := os.ReadFile(file); string(b) != s {
				t.Errorf("the file is %q, want %q", b, s)
			}
			if found, _ := tr.dir.Load(trialFile, &trialRecord{}); found {
				t.Error("the trial is still on the disk")
			}
		}
		begin := func() status.Trial {
			t.Helper()
			is, err := tr.begin("before", "after", []string{"web.listen"})
			if err != nil {
				t.Fatal(err)
			}
			write("after")
			return is
		}

		one := begin()
		if _, err := tr.begin("x", "y", nil); !errors.Is(err, api.ErrTrial) || tr.under().ID != one.ID {
			t.Fatal(err)
		}
		if _, err := tr.end("another"); !errors.Is(err, api.ErrNoTrial) {
			t.Fatal(err)
		}
		if _, err := tr.end(one.ID); err != nil || tr.under() != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * trialFor)
		if len(over) > 0 {
			t.Fatal("the time of one that was confirmed is over")
		}

		two := begin()
		time.Sleep(trialFor - time.Second)
		if len(over) > 0 {
			t.Fatal("too early")
		}
		time.Sleep(2 * time.Second)
		if id := <-over; id != two.ID || two.ID == one.ID {
			t.Fatal(id)
		}
		rec, err := tr.end(two.ID)
		if err = errors.Join(err, tr.putBack(rec)); err != nil {
			t.Fatal(err)
		}
		want("before")

		three := begin()
		write("the owner's own")
		rec, _ = tr.end(three.ID)
		if err := tr.putBack(rec); err != nil {
			t.Fatal(err)
		}
		want("the owner's own")

		four := begin()
		tr.timer.Stop()
		next := &trial{file: file, dir: tr.dir, log: tr.log} // another life
		if err := next.recover(); err != nil || next.under() != nil || four.ID == "" {
			t.Fatal(err)
		}
		want("before")
		if err := next.recover(); err != nil {
			t.Fatal(err)
		}
		want("before")
	})
}

// oneBackup is of a router with a mesh of its own.
func oneBackup(t testing.TB) backup {
	t.Helper()
	id, err := json.Marshal(state.Identity{Machine: key.NewMachine(), Port: 7})
	if err != nil {
		t.Fatal(err)
	}
	return backup{Is: backupIs, Version: "1", Created: time.Unix(1e9, 0).UTC(), Config: "[lan]\nexpose = \"none\"\n",
		State: map[string]json.RawMessage{"identity": id, "ledger": json.RawMessage(`{"nodes": 1}`), "page": json.RawMessage(`{}`)}}
}

func TestBackup(t *testing.T) {
	root := t.TempDir()
	file, path := filepath.Join(root, "c.toml"), filepath.Join(root, "s")
	dir := openDir(t, path)
	save := func(name string, v any) {
		if err := dir.Save(name, v); err != nil {
			t.Fatal(err)
		}
	}
	save("identity", state.Identity{Machine: key.NewMachine()})
	save("netmap", 1)
	save("things", 2) // not in the backup
	save(guardFile, 3)
	if err := errors.Join(os.WriteFile(filepath.Join(path, "resolv.conf"), []byte("nameserver 1"), 0o600), os.WriteFile(file, []byte("# mine\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	names, err := carried(path)
	if d := cmp.Diff([]string{"identity", "things"}, names); err != nil || d != "" {
		t.Fatal(err, d)
	}
	b := oneBackup(t)
	save(restoreFile, b)
	if err := putRestored(dir, file); err != nil {
		t.Fatal(err)
	}
	names, _ = carried(path)
	if d := cmp.Diff([]string{"identity", "ledger", "page"}, names); d != "" {
		t.Error(d)
	}
	for name, want := range b.State {
		var got json.RawMessage
		if _, err := state.Peek(path, name, &got); err != nil || !sameJSON(got, want) {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	text, _ := os.ReadFile(file)
	if string(text) != b.Config {
		t.Errorf("%s", text)
	}
	for name, want := range map[string]bool{"netmap": false, restoreFile: false, guardFile: true, "resolv.conf": true} {
		if _, err := os.Stat(filepath.Join(path, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := putRestored(dir, file); err != nil { // nothing waits
		t.Fatal(err)
	}
}

func sameJSON(a, b []byte) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}

func TestParseBackup(t *testing.T) {
	change := func(f func(*backup)) []byte {
		b := oneBackup(t)
		f(&b)
		j, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	good := change(func(*backup) {})
	if _, err := parseBackup(good, "f"); err != nil {
		t.Fatal(err)
	}
	toml := change(func(b *backup) { b.Config = "[lan]\nexpose = \"all\"\n" })
	if _, err := parseBackup(toml, "/etc/config/subnetd"); err == nil {
		t.Error("TOML would be put where UCI has to be")
	}
	for name, file := range map[string][]byte{
		"nothing": nil, "null": []byte("null"), "cut": good[:len(good)-2], "twice": append(good, good...), "another thing": []byte(`{"is":"a song"}`),
		"unknown":       bytes.Replace(good, []byte(`"version"`), []byte(`"x":1,"version"`), 1),
		"no keys":       change(func(b *backup) { delete(b.State, "identity") }),
		"empty keys":    change(func(b *backup) { b.State["identity"] = json.RawMessage(`{}`) }),
		"a bad wish":    change(func(b *backup) { b.Config = "[lan]\nexpose = 7\n" }),
		"a way out":     change(func(b *backup) { b.State["../../etc/passwd"] = json.RawMessage(`1`) }),
		"a hidden file": change(func(b *backup) { b.State[".lock"] = json.RawMessage(`1`) }),
		"a backup":      change(func(b *backup) { b.State[restoreFile] = json.RawMessage(`1`) }),
		"a kill switch": change(func(b *backup) { b.State[guardFile] = json.RawMessage(`{}`) }),
	} {
		if _, err := parseBackup(file, "f"); err == nil {
			t.Errorf("%s is taken for a backup", name)
		}
	}
}

// FuzzBackup: whatever is taken for a backup can be put back, and is the same then.
func FuzzBackup(f *testing.F) {
	good, _ := json.Marshal(oneBackup(f))
	f.Add(good)
	f.Add([]byte(`{"is":"subnetd backup","state":{"identity":{}}}`))
	f.Fuzz(func(t *testing.T, file []byte) {
		b, err := parseBackup(file, "f")
		if err != nil {
			return
		}
		again, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		c, err := parseBackup(again, "f")
		if err != nil || c.Config != b.Config || c.Policy != b.Policy || len(c.State) != len(b.State) {
			t.Fatalf("%v: %+v", err, c)
		}
		for name, raw := range b.State {
			if !state.IsName(name) || !json.Valid(raw) || !sameJSON(raw, c.State[name]) {
				t.Errorf("%q: %s", name, raw)
			}
		}
	})
}
