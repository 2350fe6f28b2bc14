package ingress

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tailscale.com/net/tlsdial"
)

// A stock client that knows the pin is content, whatever name of the certificate
// it dials and whatever our clock said when we made it; any other pin or name is
// refused.
func TestPin(t *testing.T) {
	names := []string{"relay.mesh.internal", "home.example"}
	addrs := []netip.Addr{netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("::ffff:203.0.113.1")}
	for _, made := range []time.Time{time.Now(), time.Unix(0, 0), time.Date(2049, 12, 31, 0, 0, 0, 0, time.UTC)} {
		id, err := SelfSigned(made, names, addrs, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		other, err := SelfSigned(made, names, addrs, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			host, pin string
			ok        bool
		}{
			{"relay.mesh.internal", id.Pin(), true},
			{"home.example", id.Pin(), true},
			{"192.168.1.1", id.Pin(), true},
			{"fd00::1", id.Pin(), true},
			{"203.0.113.1", id.Pin(), true},
			{"elsewhere.example", id.Pin(), false},
			{"relay.mesh.internal", other.Pin(), false},
		} {
			if err := pinned(t, id, tt.host, tt.pin); (err == nil) != tt.ok {
				t.Errorf("made %s, dialled %s: %v", made, tt.host, err)
			}
		}
		for _, a := range addrs { // stock clients do not look, ours do
			if err := id.TLS().Leaf.VerifyHostname(a.Unmap().String()); err != nil {
				t.Error(err)
			}
		}
		if id.TLS().Leaf.VerifyHostname("192.168.1.2") == nil {
			t.Error("it is for any address")
		}
		if life := time.Until(id.TLS().Leaf.NotAfter); life < 10*365*24*time.Hour {
			t.Errorf("made %s, it ends in %s", made, life)
		}
	}
}

// pinned shakes hands as a stock client does with a relay.
func pinned(t *testing.T, id Identity, host, pin string) error {
	hash, ok := strings.CutPrefix(pin, "sha256-raw:")
	if !ok {
		t.Fatalf("pin %q", pin)
	}
	cfg := &tls.Config{ServerName: host}
	tlsdial.SetConfigExpectedCertHash(cfg, hash)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{id.TLS()}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		if c, err := l.Accept(); err == nil {
			c.(*tls.Conn).Handshake()
			c.Close()
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	err = tls.Client(c, cfg).Handshake()
	c.Close()
	<-served
	return err
}

func TestIdentityKept(t *testing.T) {
	id, err := SelfSigned(time.Now(), []string{"a.example"}, []netip.Addr{netip.MustParseAddr("fd00::1")}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(id)
	if err != nil {
		t.Fatal(err)
	}
	var back Identity
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if back.Pin() != id.Pin() || back.IsZero() || !back.Covers(id.Names, id.Addrs) {
		t.Errorf("got %+v", back)
	}
	if err := pinned(t, back, "a.example", id.Pin()); err != nil {
		t.Error(err)
	}
	other, err := SelfSigned(time.Now(), []string{"a.example"}, nil, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, broken := range map[string]Identity{
		"other key": {Key: other.Key, Cert: id.Cert},
		"no key":    {Cert: id.Cert},
		"no cert":   {Key: id.Key},
		"garbage":   {Key: []byte("x"), Cert: []byte("y")},
		"cut":       {Key: id.Key, Cert: id.Cert[:len(id.Cert)-1]},
	} {
		text, err := json.Marshal(broken)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &back); err == nil {
			t.Errorf("%s: read without an error", name)
		}
		if err := pinned(t, broken, "a.example", broken.Pin()); err == nil {
			t.Errorf("%s: a handshake succeeds", name)
		}
	}
	if back.Pin() != id.Pin() {
		t.Error("a failed read has changed it")
	}
	var zero Identity
	if text, err = json.Marshal(zero); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &zero); err != nil || !zero.IsZero() || zero.Covers(nil, nil) {
		t.Errorf("none: %v, %+v", err, zero)
	}
}

func TestCovers(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	id, err := SelfSigned(time.Now(), []string{"a.example", "b.example"}, []netip.Addr{a}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		names []string
		addrs []netip.Addr
		want  bool
	}{
		{nil, nil, true},
		{[]string{"b.example"}, []netip.Addr{a}, true},
		{[]string{"c.example"}, nil, false},
		{nil, []netip.Addr{a, b}, false},
	} {
		if got := id.Covers(tt.names, tt.addrs); got != tt.want {
			t.Errorf("%v %v: %t", tt.names, tt.addrs, got)
		}
	}
}

type noRandom struct{}

func (noRandom) Read([]byte) (int, error) { return 0, errors.New("no randomness") }

func TestSelfSignedErrors(t *testing.T) {
	if _, err := SelfSigned(time.Now(), nil, nil, rand.Reader); err == nil {
		t.Error("a certificate for nothing")
	}
	if _, err := SelfSigned(time.Now(), []string{"a"}, nil, noRandom{}); err == nil {
		t.Error("a certificate without randomness")
	}
}
