package netns_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// loadSide is one direction of load, as iperf3 has it.
type loadSide struct {
	name string
	flag []string
}

var loadSides = []loadSide{{"phone to LAN", nil}, {"LAN to phone", []string{"-R"}}}

// load is iperf3 over TCP between phone and LAN host.
type load struct{ server, client *netns.Process }

// startLoad begins a load of so many seconds.
func startLoad(t *testing.T, s *scene, seconds int, flag []string) load {
	t.Helper()
	l := load{server: s.home.LAN.Start("iperf3", "-s")}
	netns.Eventually(t, 5*time.Second, "iperf3 listens", func() error {
		_, err := s.home.LAN.Run(t.Context(), "sh", "-c", "ss -Hltn 'sport = :5201' | grep -q .")
		return err
	})
	l.client = s.phone.Host.Start("iperf3", append([]string{"-f", "m", "-i", "0", "-t", fmt.Sprint(seconds), "-c", s.home.LAN.Addr4.String()}, flag...)...)
	return l
}

// result waits for the end and gives what arrived, as iperf3 says it.
func (l load) result() string {
	<-l.client.Done()
	l.server.Kill()
	for _, line := range l.client.Lines() {
		if f := strings.Fields(line); strings.Contains(line, "receiver") && len(f) > 8 {
			return strings.Join(f[6:8], " ")
		}
	}
	return "nothing arrived: " + l.client.Tail(3)
}

// wantNoPacketWork: with a direct path no packet costs the daemon anything. Its CPU time while iperf3 runs is what it is
// without.
func wantNoPacketWork(t *testing.T, s *scene) {
	t.Helper()
	wantDirect(t, s)
	key := wgKey(t, s.hs, s.phone.Host.Name)
	const seconds = 6
	idle := daemonShare(t, s.daemon, func() { time.Sleep(seconds * time.Second) }) // which is what is measured
	t.Logf("idle: %.1f ms CPU a second", 1000*idle)
	for _, side := range loadSides {
		before, result := kernelPeer(t, s.home.Router, key), ""
		share := daemonShare(t, s.daemon, func() { result = startLoad(t, s, seconds, side.flag).result() })
		after := kernelPeer(t, s.home.Router, key)
		packets := float64(after.rx-before.rx+after.tx-before.tx) / 1280
		t.Logf("%s: %s, %.1f ms CPU a second; %.0f full packets", side.name, result, 1000*share, packets)
		if packets < 500 {
			t.Errorf("%s: only %.0f packets were carried: this shows nothing", side.name, packets)
		}
		// A tick that meets the daemon while the kernel works on packets counts as the daemon's. Were packets its work, it
		// would use the whole CPU.
		if share > idle+0.3 {
			t.Errorf("%s: the daemon used %.0f ms CPU a second while the kernel carried the packets, %.0f without", side.name, 1000*share, 1000*idle)
		}
	}
}

// daemonShare is how much of a CPU the daemon used during f, by its host's own clock: an emulated one may stand still.
func daemonShare(t *testing.T, d *netns.Subnetd, f func()) float64 {
	t.Helper()
	used, begin := d.CPUSeconds(), uptime(t, d.Host)
	f()
	return (d.CPUSeconds() - used) / (uptime(t, d.Host) - begin)
}

// uptime is for how long a host has been up by its own clock, in seconds.
func uptime(t *testing.T, h *netns.Host) float64 {
	t.Helper()
	text, err := h.ReadFile("/proc/uptime")
	if err != nil {
		t.Fatal(err)
	}
	var seconds float64
	if _, err := fmt.Sscan(string(text), &seconds); err != nil {
		t.Fatal(err)
	}
	return seconds
}

// wantSteadyMemory prints the daemon's memory idle and under load, on a direct path and by the relay, and wants no growth.
func wantSteadyMemory(t *testing.T, s *scene) {
	t.Helper()
	seconds := 10 // for each direction of each path
	if long() {
		seconds = 150
	}
	wantDirect(t, s)
	time.Sleep(5 * time.Second) // idle is what is measured
	t.Logf("idle: RSS %.1f MB, of it its own %.1f", s.daemon.Memory("VmRSS"), s.daemon.Memory("RssAnon"))
	run := func(path string) {
		for _, side := range loadSides {
			l := startLoad(t, s, seconds, side.flag)
			samples := s.memorySamples(l.client)
			t.Logf("%s, %s: %s, RSS %s", path, side.name, l.result(), between(samples))
			wantNoGrowth(t, path+", "+side.name, samples)
		}
	}
	run("direct")
	cutFrom(s.phone.Host.Behind(), s.home.Router.Addr4)
	defer mend(s.phone.Host.Behind())
	netns.Eventually(t, 30*time.Second, "the phone reaches the LAN by the relay", func() error {
		if p, err := peerStatus(s.daemon, s.phone.Host.Name); err != nil || p["path"] != "relay" {
			return fmt.Errorf("path %v (%v)", p["path"], err)
		}
		return s.phone.Host.Ping(context.Background(), s.home.LAN.Addr4)
	})
	run("relay")
	t.Logf("at most: RSS %.1f MB", s.daemon.Memory("VmHWM"))
}

// memorySamples takes the daemon's memory, in MB, twice a second until p ends.
func (s *scene) memorySamples(p *netns.Process) (all []float64) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.Done():
			return all
		case <-tick.C:
			all = append(all, s.daemon.Memory("VmRSS"))
		}
	}
}

func between(samples []float64) string {
	if len(samples) == 0 {
		return "unknown"
	}
	return fmt.Sprintf("%.1f to %.1f MB", slices.Min(samples), slices.Max(samples))
}

// wantNoGrowth compares the second quarter of the time, when buffers have been made, with the last.
func wantNoGrowth(t *testing.T, what string, samples []float64) {
	t.Helper()
	n := len(samples)
	if n < 6 {
		t.Errorf("%s: only %d looks at the memory", what, n)
		return
	}
	early, late := slices.Max(samples[n/4:n/2]), slices.Max(samples[n*3/4:])
	if late > early+2 {
		t.Errorf("%s: memory grew from %.1f to %.1f MB", what, early, late)
	}
}
