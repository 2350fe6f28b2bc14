package relay

import (
	"crypto/rand"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"subnetd/subnetd/ingress"

	"tailscale.com/derp"
	"tailscale.com/derp/derpserver"
	"tailscale.com/types/key"
)

const (
	benchSize   = 1280
	benchWindow = 32   // packets under way: the stock queue has room for as many
	benchTurn   = 1000 // packets
)

// BenchmarkRelay sends packets from one stock client to another over loopback
// TLS, in turns through this relay and through the stock one, which the same HTTP
// server serves. What counts is their ratio.
func BenchmarkRelay(b *testing.B) {
	ours := newServer(b, Config{})
	b.Cleanup(ours.Close)
	stock := derpserver.New(key.NewNode(), func(string, ...any) {})
	b.Cleanup(func() { stock.Close() })
	pairs := []*benchPair{newBenchPair(b, ours.Handler()), newBenchPair(b, derpserver.Handler(stock))}
	var took [2]time.Duration
	b.SetBytes(2 * benchTurn * benchSize)
	for b.Loop() {
		for i, p := range pairs {
			began := time.Now()
			p.turn()
			took[i] += time.Since(began)
		}
	}
	for i, name := range []string{"ours", "stock"} {
		b.ReportMetric(float64(b.N*benchTurn)/took[i].Seconds(), name+"-packets/s")
	}
	b.ReportMetric(float64(took[1])/float64(took[0]), "ours:stock")
}

// benchPair is two clients, one of which sends.
type benchPair struct {
	b        *testing.B
	from, to *derp.Client
	window   chan struct{}
	done     chan struct{} // after each turn
}

func newBenchPair(b *testing.B, h http.Handler) *benchPair {
	addr := benchServe(b, h)
	p := &benchPair{b: b, from: benchClient(b, addr), to: benchClient(b, addr),
		window: make(chan struct{}, benchWindow), done: make(chan struct{})}
	go p.receive()
	return p
}

func (p *benchPair) receive() {
	for n := 1; ; n++ {
		m, err := p.to.Recv()
		if err != nil {
			return // the benchmark is over
		}
		if _, ok := m.(derp.ReceivedPacket); !ok {
			n--
			continue
		}
		<-p.window
		if n%benchTurn == 0 {
			p.done <- struct{}{}
		}
	}
}

func (p *benchPair) turn() {
	packet := make([]byte, benchSize)
	for range benchTurn {
		p.window <- struct{}{}
		if err := p.from.Send(p.to.PublicKey(), packet); err != nil {
			p.b.Fatal(err)
		}
	}
	<-p.done
}

func benchServe(b *testing.B, h http.Handler) string {
	id, err := ingress.SelfSigned(time.Now(), nil, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{id.TLS()}}))
	b.Cleanup(func() { srv.Close() })
	return l.Addr().String()
}

func benchClient(b *testing.B, addr string) *derp.Client {
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	return upgradeTo(b, conn, key.NewNode())
}
