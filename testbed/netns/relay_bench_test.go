package netns_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"subnetd/testbed/netns"
	"subnetd/testbed/swarm"
	"tailscale.com/derp"
	"tailscale.com/types/key"
)

// BenchmarkRelayPeers sends packets between two members through the daemon's relay and through a stock derper, in turns.
// Both servers have the same one core, GOMAXPROCS=1, and TLS with a certificate of their own; the two members have
// another core. The daemon's relay admits members only; derper asks nobody.
func BenchmarkRelayPeers(b *testing.B) {
	for b.Loop() {
		lab := netns.New(b)
		cores, home := lab.Cores(), lab.Home(netns.Public)
		var mesh *netns.HomeMesh
		var stock *netns.Derper
		cores.Server(func() {
			mesh = lab.HomeMesh(home.Router, netns.HomeOptions{URL: "http://" + home.Router.Addr4.String()})
			stock = lab.Derper(lab.Client("derper", netns.Public))
		})
		s := twoMembers(b, lab.Crowd(), mesh)
		defer s.Close()
		ours, theirs := relayRounds{}, relayRounds{}
		for range relayTurns {
			ours.measure(b, s, relayOf(b, s.Swarm), mesh.Pid())
			theirs.measure(b, s, stock.Addr, stock.Pid())
		}
		compare(b, relayMeasures, "subnetd", ours.middle(), "derper", theirs.middle())
	}
}

const (
	relayTurns   = 3
	relayTime    = 4 * time.Second
	relayPacket  = 1280     // bytes
	relayWindow  = 64 << 10 // bytes under way, with their heads
	relayFew     = 16       // packets under way that no relay's queue is too short for, each written by itself as stock clients do
	relayPatient = 200 * time.Millisecond
)

var relayMeasures = []figureLine{
	{"64 KiB at once, Mbit/s", "more is better"},
	{"64 KiB at once, lost %", "less is better"},
	{"64 KiB at once, CPU s per GB", "less is better"},
	{"16 packets, one by one, Mbit/s", "more is better"},
	{"16 packets, one by one, lost %", "less is better"},
	{"16 packets, one by one, CPU s per GB", "less is better"},
	{"1 packet under way, us there", "less is better"},
	{"memory at most, MB", "less is better"},
}

// relayMembers are two members who know a way to any relay.
type relayMembers struct {
	*swarm.Swarm
	crowd *netns.Crowd
}

func twoMembers(b *testing.B, crowd *netns.Crowd, mesh *netns.HomeMesh) *relayMembers {
	b.Helper()
	inv := mesh.Invite("--reusable")
	s, err := swarm.New(swarm.Config{URL: inv.URL, AuthKey: inv.Key, Nodes: 2, Name: "talker", Parallel: 2, Dial: dialFrom(crowd)})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	if err := s.Join(ctx); err != nil {
		s.Close()
		b.Fatal(err)
	}
	return &relayMembers{s, crowd}
}

// dialFrom gives every node of a swarm an address of the crowd's.
func dialFrom(crowd *netns.Crowd) func(context.Context, int, string) (net.Conn, error) {
	return func(ctx context.Context, i int, addr string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(addr)
		if err != nil {
			return nil, err
		}
		return crowd.DialAs(ctx, i, to)
	}
}

// relayOf is where the coordinator says that its relay is.
func relayOf(b *testing.B, s *swarm.Swarm) netip.AddrPort {
	b.Helper()
	m := s.DERPMap()
	if m == nil || len(m.Regions) != 1 {
		b.Fatalf("the members were told of no relay, or of several: %+v", m)
	}
	n := m.Regions[m.RegionIDs()[0]].Nodes[0]
	addr, err := netip.ParseAddr(n.IPv4)
	if err != nil {
		b.Fatalf("the relay %+v has no IPv4 address: %v", n, err)
	}
	port := n.DERPPort
	if port == 0 {
		port = 443
	}
	return netip.AddrPortFrom(addr, uint16(port))
}

// relayRounds are the figures of one relay, of every turn.
type relayRounds map[string][]float64

func (r relayRounds) add(name string, v float64) { r[name] = append(r[name], v) }

func (r relayRounds) middle() figures {
	f := figures{}
	for name, all := range r {
		slices.Sort(all)
		f[name] = all[len(all)/2]
	}
	return f
}

