package appliance_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/appliance"
	"subnetd/testbed/netns"
	"subnetd/testbed/qemu"
)

// TestHome: a box out of the factory, as the router of a home, on every board that is named in SUBNETD_BOARDS, or on the fastest.
func TestHome(t *testing.T) {
	boards := os.Getenv("SUBNETD_BOARDS")
	if boards == "" {
		boards = string(appliance.X86)
	}
	for board := range strings.FieldsSeq(boards) {
		t.Run(board, func(t *testing.T) { atHome(t, appliance.Board(board)) })
	}
}

// house is a home behind a box: a printer, and a phone of the family's that is away.
type house struct {
	*testBox
	printer *netns.Host
	phone   *netns.StockPeer
	web     *netns.Host // on the internet
}

const leaseScript = `#!/bin/sh
[ "$1" = bound ] || exit 0
ip -4 addr flush dev eth0
ip addr add $ip/24 dev eth0
ip route add default via $router
`

func newHouse(t *testing.T, board appliance.Board) *house {
	t.Helper()
	lab := netns.New(t)
	h := &house{printer: lab.Bare("printer"), web: lab.Client("web", netns.Public)}
	wan := qemu.NIC{Netns: lab.Internet().Namespace(), Tap: "box", Bridge: "br0"}
	h.testBox = &testBox{appliance.New(t, board, wan, qemu.NIC{Netns: h.printer.Namespace(), Tap: "eth0"}), t, h.printer}
	h.Shell()
	// The provider.
	address := netip.MustParseAddr("203.0.113.77")
	lab.NameHost("home.test", address)
	lab.Internet().Start("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--port=0",
		"--interface=br0", "--bind-interfaces", "--dhcp-authoritative", "--dhcp-range="+address.String()+",static,1h",
		"--dhcp-host="+wan.Address()+","+address.String(), "--dhcp-option=3,203.0.113.1", "--dhcp-leasefile="+lab.Dir()+"/leases")
	h.web.ServePayload("[::]:80", 3, 100_000)
	h.phone = lab.StockPeer(lab.Client("phone", netns.Easy))
	return h
}

func atHome(t *testing.T, board appliance.Board) {
	h := newHouse(t, board)
	h.Power()
	t.Logf("the first boot, with keys and file system made: up %v after the power came on", h.Up().Round(100*time.Millisecond))

	// The printer gets its lease, and surfs.
	script := h.printer.Lab().Dir() + "/lease"
	h.printer.WriteFile(script, leaseScript)
	if err := os.Chmod(script, 0o700); err != nil {
		t.Fatal(err)
	}
	h.run(h.printer, "busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q", "-t", "20", "-T", "1", "-s", script)
	h.eventually("the printer surfs", func(ctx context.Context) error { return fetch(ctx, h.printer, h.web.Addr4) })
	h.printer.ServePayload("[::]:80", 4, 50_000)

	// It is found, and exposed.
	mac := h.printer.MAC("eth0")
	h.eventually("the printer is found", func(ctx context.Context) error {
		out, err := h.Console.Run(ctx, "subnetd devices")
		if err == nil && !strings.Contains(out, mac) {
			err = errors.New(out)
		}
		return err
	})
	h.must(`printf '[home]\nurl = "http://home.test"\n' >>/data/etc/subnetd/subnetd.toml; appliance reload subnetd`)
	h.eventually("the WAN is open for the mesh", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		c, err := h.web.Dial(ctx, "tcp", "203.0.113.77:80")
		if err == nil {
			err = c.Close()
		}
		return err
	})
	h.eventually("the printer is exposed", func(ctx context.Context) error { // a slow board says too late that it is
		_, err := h.Console.Run(ctx, "subnetd devices expose "+mac+" --as printer --ports tcp/80")
		return err
	})
	var invite struct{ URL, Key string }
	if err := json.Unmarshal([]byte(h.must("subnetd invite --json")), &invite); err != nil {
		t.Fatal(err)
	}
	h.phone.Up(invite.URL, invite.Key)
	h.eventually("the phone opens the printer's page", h.page)

	h.Cut()
	h.Power()
	h.eventually("the phone opens the printer's page again", h.page)
	t.Logf("%s: power-on to the page of a thing on the LAN, opened by name from outside: %v", board, time.Since(h.On).Round(100*time.Millisecond))
}

// page opens the printer's page from the phone, by its name in the mesh.
func (h *house) page(ctx context.Context) error {
	out, err := h.phone.Host.Run(ctx, "dig", "+short", "+time=1", "+tries=1", "@100.100.100.100", "printer.mesh.internal")
	if err != nil {
		return err
	}
	addr, err := netip.ParseAddr(strings.TrimSpace(out))
	if err != nil {
		return fmt.Errorf("the printer's name: %q: %w", out, err)
	}
	return fetch(ctx, h.phone.Host, addr)
}

// fetch gets a page.
func fetch(ctx context.Context, from *netns.Host, addr netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	n, _, err := from.Fetch(ctx, "http://"+addr.String()+"/")
	if err == nil && n == 0 {
		err = errors.New("an empty page")
	}
	return err
}

// run runs a program on a host.
func (h *house) run(on *netns.Host, name string, args ...string) {
	h.t.Helper()
	if out, err := on.Run(h.t.Context(), name, args...); err != nil {
		h.t.Fatalf("%v\n%s", err, out)
	}
}

// eventually waits as long as a slow board on a busy machine may take.
func (h *house) eventually(what string, check func(context.Context) error) {
	h.t.Helper()
	netns.Eventually(h.t, 5*time.Minute, what, func() error {
		ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
		defer cancel()
		return check(ctx)
	})
}
