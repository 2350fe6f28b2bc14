package appliance_test

import (
	"os"
	"testing"

	"subnetd/testbed/appliance"
	"subnetd/testbed/netns"
	"subnetd/testbed/qemu"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

// testBox is a box on the bench: a PC, the fastest of the boards, with a shell on its console.
type testBox struct {
	*appliance.Box
	t   *testing.T
	lan *netns.Host // on its LAN
}

// bench flashes one, whose cables end in a host each. Nobody is at the WAN's; the LAN's has an address.
func bench(t *testing.T) *testBox {
	t.Helper()
	lab := netns.New(t)
	wan, lan := lab.Bare("wan"), lab.Bare("lan")
	b := appliance.New(t, appliance.X86, qemu.NIC{Netns: wan.Namespace(), Tap: "eth0"}, qemu.NIC{Netns: lan.Namespace(), Tap: "eth0"})
	b.Shell()
	lan.IP("addr add 192.168.77.50/24 dev eth0", "link set eth0 up")
	return &testBox{b, t, lan}
}

// must runs a line of the shell.
func (b *testBox) must(line string) string {
	b.t.Helper()
	out, err := b.Console.Run(b.t.Context(), line)
	if err != nil {
		b.t.Fatalf("%v\n---- console:\n%s", err, b.Console.Tail(40))
	}
	return out
}

// imageOf is a file of the PC's image.
func imageOf(t *testing.T, name string) string {
	t.Helper()
	return appliance.X86.File(t, name)
}