// measure takes one turn at a relay.
func (r relayRounds) measure(b *testing.B, s *relayMembers, relay netip.AddrPort, pid int) {
	b.Helper()
	var ends [2]*relayConn
	for i, n := range s.Nodes() {
		c, err := dialRelay(b.Context(), func(ctx context.Context) (net.Conn, error) { return s.crowd.DialAs(ctx, i, relay) }, n.Key())
		if err != nil {
			b.Fatalf("%s at %v: %v", n.Name(), relay, err)
		}
		defer c.nc.Close()
		ends[i] = c
	}
	frame := len(relayFrame(ends[1].PublicKey()))
	for _, w := range []struct {
		name           string
		packets, batch int
	}{{"64 KiB at once", relayWindow / frame, relayWindow / frame}, {"16 packets, one by one", relayFew, 1}, {"1 packet under way", 1, 1}} {
		before := netns.CPUSeconds(b, pid)
		sent, came, took := relayStream(b, ends[0], ends[1], w.packets, w.batch)
		if w.packets == 1 {
			r.add(w.name+", us there", took.Seconds()*1e6/float64(came))
			continue
		}
		bytes := float64(came) * relayPacket
		r.add(w.name+", Mbit/s", 8*bytes/1e6/took.Seconds())
		r.add(w.name+", lost %", 100*(1-float64(came)/float64(sent)))
		r.add(w.name+", CPU s per GB", (netns.CPUSeconds(b, pid)-before)/(bytes/1e9))
	}
	r.add("memory at most, MB", max(peak(b, pid), rss(b, pid)))
}

// relayFrame is a packet for a member, as it goes to the relay.
func relayFrame(to key.NodePublic) []byte {
	f := []byte{byte(derp.FrameSendPacket)}
	f = binary.BigEndian.AppendUint32(f, key.NodePublicRawLen+relayPacket)
	f = to.AppendTo(f)
	return append(f, bytes.Repeat([]byte{0xa5}, relayPacket)...)
}

// relayStream sends packets as fast as they arrive, so many under way at a time, and at most most of them in one write.
// Streams are told apart by their windows. A relay whose queue is full drops the oldest, so what has arrived or is lost
// is told by the latest that arrived.
func relayStream(b *testing.B, from, to *relayConn, window, most int) (sent, came uint64, took time.Duration) {
	b.Helper()
	var latest, count atomic.Uint64 // number of a packet, from 1 on; packets
	arrived, failed := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		failed <- relayReceive(to, uint64(window), func(n uint64) {
			latest.Store(n)
			count.Add(1)
			select {
			case arrived <- struct{}{}:
			default:
			}
		})
	}()
	one := relayFrame(to.PublicKey())
	binary.BigEndian.PutUint64(one[len(one)-8:], uint64(window))
	batch := bytes.Repeat(one, most)
	start := time.Now()
	for time.Since(start) < relayTime {
		room := uint64(window) - (sent - latest.Load())
		if room == 0 || room < uint64(most)/4 {
			select {
			case <-arrived:
			case <-time.After(relayPatient):
				latest.Store(sent) // the last ones were lost too
			case err := <-failed:
				b.Fatalf("receiving: %v", err)
			}
			continue
		}
		room = min(room, uint64(most))
		for i := range room {
			binary.BigEndian.PutUint64(batch[int(i+1)*len(one)-relayPacket:], sent+i+1)
		}
		if _, err := from.nc.Write(batch[:int(room)*len(one)]); err != nil {
			b.Fatalf("sending: %v", err)
		}
		sent += room
	}
	took, came = time.Since(start), count.Load()
	// The receiver ends with a packet that says so, and may be lost like any other.
	binary.BigEndian.PutUint64(one[len(one)-relayPacket:], 0)
	for {
		if _, err := from.nc.Write(one); err != nil {
			b.Fatalf("sending: %v", err)
		}
		select {
		case err := <-failed:
			if err != nil {
				b.Fatalf("receiving: %v", err)
			}
			return sent, came, took
		case <-time.After(relayPatient):
		}
	}
}

// relayReceive tells the number of every packet of this stream that arrives, until 0.
func relayReceive(c *relayConn, stream uint64, note func(uint64)) error {
	for {
		m, err := c.Recv()
		if err != nil {
			return err
		}
		p, ok := m.(derp.ReceivedPacket)
		if !ok {
			continue
		}
		if len(p.Data) != relayPacket {
			return fmt.Errorf("a packet of %d bytes came", len(p.Data))
		}
		if binary.BigEndian.Uint64(p.Data[relayPacket-8:]) != stream {
			continue // a late one of the stream before
		}
		n := binary.BigEndian.Uint64(p.Data)
		if n == 0 {
			return nil
		}
		note(n)
	}
}
