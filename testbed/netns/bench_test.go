package netns_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// BenchmarkRouter measures the same home twice in one run: with subnetd on its router, and with stock tailscaled. The
// other side is a stock client at both. Every line is ours / stock.
func BenchmarkRouter(b *testing.B) {
	for b.Loop() {
		ours, stock := measureOurs(b), measureStock(b)
		b.Logf("%-28s %10s %10s  %s", "", "subnetd", "tailscaled", "ratio")
		for _, m := range measures {
			b.Logf("%-28s %10.2f %10.2f  %.2f  (%s)", m.name, ours[m.name], stock[m.name], ours[m.name]/stock[m.name], m.better)
		}
	}
}

// measures are what is printed, in this order.
var measures = []struct{ name, better string }{
	{"TCP peer to LAN, Mbit/s", "more is better"},
	{"TCP LAN to peer, Mbit/s", "more is better"},
	{"UDP peer to LAN, Mbit/s", "more is better"},
	{"UDP LAN to peer, Mbit/s", "more is better"},
	{"added ping time, ms", "less is better"},
	{"exec to joined, s", "less is better"},
	{"idle RSS, MB", "less is better"},
	{"loaded RSS, MB", "less is better"},
	{"idle wake-ups per second", "less is better"},
	{"programs, MB", "less is better"},
}

// figures are what was measured, by name.
type figures map[string]float64

func measureOurs(b *testing.B) figures {
	lab := netns.New(b)
	hs, home := lab.Headscale(), lab.Home(netns.Public)
	key := hs.PreAuthKey("ana", netns.KeyOptions{Reusable: true})
	phone := lab.StockPeer(lab.NAT(netns.Public))
	phone.Up(hs.URL, key, "--accept-routes")
	f := figures{}
	d := lab.SubnetdIdle(home.Router, daemonConfig)
	start := time.Now()
	d.Start()
	if out, err := d.CLI("up", "--control", hs.URL, "--auth-key", key, "--hostname", "home"); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	f["exec to joined, s"] = time.Since(start).Seconds()
	hs.ApproveRoutes("home", home.LAN4, home.LAN6)
	f["programs, MB"] = megabytes(b, d.Binary())
	measureLoad(b, f, home, phone.Host, d.Pid())
	return f
}

func measureStock(b *testing.B) figures {
	lab := netns.New(b)
	hs, home := lab.Headscale(), lab.Home(netns.Public)
	key := hs.PreAuthKey("ana", netns.KeyOptions{Reusable: true})
	phone := lab.StockPeer(lab.NAT(netns.Public))
	phone.Up(hs.URL, key, "--accept-routes")
	f := figures{}
	start := time.Now()
	router := lab.StockPeer(home.Router)
	router.Up(hs.URL, key, "--advertise-routes="+home.LAN4.String()+","+home.LAN6.String(), "--accept-routes")
	f["exec to joined, s"] = time.Since(start).Seconds()
	hs.ApproveRoutes("home", home.LAN4, home.LAN6)
	f["programs, MB"] = megabytes(b, router.Binaries()...)
	measureLoad(b, f, home, phone.Host, router.Pid())
	return f
}

func megabytes(b *testing.B, files ...string) float64 {
	b.Helper()
	var sum int64
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			b.Fatal(err)
		}
		sum += info.Size()
	}
	return float64(sum) / 1e6
}

// measureLoad fills in what both routers are measured by alike.
func measureLoad(b *testing.B, f figures, home *netns.Home, phone *netns.Host, pid int) {
	b.Helper()
	netns.Eventually(b, 30*time.Second, "the phone reaches the LAN", func() error {
		return phone.Ping(context.Background(), home.LAN.Addr4)
	})
	f["added ping time, ms"] = pingTime(b, phone, home.LAN.Addr4) - pingTime(b, phone, home.Router.Addr4)
	before, begin := switches(b, pid), time.Now()
	time.Sleep(20 * time.Second) // idle is what is measured
	f["idle wake-ups per second"] = float64(switches(b, pid)-before) / time.Since(begin).Seconds()
	f["idle RSS, MB"] = rss(b, pid)
	f["TCP peer to LAN, Mbit/s"] = iperf(b, phone, home.LAN)
	f["TCP LAN to peer, Mbit/s"] = iperf(b, phone, home.LAN, "-R")
	f["UDP peer to LAN, Mbit/s"] = iperf(b, phone, home.LAN, "-u", "-b", "0", "-l", "1200")
	f["UDP LAN to peer, Mbit/s"] = iperf(b, phone, home.LAN, "-u", "-b", "0", "-l", "1200", "-R")
	f["loaded RSS, MB"] = peak(b, pid)
}

var average = regexp.MustCompile(`= [\d.]+/([\d.]+)/`)

func pingTime(b *testing.B, h *netns.Host, to netip.Addr) float64 {
	b.Helper()
	out, err := h.Run(context.Background(), "ping", "-n", "-q", "-c", "100", "-i", "0.02", to.String())
	m := average.FindStringSubmatch(out)
	if err != nil || m == nil {
		b.Fatalf("ping: %v\n%s", err, out)
	}
	ms, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		b.Fatal(err)
	}
	return ms
}

const iperfSeconds = 4 // of one transfer

// iperf gives what arrived, in Mbit/s: the middle of three runs.
func iperf(b *testing.B, from, to *netns.Host, args ...string) float64 {
	b.Helper()
	var all []float64
	for range 3 {
		all = append(all, iperfOnce(b, from, to, args...))
	}
	slices.Sort(all)
	return all[1]
}

// iperfOnce is one run. Each has a server of its own: one that stays takes some time to listen anew, and who comes
// meanwhile is thrown out.
func iperfOnce(b *testing.B, from, to *netns.Host, args ...string) float64 {
	b.Helper()
	server := to.Start("iperf3", "-s", "-1")
	netns.Eventually(b, 5*time.Second, "iperf3 listens", func() error {
		out, err := to.Run(b.Context(), "ss", "-Hltn", "sport = :5201")
		if err == nil && out == "" {
			err = errors.New("it does not yet")
		}
		return err
	})
	out, err := from.Output(b.Context(), "iperf3", append([]string{"-J", "-t", strconv.Itoa(iperfSeconds), "-c", to.Addr4.String()}, args...)...)
	var r struct {
		End struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
			Sum struct {
				Bits float64 `json:"bits_per_second"`
				Lost float64 `json:"lost_percent"`
			} `json:"sum"`
		}
	}
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		b.Fatalf("iperf3 %v: %v\n%s", args, err, out)
	}
	<-server.Done()
	if r.End.Received.Bits > 0 {
		return r.End.Received.Bits / 1e6
	}
	return r.End.Sum.Bits * (1 - r.End.Sum.Lost/100) / 1e6
}

func rss(b *testing.B, pid int) float64  { return memory(b, pid, "VmRSS") }
func peak(b *testing.B, pid int) float64 { return memory(b, pid, "VmHWM") }

func memory(b *testing.B, pid int, field string) float64 {
	b.Helper()
	return number(b, fmt.Sprintf("/proc/%d/status", pid), field) / 1000
}

// switches counts how often the process's threads were woken.
func switches(b *testing.B, pid int) int {
	b.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(threads) == 0 {
		b.Fatalf("process %d has no threads: %v", pid, err)
	}
	sum := 0
	for _, t := range threads {
		sum += int(number(b, t, "voluntary_ctxt_switches"))
	}
	return sum
}

// number reads a field of a status file of /proc.
func number(b *testing.B, file, field string) float64 {
	b.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && name == field {
			n, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatalf("%s has no %s", file, field)
	return 0
}
