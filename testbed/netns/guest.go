package netns

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"subnetd/testbed/qemu"
)

const (
	guestDir     = "/lab"     // what a guest is booted with
	guestRun     = "/run/lab" // what hosts in it write
	guestSubnetd = "/usr/bin/subnetd"
)

// Guest is an emulated machine with a kernel of its own, as a router has it. Its network cards end in a namespace of this
// machine, each on a bridge of its own, and there the lab's cables are plugged in: to everybody else the guest is a
// [Host] like others. Further hosts can live in it, as network namespaces of the guest.
type Guest struct {
	*qemu.Guest
	lab    *Lab
	cables *Host
	cards  int
	used   int // cards that have a cable
}

// GuestSpec says what machine it is. Arch and Cards must be set.
type GuestSpec struct {
	Name     string // default: the architecture
	Arch     qemu.Arch
	MemoryMB int // default 256
	CPUs     int // default 1
	DiskMB   int // a disk at /data that survives a power cut; 0: none
	Cards    int // network cards: one for each cable to the guest and to the hosts in it
	Files    map[string]string
	Append   string // additions to the kernel's command line
	Count    bool   // count instructions
}

// Guest boots a machine. The daemon's program for its architecture, the lab's names and its authority are there; an
// address is not, until the guest becomes a [Host]. The test is skipped or failed, as [qemu.Boot] does, where no guest
// can be had.
func (l *Lab) Guest(s GuestSpec) *Guest {
	l.t.Helper()
	name := s.Name
	if name == "" {
		name = string(s.Arch)
	}
	g := &Guest{lab: l, cards: s.Cards, cables: l.newHost(name + "wire")}
	g.cables.must("", "sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6") // a cable has no address
	o := qemu.Options{Name: name, Arch: s.Arch, MemoryMB: s.MemoryMB, CPUs: s.CPUs, DiskMB: s.DiskMB, Count: s.Count,
		Append: "rootfstype=ramfs " + s.Append, // a tmpfs has half of a small memory, which is less than it boots with
		Files: map[string]string{guestSubnetd: guestBin(l, s.Arch), guestDir + "/ca.pem": l.CACert(),
			"/etc/hosts": filepath.Join(l.dir, "hosts"), "/etc/resolv.conf": filepath.Join(l.dir, "resolv.conf")}}
	for there, here := range s.Files {
		o.Files[there] = here
	}
	for i := range s.Cards {
		bridge := fmt.Sprintf("b%d", i)
		g.cables.ip("link add "+bridge+" type bridge", "link set "+bridge+" up")
		o.NICs = append(o.NICs, qemu.NIC{Name: card(i), Netns: g.cables.ns, Tap: fmt.Sprintf("t%d", i), Bridge: bridge})
	}
	g.Guest = qemu.Boot(lasting{l.t}, o)
	l.guests = append(l.guests, g)
	return g
}

func card(i int) string { return fmt.Sprintf("card%d", i) }

// guestBin is the daemon's program for an architecture: in SUBNETD_GUESTS, or bin/guests of the checkout.
func guestBin(l *Lab, arch qemu.Arch) string {
	l.t.Helper()
	dir := os.Getenv("SUBNETD_GUESTS")
	if dir == "" {
		dir = filepath.Join(repoRoot(l.t), "bin", "guests")
	}
	bin := filepath.Join(dir, "subnetd-"+string(arch))
	if _, err := os.Stat(bin); err != nil {
		l.t.Fatalf("the daemon for guests is missing (%v): run make guests, or set SUBNETD_GUESTS", err)
	}
	return bin
}

// Host is the guest itself as a host of the lab, without a cable.
func (g *Guest) Host(name string) *Host {
	g.lab.t.Helper()
	h := &Host{lab: g.lab, Name: name, guest: g}
	h.ip("link set lo up")
	h.trustAddresses()
	return h
}

// Inner makes a host that is a network namespace in the guest, without a cable.
func (g *Guest) Inner(name string) *Host {
	g.lab.t.Helper()
	(&Host{lab: g.lab, guest: g}).ip("netns add " + name)
	h := g.Host("")
	h.ns, h.Name = name, name
	h.ip("link set lo up")
	h.trustAddresses()
	return h
}

// socket takes the next card for an interface of a host in the guest.
func (g *Guest) socket(h *Host, ifname string) socket {
	g.lab.t.Helper()
	i := g.used
	if g.used++; g.used > g.cards {
		g.lab.t.Fatalf("guest %s has only %d network cards", h.Name, g.cards)
	}
	end := fmt.Sprintf("v%d", i)
	return socket{g.cables, end, func() {
		g.cables.ip(fmt.Sprintf("link set %s master b%d", end, i), "link set "+end+" up")
		if h.ns != "" {
			(&Host{lab: g.lab, guest: g}).ip("link set " + card(i) + " netns " + h.ns)
		}
		h.ip("link set "+card(i)+" down", "link set "+card(i)+" name "+ifname, "link set "+ifname+" up")
	}}
}

// enter is a command line that runs in a host of the guest.
func (g *Guest) enter(h *Host, name string, args []string) []string {
	all := append([]string{name}, args...)
	if h.ns != "" {
		all = append([]string{"ip", "netns", "exec", h.ns}, all...)
	}
	return all
}

// environment is what a program of the lab needs to know in a guest.
func environment() []string { return []string{"SSL_CERT_FILE=" + guestDir + "/ca.pem"} }

// must runs a program in a host of the guest and fails the test with its output.
func (g *Guest) must(h *Host, stdin, name string, args ...string) {
	g.lab.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	code, err := g.Exec(ctx, qemu.Command{Args: g.enter(h, name, args), Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &out})
	if err != nil {
		g.lab.t.Fatalf("%s: %s %s: %v", h.Name, name, strings.Join(args, " "), err)
	}
	if code != 0 {
		g.lab.t.Fatalf("%s: %s %s: exit code %d: %s%s", h.Name, name, strings.Join(args, " "), code, out.String(), stdin)
	}
}

// output runs a program in a host of the guest and gives what it printed on its two outputs. If ctx ends it, that is
// nothing.
func (g *Guest) output(ctx context.Context, h *Host, name string, args ...string) (stdout, stderr []byte, err error) {
	var out, diag bytes.Buffer
	code, err := g.Exec(ctx, qemu.Command{Args: g.enter(h, name, args), Env: environment(), Stdout: &out, Stderr: &diag})
	what := fmt.Sprintf("%s: %s %s", h.Name, filepath.Base(name), strings.Join(args, " "))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", what, err) // more may still come into the buffers
	}
	if code != 0 {
		err = fmt.Errorf("%s: %w: %s%s", what, exitError(code), out.String(), diag.String())
	}
	return out.Bytes(), diag.Bytes(), err
}

// exitError is the exit code of a program in a guest.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }
func (e exitError) ExitCode() int { return int(e) }

// start starts a program in a host of the guest in the background.
func (g *Guest) start(h *Host, env []string, name string, args ...string) *qemu.Process {
	g.lab.t.Helper()
	all := g.enter(h, name, args)
	return g.StartEnv(append(environment(), env...), all[0], all[1:]...)
}

// tell brings the guest's names up to date.
func (g *Guest) tell() {
	g.lab.t.Helper()
	hosts, err := os.ReadFile(filepath.Join(g.lab.dir, "hosts"))
	if err != nil {
		g.lab.t.Fatal(err)
	}
	g.WriteFile("/etc/hosts", hosts, 0o644)
}
