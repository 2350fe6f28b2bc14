package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// pkg is one package as `go list` tells it.
type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

const house = "subnetd/subnetd/"

// floors are where each package stands: it may import only what is below it.
var floors = map[string]int{
	"mesh": 1, "config": 1, "state": 1, "task": 1, "quota": 1, "qr": 1, "systemd": 1,
	"host": 2, "host/apply": 2, "host/watch": 2, "host/tunnel": 2, "host/route": 2, "host/firewall": 2, "host/dns": 2, "status": 2, "exit": 2,
	"coord/policy": 2, "ingress": 2, "lan": 2, "lan/sense": 2,
	"plan": 3, "path": 3, "control": 3, "api": 3, "coord": 3, "relay": 3, "dns": 3, "peerapi": 3, "cert": 3, "drop": 3,
	"engine": 4, "underlay": 4, "cli": 4, "web": 4, "front": 4,
	"simnet": 4, // tests only
	"":       5,
}

// never are imports that would break the house, each with its reason.
var never = []struct {
	who    []string
	what   []string
	deep   bool // not even through others
	reason string
}{
	{[]string{"plan", "path", "exit", "mesh", "host", "config", "status", "coord/policy", "lan"},
		[]string{"github.com/mdlayher/netlink", "github.com/jsimonetti/rtnetlink/v2", "github.com/google/nftables", "golang.zx2c4.com/wireguard/device"},
		true, "a pure package decides; hands do"},
	{[]string{"engine"}, []string{house + "control", house + "underlay", house + "host/watch", house + "lan", house + "api"},
		false, "the engine is told; it asks no sensor"},
	{[]string{"api"}, []string{house + "engine", house + "coord"}, false, "the api gets funcs"},
	{[]string{"*"}, []string{house + "coord", house + "relay", house + "ingress"}, false, "what is public stands alone; main alone joins it to the rest"},
	{[]string{"coord", "relay", "ingress"}, []string{house + "control", house + "host", house + "config", house + "mesh"}, true, "the coordinator knows its clients by the protocol only, like any stranger"},
	{[]string{"*"}, []string{"tailscale.com/derp/derpserver"}, true, "size: 1.9 MB"},
	{[]string{"web"}, []string{house + "engine", house + "control", house + "underlay", house + "plan", house + "state"}, false, "the page gets funcs, as the api does"},
	{[]string{"front"}, []string{house + "engine", house + "control", house + "underlay", house + "plan", house + "web", house + "api"}, false, "the front gets handlers and funcs"},
	{[]string{"*"}, []string{"subnetd/webui"}, false, "main alone brings the built page along"},
	{[]string{"cli"}, []string{house + "engine", house + "control", house + "underlay", house + "plan"}, false, "the command line knows only the api"},
	{[]string{"host/apply", "host/watch", "host/tunnel", "host/route", "host/firewall", "host/dns"},
		[]string{house + "host/apply", house + "host/watch", house + "host/tunnel", house + "host/route", house + "host/firewall", house + "host/dns"},
		false, "the hands do not know one another"},
	{[]string{"*", "-host/firewall"}, []string{"github.com/google/nftables"}, false, "nftables has one owner"},
	{[]string{"*", "-host/route", "-host/tunnel", "-host/watch", "-lan/sense"}, []string{"github.com/jsimonetti/rtnetlink/v2"}, false, "netlink has few owners"},
	{[]string{"*", "-host/tunnel"}, []string{"golang.zx2c4.com/wireguard/device", "golang.zx2c4.com/wireguard/conn", "golang.zx2c4.com/wireguard/tun"}, false, "the engines stand behind host/tunnel"},
	{[]string{"*"}, []string{"html", "html/template", "text/template", "tailscale.com/ipn", "tailscale.com/wgengine", "tailscale.com/wgengine/magicsock", "tailscale.com/tsnet", "tailscale.com/control/controlclient"},
		true, "size: they pull in what a router has no room for"},
}

// packages are those of the daemon, by their names in this folder.
func packages(t *testing.T) map[string]pkg { return list(t, "./...") }

func list(t *testing.T, what ...string) map[string]pkg {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps"}, what...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all := map[string]pkg{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, "subnetd/subnetd"), "/")] = p
	}
}

func TestFloors(t *testing.T) {
	for name, p := range packages(t) {
		floor, ok := floors[name]
		if !ok {
			t.Errorf("package %q stands on no floor: give it one in floors, and in the README's picture", name)
		}
		for _, imp := range p.Imports {
			below, ok := strings.CutPrefix(imp, house)
			if ok && floors[below] >= floor && !strings.HasPrefix(name, below+"/") && below != "host" {
				t.Errorf("%s (floor %d) imports %s (floor %d): a package imports only what is below it", name, floor, below, floors[below])
			}
		}
		if b := path.Base(name); slices.Contains([]string{"util", "utils", "common", "types", "helpers"}, b) {
			t.Errorf("package %q says nothing of what it is", name)
		}
	}
}

func TestNever(t *testing.T) {
	all := packages(t)
	for _, ban := range never {
		for name, p := range all {
			if !concerns(ban.who, name) {
				continue
			}
			imports := p.Imports
			if ban.deep {
				imports = p.Deps
			}
			for _, what := range ban.what {
				if slices.Contains(imports, what) && p.ImportPath != what {
					t.Errorf("%s reaches %s: %s", p.ImportPath, what, ban.reason)
				}
			}
		}
	}
}

// TestApart: the appliance and all else meet by exec, sockets, files and exit codes, so that each may be replaced alone.
func TestApart(t *testing.T) {
	const appliance = "subnetd/firmware/"
	for _, p := range list(t, "subnetd/...") {
		for _, imp := range p.Imports {
			if ours := strings.HasPrefix(p.ImportPath, appliance); strings.HasPrefix(imp, "subnetd/") && strings.HasPrefix(imp, appliance) != ours {
				t.Errorf("%s imports %s", p.ImportPath, imp)
			}
		}
	}
}

// concerns reports whether a ban on who holds for the package.
func concerns(who []string, name string) bool {
	if slices.Contains(who, "-"+name) {
		return false
	}
	return slices.Contains(who, name) || (who[0] == "*" && name != "")
}
