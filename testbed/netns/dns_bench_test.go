package netns_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"subnetd/testbed/netns"
)

const (
	namesTurns  = 3
	namesTime   = 3 * time.Second
	namesWindow = 32  // questions under way
	namesOnes   = 500 // one after the other
)

var namesMeasures = []figureLine{
	{"own name, answers per s", "more is better"},
	{"own name, CPU us per answer", "less is better"},
	{"own name, us there and back", "less is better"},
	{"known name, answers per s", "more is better"},
	{"asked through dnsmasq, us there and back", "less is better"},
	{"memory, MB", "less is better"},
}

// BenchmarkNames asks for a name that the server knows itself, and for one that a resolver told it before: the answerer, and
// dnsmasq alone, with the same names. The server has one core, those who ask another; they are on the router, whose own
// questions nobody counts. Through dnsmasq is what a LAN host with nothing set on it does; beside it stands what dnsmasq
// takes for a name of its own.
func BenchmarkNames(b *testing.B) {
	for b.Loop() {
		lab := netns.New(b)
		cores, home := lab.Cores(), lab.Home(netns.Public)
		s := &homeScene{t: b, lab: lab, home: home}
		const masqPort, pairPort = "5399", "5398"
		var masq *netns.Process
		cores.Server(func() {
			s.mesh = lab.HomeMesh(home.Router, netns.HomeOptions{URL: "http://home.test", Expose: "chosen",
				Devices: []string{"printer=192.168.77.50"}, SplitDNS: []string{"corp.example=192.168.77.1:" + masqPort}})
			common := []string{"--keep-in-foreground", "--no-resolv", "--no-hosts", "--bind-interfaces", "--listen-address=127.0.0.1,192.168.77.1", "--pid-file=", "--user=root"}
			masq = home.Router.Start("dnsmasq", append(common, "--port="+masqPort, "--cache-size=1000",
				"--host-record=printer.mesh.internal,192.168.77.50", "--host-record=www.corp.example,192.0.2.80,60")...)
			home.Router.Start("dnsmasq", append(common, "--port="+pairPort, "--cache-size=0", "--server=/mesh.internal/127.0.0.1#"+namesPort)...)
		})
		at := func(port string) string { return "127.0.0.1:" + port }
		for _, port := range []string{namesPort, masqPort, pairPort} {
			netns.Eventually(b, 20*time.Second, "port "+port+" answers", func() error {
				_, err := oneAnswer(b, home.Router, at(port), "printer.mesh.internal.")
				return err
			})
		}
		ours, theirs := relayRounds{}, relayRounds{}
		for range namesTurns {
			askRounds(b, ours, home.Router, at(namesPort), s.mesh.Pid())
			askRounds(b, theirs, home.Router, at(masqPort), masq.Pid())
			ours.add("asked through dnsmasq, us there and back", oneByOne(b, home.Router, at(pairPort)))
			theirs.add("asked through dnsmasq, us there and back", oneByOne(b, home.Router, at(masqPort)))
		}
		ours.add("memory, MB", rss(b, s.mesh.Pid()))
		theirs.add("memory, MB", rss(b, masq.Pid()))
		compare(b, namesMeasures, "subnetd", ours.middle(), "dnsmasq", theirs.middle())
	}
}

// askRounds takes one turn at a server.
func askRounds(b *testing.B, r relayRounds, from *netns.Host, at string, pid int) {
	b.Helper()
	before := netns.CPUSeconds(b, pid)
	n := asMany(b, from, at, "printer.mesh.internal.")
	r.add("own name, answers per s", float64(n)/namesTime.Seconds())
	r.add("own name, CPU us per answer", (netns.CPUSeconds(b, pid)-before)*1e6/float64(n))
	r.add("own name, us there and back", oneByOne(b, from, at))
	r.add("known name, answers per s", float64(asMany(b, from, at, "www.corp.example."))/namesTime.Seconds())
}

func questionFor(b *testing.B, name string) []byte {
	b.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	out, err := m.Pack()
	if err != nil {
		b.Fatal(err)
	}
	return out
}

// oneAnswer asks once, and gives how long the answer took.
func oneAnswer(b *testing.B, from *netns.Host, at, name string) (time.Duration, error) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, "udp", at)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return askOn(c, questionFor(b, name))
}

func askOn(c net.Conn, q []byte) (time.Duration, error) {
	start, buf := time.Now(), make([]byte, 1500)
	if _, err := c.Write(q); err != nil {
		return 0, err
	}
	if err := c.SetReadDeadline(start.Add(time.Second)); err != nil {
		return 0, err
	}
	n, err := c.Read(buf)
	if err == nil && (n < 12 || buf[3]&0xf != 0 || buf[7] == 0) {
		err = fmt.Errorf("it says %x", buf[:n])
	}
	return time.Since(start), err
}

// oneByOne is the median of single questions, in us.
func oneByOne(b *testing.B, from *netns.Host, at string) float64 {
	b.Helper()
	c, err := from.Dial(b.Context(), "udp", at)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	q := questionFor(b, "printer.mesh.internal.")
	var all []time.Duration
	for range namesOnes {
		took, err := askOn(c, q)
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, took)
	}
	slices.Sort(all)
	return float64(all[len(all)/2]) / float64(time.Microsecond)
}

// asMany keeps so many questions under way, and gives the number of answers.
func asMany(b *testing.B, from *netns.Host, at, name string) int {
	b.Helper()
	q := questionFor(b, name)
	end, counts := time.Now().Add(namesTime), make(chan int, namesWindow)
	for range namesWindow {
		c, err := from.Dial(b.Context(), "udp", at)
		if err != nil {
			b.Fatal(err)
		}
		go func() {
			defer c.Close()
			n, buf := 0, make([]byte, 1500)
			for time.Now().Before(end) {
				if _, err := c.Write(q); err != nil {
					break
				}
				_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				if _, err := c.Read(buf); err == nil {
					n++
				}
			}
			counts <- n
		}()
	}
	all := 0
	for range namesWindow {
		all += <-counts
	}
	return all
}
