// Package names answers the home's questions for names by asking others: resolvers of
// the provider, and for some domains somebody else. What they answered is remembered as
// long as they allow.
//
//	names     which resolver for which name; one question to an answer
//	question  the part of a message that matters
//	cache     answers, bounded
//	serve     UDP and TCP on one interface
package names

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Config is whom to ask.
type Config struct {
	Resolvers []netip.AddrPort            // for all; the best first
	Domains   map[string][]netip.AddrPort // for a domain and what is below it: "mesh.internal", in lower case
}

// whom gives the resolvers for a name without its last dot, in lower case: those of the
// longest domain. cached: their answers may be remembered.
func (c *Config) whom(name string) (resolvers []netip.AddrPort, cached bool) {
	for d := name; ; {
		if r, ok := c.Domains[d]; ok {
			return r, false // they are at hand, and change when the mesh does
		}
		_, rest, more := strings.Cut(d, ".")
		if !more {
			return c.Resolvers, true
		}
		d = rest
	}
}

const (
	onePatience = 2 * time.Second // with one resolver
	allPatience = 6 * time.Second // of who has asked
	mostMessage = 65535
	mostFiles   = 1 << 20
)

// Forwarder answers questions. It is safe for use by many at once.
type Forwarder struct {
	config atomic.Pointer[Config]
	cache  *cache
	now    func() time.Time
}

// NewForwarder makes one that knows nobody to ask yet.
func NewForwarder(now func() time.Time) *Forwarder {
	f := &Forwarder{cache: newCache(), now: now}
	f.config.Store(&Config{})
	return f
}

// Set says whom to ask from now on. Answers of others are forgotten.
func (f *Forwarder) Set(c Config) {
	f.config.Store(&c)
	f.cache.clear()
}

// Answer gives the answer to a message, over the way it came in by; nil: it is none that
// has an answer.
func (f *Forwarder) Answer(ctx context.Context, message []byte, tcp bool) []byte {
	q, err := parse(message)
	if err != nil {
		return refusal(message, err)
	}
	resolvers, cached := f.config.Load().whom(q.name)
	if cached {
		if a := f.cache.get(q, f.now()); a != nil && (tcp || len(a) <= q.size) {
			return a
		}
	}
	ctx, cancel := context.WithTimeout(ctx, allPatience)
	defer cancel()
	for _, r := range resolvers {
		a, err := ask(ctx, r, q, tcp)
		if err != nil {
			continue
		}
		if cached {
			f.cache.put(q, a, f.now())
		}
		return a
	}
	return failure(message, rcodeServFail)
}

// ask asks one resolver: from a port and by a number that nobody else knows
// (RFC 5452, 9.2).
func ask(ctx context.Context, to netip.AddrPort, q question, tcp bool) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, onePatience)
	defer cancel()
	network := "udp"
	if tcp {
		network = "tcp"
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, network, to.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	mine := slices.Clone(q.message)
	_, _ = rand.Read(mine[:2]) // never fails
	if tcp {
		return askTCP(c, mine, q)
	}
	return askUDP(c, mine, q)
}

func askUDP(c net.Conn, mine []byte, q question) ([]byte, error) {
	if _, err := c.Write(mine); err != nil {
		return nil, err
	}
	b := make([]byte, 4096)
	for {
		n, err := c.Read(b)
		if err != nil {
			return nil, err
		}
		if a := b[:n]; q.answeredBy(a, mine) {
			return own(a, q), nil
		}
	}
}

func askTCP(c net.Conn, mine []byte, q question) ([]byte, error) {
	if err := writeTCP(c, mine); err != nil {
		return nil, err
	}
	a, err := readTCP(bufio.NewReader(c))
	if err != nil {
		return nil, err
	}
	if !q.answeredBy(a, mine) {
		return nil, errors.New("the resolver answered something else")
	}
	return own(a, q), nil
}

// own makes an answer that of the one who asked: its number, and its writing of the name.
func own(a []byte, q question) []byte {
	a = slices.Clone(a)
	copy(a, q.message[:2])
	copy(a[headerSize:], q.message[headerSize:q.end])
	return a
}

func writeTCP(w net.Conn, message []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...))
	return err
}

func readTCP(r *bufio.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

// ReadDir reads what dnsmasq's files in a directory say of servers for domains
// (dnsmasq(8), --server=/DOMAIN/ADDRESS#PORT). Other lines are for dnsmasq alone.
func ReadDir(dir string) (map[string][]netip.AddrPort, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.conf"))
	if err != nil {
		return nil, err
	}
	out := map[string][]netip.AddrPort{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err == nil && len(text) > mostFiles {
			err = fmt.Errorf("%s is too long", f)
		}
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(text)) {
			if domain, to, ok := server(strings.TrimSpace(line)); ok {
				out[domain] = append(out[domain], to)
			}
		}
	}
	return out, nil
}

// server reads one line: server=/mesh.internal/127.0.0.1#5335.
func server(line string) (domain string, to netip.AddrPort, ok bool) {
	rest, ok := strings.CutPrefix(line, "server=/")
	if !ok {
		return "", to, false
	}
	domain, rest, ok = strings.Cut(rest, "/")
	host, port, hasPort := strings.Cut(rest, "#")
	addr, err := netip.ParseAddr(host)
	if !ok || err != nil || domain == "" {
		return "", to, false
	}
	n := uint64(53)
	if hasPort {
		n, err = strconv.ParseUint(port, 10, 16)
	}
	return strings.ToLower(strings.Trim(domain, ".")), netip.AddrPortFrom(addr, uint16(n)), err == nil
}
