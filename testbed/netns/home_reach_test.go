package netns_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// The ways in which a home is found. A stock client that has lost its coordinator asks for another port than before, in
// the next two minutes: each way has to stand two interruptions within that time.

// TestHomeReachHTTPPrivate: http and an address of the LAN, for those at home.
func TestHomeReachHTTPPrivate(t *testing.T) {
	s := atHome(t, netns.StockVersions()...)
	s.interruptions(t, s.clients)
}

// TestHomeReachHTTPName: http and a name, from outside; nobody has to trust anybody.
func TestHomeReachHTTPName(t *testing.T) {
	s := openHome(t, netns.HomeOptions{})
	s.wantOutsideURL(t)
	s.interruptions(t, s.oneOfEach(""))
}

// TestHomeReachHTTPAddress: http and a public address, from outside.
func TestHomeReachHTTPAddress(t *testing.T) {
	s := openHome(t, netns.HomeOptions{URL: "http://203.0.113.20"})
	s.wantOutsideURL(t)
	s.interruptions(t, s.oneOfEach(""))
}

// TestHomeReachHTTPSFile: https with a certificate that the owner has, from an authority that the clients know. A new
// certificate in the same file is used without a restart.
func TestHomeReachHTTPSFile(t *testing.T) {
	s := &homeScene{t: t, lab: netns.New(t)}
	s.home = s.lab.Home(netns.Public)
	cert, key := s.lab.IssueFor("home.test")
	s.mesh = s.lab.HomeMesh(s.home.Router, netns.HomeOptions{URL: "https://home.test", CertFile: cert, KeyFile: key})
	s.wantOutsideURL(t)
	clients := s.oneOfEach(s.lab.CACert())
	s.interruptions(t, clients)

	before := s.certificate(t)
	s.lab.IssueFor("home.test")
	netns.Eventually(t, 40*time.Second, "the new certificate is used", func() error {
		if s.certificate(t).Equal(before) {
			return errors.New("it is the old one")
		}
		return nil
	})
	s.hears(t, clients, "renewed")
}

// TestHomeReachACME: https with a certificate that the daemon fetches itself, by ACME through the redirected ports. It
// is kept: a restart fetches none.
func TestHomeReachACME(t *testing.T) {
	s := &homeScene{t: t, lab: netns.New(t)}
	s.home = s.lab.Home(netns.Public)
	acme := s.lab.ACME()
	start := time.Now()
	s.mesh = s.lab.HomeMesh(s.home.Router, netns.HomeOptions{URL: "https://home.test", ACME: acme.Directory})
	netns.Eventually(t, 60*time.Second, "there is a certificate", func() error {
		_, err := s.tryCertificate()
		return err
	})
	before := s.certificate(t)
	t.Logf("certificate of %s after %v", before.Issuer.CommonName, time.Since(start).Round(time.Millisecond))
	s.wantOutsideURL(t)
	s.interruptions(t, s.oneOfEach(s.lab.CACert()))
	if !s.certificate(t).Equal(before) {
		t.Error("a restart fetched another certificate")
	}
	orders := 0
	for _, l := range acme.Log() {
		if strings.Contains(l, "Issued certificate") {
			orders++
		}
	}
	if orders != 1 {
		t.Errorf("%d certificates were issued, want 1", orders)
	}
}

// wantOutsideURL says that the invitation is good everywhere.
func (s *homeScene) wantOutsideURL(t *testing.T) {
	t.Helper()
	if i := s.mesh.Invite(); i.URL != s.mesh.Options.URL || !i.Outside || len(i.Missing) > 0 {
		t.Errorf("invitation %+v, want one that is good outside", i)
	}
}

// oneOfEach joins a stock client of each version from outside. roots: what their machines trust besides, or "".
func (s *homeScene) oneOfEach(roots string) []*netns.StockPeer {
	s.t.Helper()
	var all []*netns.StockPeer
	for i, version := range netns.StockVersions() {
		h := s.lab.Client(fmt.Sprintf("client%d", i), netns.Easy)
		if roots != "" {
			h.Trust(roots)
		}
		p := s.lab.StockPeerVersion(h, version)
		s.letIn(p)
		all = append(all, p)
	}
	return all
}

// interruptions ends the daemon twice, well and badly, and wants the clients back each time, all of it within the two
// minutes in which a client tries other ports.
func (s *homeScene) interruptions(t *testing.T, clients []*netns.StockPeer) {
	t.Helper()
	for _, c := range clients {
		wantReach(t, c.Host, s.addrs("home")...)
	}
	s.hears(t, clients, "first")
	start := time.Now()
	for i, cut := range []struct {
		name string
		do   func()
	}{
		{"restarted", s.mesh.Restart},
		{"killed", func() { s.mesh.Kill(); s.mesh.Start() }},
	} {
		cut.do()
		back := time.Now()
		for _, c := range clients {
			netns.Eventually(t, time.Minute, c.Host.Name+" is online again", func() error {
				n, err := s.mesh.Node(c.Host.Name)
				if err == nil && !n.Online {
					err = errors.New("it is offline")
				}
				return err
			})
			t.Logf("%s: %s is back %v after the daemon was", cut.name, c.Host.Name, time.Since(back).Round(time.Millisecond))
		}
		s.hears(t, clients, fmt.Sprintf("again%d", i))
	}
	if took := time.Since(start); took > 2*time.Minute {
		t.Errorf("two interruptions took %v", took)
	}
	for _, c := range clients {
		wantReach(t, c.Host, s.addrs("home")...)
		if out, err := c.CLI(t.Context(), "ping", "-c", "1", "--timeout", "5s", "--until-direct=false", "home"); err != nil {
			t.Errorf("%s: %v\n%s", c.Host.Name, err, out)
		}
		st, err := c.Status()
		t.Logf("%s: health %q %v", c.Host.Name, st.Health, err)
	}
}

// hears renames the first client and wants every client to hear of it: their long polls are alive.
func (s *homeScene) hears(t *testing.T, clients []*netns.StockPeer, name string) {
	t.Helper()
	first := clients[0].Host.Name
	s.mesh.Must("nodes", "rename", first, name)
	want := name + ".mesh.internal."
	for _, c := range clients {
		netns.Eventually(t, 30*time.Second, c.Host.Name+" hears of "+name, func() error {
			st, err := c.Status()
			if err != nil {
				return err
			}
			if st.Self.DNSName == want {
				return nil
			}
			for _, p := range st.Peer {
				if p.DNSName == want {
					return nil
				}
			}
			return fmt.Errorf("it knows %v", st.Peer)
		})
	}
	s.mesh.Must("nodes", "rename", name, first)
}

// certificate is what the home shows at https://home.test.
func (s *homeScene) certificate(t *testing.T) *x509.Certificate {
	t.Helper()
	c, err := s.tryCertificate()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *homeScene) tryCertificate() (*x509.Certificate, error) {
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(s.lab.CACert())
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		return nil, errors.Join(err, errors.New("no authorities"))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := s.lab.Internet().Dial(ctx, "tcp", net.JoinHostPort(s.home.Router.Addr4.String(), "443"))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	conn := tls.Client(c, &tls.Config{ServerName: "home.test", RootCAs: roots})
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return conn.ConnectionState().PeerCertificates[0], nil
}
