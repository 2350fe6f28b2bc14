package netns_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// dropBench is of one file of the measurement, which is sparse where it comes from and whole where it lands.
const dropBench = 2_000_000_000

// BenchmarkDrop measures how fast a large file gets from a stock client to the router, and back, beside the same client and a
// stock one in the router's place, in the same mesh. Either way takes its turn three times. What is sent has to arrive.
func BenchmarkDrop(b *testing.B) {
	for b.Loop() {
		s := openDropBench(b)
		took := map[string][]float64{}
		for range 3 {
			for _, way := range []struct {
				name string
				do   func(*dropBenchScene)
			}{{"to subnetd", (*dropBenchScene).toOurs}, {"to tailscaled", (*dropBenchScene).toStock}, {"from subnetd", (*dropBenchScene).fromOurs}, {"from tailscaled", (*dropBenchScene).fromStock}} {
				took[way.name] = append(took[way.name], s.time(func() { way.do(s) }))
				s.wantWhole()
			}
		}
		rate := func(name string) float64 {
			slices.Sort(took[name])
			return dropBench / 1e6 / took[name][1]
		}
		b.Logf("%-28s %10s %10s  %s", "", "subnetd", "tailscaled", "ratio")
		for _, way := range []string{"to", "from"} {
			ours, stock := rate(way+" subnetd"), rate(way+" tailscaled")
			b.Logf("%-28s %10.0f %10.0f  %.2f  (more is better)", "file "+way+" it, MB/s", ours, stock, ours/stock)
		}
		b.Logf("%-28s %10.1f %10.1f", "RSS before, MB", s.before[0], s.before[1])
		b.Logf("%-28s %10.1f %10.1f", "RSS at most, MB", peak(b, s.mesh.Pid()), peak(b, s.attic.Pid()))
	}
}

// dropBenchScene is a phone, a home's router, and another stock client with a public address.
type dropBenchScene struct {
	*homeScene
	b            *testing.B
	phone, attic *netns.StockPeer
	source, sum  string
	folder       string     // where the router's files land, and what others fetch
	before       [2]float64 // resident before the first transfer
}

func openDropBench(b *testing.B) *dropBenchScene {
	lab := netns.New(b)
	s := &dropBenchScene{b: b, homeScene: &homeScene{t: b, lab: lab, home: lab.Home(netns.Public)},
		source: filepath.Join(lab.Dir(), "2GB.bin"), folder: filepath.Join(lab.Dir(), "usb")}
	if err := os.Mkdir(s.folder, 0o700); err != nil {
		b.Fatal(err)
	}
	s.mesh = lab.HomeMesh(s.home.Router, netns.HomeOptions{URL: "http://home.test", OtherTOML: "[drop]\nfolder = \"" + s.folder + "\"\n"})
	s.phone, s.attic = s.stock("phone", netns.Public), s.stock("attic", netns.Public)
	f, err := os.Create(s.source)
	if err == nil {
		err = f.Truncate(dropBench)
		f.Close()
	}
	if err != nil {
		b.Fatal(err)
	}
	digest := sha256.New()
	_, _ = io.CopyN(digest, zeros{}, dropBench)
	s.sum = hex.EncodeToString(digest.Sum(nil))
	for _, name := range []string{"home", "attic"} {
		for _, a := range s.addrs(name) {
			netns.Eventually(b, 30*time.Second, "the phone reaches "+name, func() error { return s.phone.Host.Ping(context.Background(), a) })
		}
	}
	s.before = [2]float64{rss(b, s.mesh.Pid()), rss(b, s.attic.Pid())}
	return s
}

// time is how many seconds something takes.
func (s *dropBenchScene) time(do func()) float64 {
	start := time.Now()
	do()
	return time.Since(start).Seconds()
}

func (s *dropBenchScene) cp(from *netns.StockPeer, to string) {
	s.b.Helper()
	if out, err := from.CLI(s.b.Context(), "file", "cp", s.source, s.addrs(to)[0].String()+":"); err != nil {
		s.b.Fatalf("file cp: %v\n%s", err, out)
	}
}

func (s *dropBenchScene) toOurs()    { s.cp(s.phone, "home") }
func (s *dropBenchScene) toStock()   { s.cp(s.phone, "attic") }
func (s *dropBenchScene) fromStock() { s.cp(s.attic, "phone") }

func (s *dropBenchScene) fromOurs() {
	s.b.Helper()
	if out, err := s.mesh.CLIContext(s.b.Context(), "send", s.source, "phone"); err != nil {
		s.b.Fatalf("send: %v\n%s", err, out)
	}
}

// wantWhole wants one whole file to have arrived somewhere, and removes it.
func (s *dropBenchScene) wantWhole() {
	s.b.Helper()
	for _, p := range []*netns.StockPeer{s.phone, s.attic} {
		if out, err := p.CLI(s.b.Context(), "file", "get", s.folder); err != nil {
			s.b.Fatalf("file get: %v\n%s", err, out)
		}
	}
	all, err := filepath.Glob(filepath.Join(s.folder, "*"))
	if err != nil || len(all) != 1 {
		s.b.Fatalf("arrived: %q %v", all, err)
	}
	if got, err := fileSum(all[0]); err != nil || got != s.sum {
		s.b.Errorf("%s holds %s, was sent as %s: %v", all[0], got, s.sum, err)
	}
	if err := os.Remove(all[0]); err != nil {
		s.b.Fatal(err)
	}
}
