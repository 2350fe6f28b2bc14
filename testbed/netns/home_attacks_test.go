package netns_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/types/key"
)

func attackPhases() []attackPhase {
	return []attackPhase{
		{30 * time.Second, []attack{
			{"bad handshakes", badHandshakes, 10_000, true},
			{"half-open connections", halfOpen, 500, false},
			{"slow readers", slowReaders, 50, false},
			{"garbage after a good handshake", garbageAfterHandshake, 5, false},
		}},
		{8 * time.Second, []attack{
			{"oversized registrations", oversized, 10, false},
			{"registrations that never end", heldBack, 20, false},
		}},
		{8 * time.Second, []attack{
			{"streams opened and reset", resetStreams, 1000, false},
			{"relay flood between members", relayFlood, 500, false},
			{"strangers at the relay", relayStrangers, 10, false},
		}},
	}
}

// halfOpen holds many connections that say nothing, or only how they would begin.
func halfOpen(ctx context.Context, b *besieged, n *atomic.Int64) {
	beginnings := []string{"", "\x16", "\x16\x03\x01\x02\x00\x01", "G", "POST /ts2021 HTTP/1.1\r\nHost: x\r\nX-Tailscale-Handshake: ", "GET /derp HTTP/1.1\r\n"}
	var held []net.Conn
	for i := 0; i < 2000 && ctx.Err() == nil; i++ {
		at := b.c.at
		if i%2 == 0 {
			at = b.tlsAt
		}
		c, err := b.c.DialAs(ctx, i, at)
		if err != nil {
			continue
		}
		_, _ = io.WriteString(c, beginnings[i%len(beginnings)])
		held = append(held, c)
		n.Add(1)
	}
	<-ctx.Done()
	for _, c := range held {
		c.Close()
	}
}

// slowReaders ask for much and read nothing of it.
func slowReaders(ctx context.Context, b *besieged, n *atomic.Int64) {
	ask := strings.Repeat("GET /key?v=119 HTTP/1.1\r\nHost: home.test\r\n\r\n", 2000)
	var group sync.WaitGroup
	for i := range 100 {
		group.Go(func() {
			c, err := b.c.DialAs(ctx, i, b.c.at)
			if err != nil {
				return
			}
			defer c.Close()
			_ = c.(*net.TCPConn).SetReadBuffer(4096)
			n.Add(1)
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			for ctx.Err() == nil {
				if _, err := io.WriteString(c, ask); err != nil {
					<-ctx.Done()
				}
			}
		})
	}
	group.Wait()
}

// badHandshakes are 10,000, each wrong in its own way.
func badHandshakes(ctx context.Context, b *besieged, n *atomic.Int64) {
	noise := func(size int) []byte {
		p := make([]byte, size)
		_, _ = rand.Read(p)
		return p
	}
	forms := []func() []byte{
		func() []byte { return append([]byte{0, 119, 1, 0, 96}, noise(96)...) }, // well-formed, but sealed for nobody
		func() []byte { return append([]byte{0, 119, 1, 0, 96}, noise(20)...) },
		func() []byte { return append([]byte{0xff, 0xff, 1, 0xff, 0xff}, noise(96)...) },
		func() []byte { return append([]byte{0, 1, 4, 0, 96}, noise(96)...) },
		func() []byte { return noise(3000) },
		func() []byte { return nil },
	}
	var next atomic.Int64
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			for {
				i := int(next.Add(1))
				if n.Load() >= 10_000 || i > 15_000 || ctx.Err() != nil { // some meet a port that defends itself
					return
				}
				if badHandshake(ctx, b, i, forms[i%len(forms)]()) == nil {
					n.Add(1)
				}
			}
		})
	}
	group.Wait()
}

// badHandshake is content if the server answers or hangs up, but does not go on.
func badHandshake(ctx context.Context, b *besieged, i int, hello []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := b.c.DialAs(ctx, i, b.c.at)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	br, err := upgrade(c, hello)
	if err != nil {
		return nil // refused at once
	}
	if _, err := br.ReadByte(); errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}

// oversized sends registrations of 2 MiB.
func oversized(ctx context.Context, b *besieged, n *atomic.Int64) {
	body := []byte(`{"Version":119,"Hostinfo":{"Hostname":"` + strings.Repeat("x", 2<<20) + `"}}`)
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			for ctx.Err() == nil {
				w, err := newRawNode(b.c, 50+i).connect(ctx)
				if err != nil {
					pause(ctx, 100*time.Millisecond)
					continue
				}
				res, err := w.post(ctx, "/machine/register", body)
				if err == nil {
					res.Body.Close()
				} else if ctx.Err() == nil {
					n.Add(1)
				}
				w.close()
			}
		})
	}
	group.Wait()
}

// heldBack are strangers who send most of a large registration, several at a time on each connection, and then nothing.
func heldBack(ctx context.Context, b *besieged, n *atomic.Int64) {
	body := []byte(`{"Version":119,"Hostinfo":{"Hostname":"` + strings.Repeat("x", 1_000_000))
	var group sync.WaitGroup
	for i := range 100 {
		group.Go(func() {
			for ctx.Err() == nil {
				w, err := newRawNode(b.c, 140+i).connect(ctx)
				if err != nil {
					pause(ctx, 100*time.Millisecond)
					continue
				}
				var requests sync.WaitGroup
				for range 8 {
					requests.Go(func() {
						n.Add(1)
						if res, err := w.postFrom(ctx, "/machine/register", io.MultiReader(bytes.NewReader(body), waiting{ctx})); err == nil {
							res.Body.Close()
						}
					})
				}
				requests.Wait()
				w.close()
			}
		})
	}
	group.Wait()
}

// waiting is a reader that has nothing until ctx ends.
type waiting struct{ ctx context.Context }

func (w waiting) Read([]byte) (int, error) {
	<-w.ctx.Done()
	return 0, io.EOF
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// garbageAfterHandshake does everything right, and then sends noise inside of Noise, or beside it.
func garbageAfterHandshake(ctx context.Context, b *besieged, n *atomic.Int64) {
	for i := 0; ctx.Err() == nil; i++ {
		node := newRawNode(b.c, 80+i%20)
		var raw net.Conn
		dial := node.dial
		node.dial = func(ctx context.Context) (net.Conn, error) {
			c, err := dial(ctx)
			raw = c
			return c, err
		}
		c, err := node.noise(ctx)
		if err != nil {
			pause(ctx, 50*time.Millisecond)
			continue
		}
		to := []io.Writer{c, raw}[i%2]
		_, _ = io.CopyN(to, rand.Reader, 64<<10)
		_ = c.SetDeadline(time.Now().Add(time.Second))
		_, _ = io.Copy(io.Discard, c)
		c.Close()
		n.Add(1)
	}
}

// resetStreams opens HTTP/2 streams as fast as it can and resets each at once, with pings and settings in between.
func resetStreams(ctx context.Context, b *besieged, n *atomic.Int64) {
	for i := 0; ctx.Err() == nil; i++ {
		c, err := newRawNode(b.c, 110+i%10).noise(ctx)
		if err != nil {
			pause(ctx, 50*time.Millisecond)
			continue
		}
		stop := context.AfterFunc(ctx, func() { c.Close() })
		go func() { _, _ = io.Copy(io.Discard, c) }()
		_ = floodStreams(c, n)
		c.Close()
		stop()
	}
}

// floodStreams writes the frames of RFC 9113 by hand: no client library can be made to behave like this.
func floodStreams(c net.Conn, n *atomic.Int64) error {
	frame := func(kind, flags byte, stream uint32, payload string) []byte {
		head := binary.BigEndian.AppendUint32(nil, uint32(len(payload)<<8)|uint32(kind))
		head = append(head, flags)
		return append(binary.BigEndian.AppendUint32(head, stream), payload...)
	}
	const headers, reset, settings, ping, endHeaders = 1, 3, 4, 6, 4
	// POST and https are entries of the static table (RFC 7541, appendix A), path and authority have literal values.
	ask := "\x83\x87\x04\x0c/machine/map\x01\x01x"
	bw := bufio.NewWriterSize(c, 3000)
	if _, err := bw.WriteString("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); err != nil {
		return err
	}
	if _, err := bw.Write(frame(settings, 0, 0, "")); err != nil {
		return err
	}
	for id := uint32(1); ; id += 2 {
		b := frame(headers, endHeaders, id, ask)
		if id%8 == 1 {
			b = append(append(b, frame(ping, 0, 0, "12345678")...), frame(settings, 0, 0, "")...)
		} else {
			b = append(b, frame(reset, 0, id, "\x00\x00\x00\x08")...)
		}
		if _, err := bw.Write(b); err != nil {
			return err
		}
		n.Add(1)
	}
}

// relayFlood sends as much as it can from one member to another, who does not read, and to nobody.
func relayFlood(ctx context.Context, b *besieged, n *atomic.Int64) {
	dialAs := func(i int) func(context.Context) (net.Conn, error) {
		return func(ctx context.Context) (net.Conn, error) { return b.c.DialAs(ctx, i, b.tlsAt) }
	}
	for ctx.Err() == nil {
		from, err := dialRelay(ctx, dialAs(0), b.a.node)
		if err != nil {
			pause(ctx, 50*time.Millisecond)
			continue
		}
		to, err := dialRelay(ctx, dialAs(1), b.b.node)
		if err != nil {
			from.nc.Close()
			continue
		}
		stop := context.AfterFunc(ctx, func() { from.nc.Close(); to.nc.Close() })
		packet, nobody := make([]byte, 60<<10), key.NewNode().Public()
		for err == nil {
			for range 20 {
				if err = from.Send(b.b.node.Public(), packet); err == nil {
					n.Add(1)
				}
			}
			if err == nil {
				err = from.Send(nobody, packet)
			}
		}
		stop()
		from.nc.Close()
		to.nc.Close()
	}
}

// relayStrangers come to the relay without being members, or with noise.
func relayStrangers(ctx context.Context, b *besieged, n *atomic.Int64) {
	for i := 0; ctx.Err() == nil; i++ {
		dial := func(ctx context.Context) (net.Conn, error) { return b.c.DialAs(ctx, 130+i%20, b.tlsAt) }
		if i%2 == 0 {
			c, err := dialRelay(ctx, dial, key.NewNode())
			if err == nil {
				c.nc.Close()
				return // and so the count stays low; TestHomeConform says that this must not be
			}
			n.Add(1)
			continue
		}
		nc, err := dial(ctx)
		if err != nil {
			pause(ctx, 50*time.Millisecond)
			continue
		}
		tc := tls.Client(nc, &tls.Config{InsecureSkipVerify: true})
		_ = tc.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.WriteString(tc, "GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Fast-Start: 1\r\n\r\n")
		_, _ = io.CopyN(tc, rand.Reader, 4096)
		nc.Close()
		n.Add(1)
	}
}
