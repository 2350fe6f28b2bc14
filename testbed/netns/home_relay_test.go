package netns_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"context"

	"subnetd/testbed/netns"

	"tailscale.com/types/key"
)

// TestHomeRelay is cases 48, 51 and 55: the relay in the router among two stock clients that have nothing else.
func TestHomeRelay(t *testing.T) {
	s := openHome(t, netns.HomeOptions{})
	phone, tablet := s.stock("phone", netns.UDPBlocked), s.stock("tablet", netns.UDPBlocked)
	wantReach(t, phone.Host, s.addrs("tablet")...)
	if reach, out := phone.Ping(t.Context(), s.addrs("tablet")[0], 2); reach != netns.Relayed {
		t.Fatalf("the path is %s:\n%s", reach, out)
	}
	t.Run("48-throughput", func(t *testing.T) {
		const size = 20_000_000
		tablet.Host.ServePayload("[::]:80", 1, size)
		for _, a := range s.addrs("tablet") {
			wantPayload(t, phone.Host, "http://"+netip.AddrPortFrom(a, 80).String()+"/", 1, size)
		}
	})
	t.Run("55-echo", func(t *testing.T) {
		for _, name := range []string{"phone", "tablet"} {
			out, err := s.mesh.CLI("nodes", "probe", name)
			if err != nil {
				t.Errorf("%s does not answer the coordinator: %v", name, err)
			}
			t.Logf("nodes probe %s: %s", name, strings.TrimSpace(out))
		}
		if out, err := s.mesh.CLI("nodes", "probe", "nobody"); exitCode(err) != 1 {
			t.Errorf("nobody answers: %v, %s", err, out)
		}
	})
	t.Run("51-file-drop", func(t *testing.T) { s.fileDrop(t, phone, tablet) })
	t.Run("48-only-members", s.onlyMembers)
	t.Run("48-wrong-certificate", s.wrongCertificate)
}

// fileDrop sends a file from one client to another of the same user, and to one of another, who is not asked.
func (s *homeScene) fileDrop(t *testing.T, phone, tablet *netns.StockPeer) {
	guest := s.stock("guest", netns.Easy, "--user", "bea")
	file, inbox := filepath.Join(s.lab.Dir(), "holiday.jpg"), filepath.Join(s.lab.Dir(), "inbox")
	if err := os.WriteFile(file, []byte(strings.Repeat("holiday ", 10_000)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(inbox, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if out, err := phone.CLI(ctx, "file", "cp", file, "tablet:"); err != nil {
		t.Fatalf("sending to a device of the same user: %v\n%s", err, out)
	}
	if out, err := tablet.CLI(ctx, "file", "get", inbox); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(inbox, "holiday.jpg")); err != nil || string(got) != string(want) {
		t.Errorf("%d of %d bytes arrived (%v)", len(got), len(want), err)
	}
	wantReach(t, guest.Host, s.addrs("tablet")[0])
	out, err := guest.CLI(ctx, "file", "cp", file, "tablet:")
	if err == nil {
		t.Error("a device of another user sends files that nobody asked for")
	}
	t.Logf("another user: %s", strings.TrimSpace(out))
}

// onlyMembers: strangers are refused, and so is who was a member.
func (s *homeScene) onlyMembers(t *testing.T) {
	c := s.crowd()
	key1 := s.mesh.Invite("--reusable").Key
	nodes, streams := c.join(t, key1, 0, 2)
	dial := func(ctx context.Context) (net.Conn, error) {
		return c.DialAs(ctx, 3, netip.AddrPortFrom(s.home.Router.Addr4, 443))
	}
	if r, err := dialRelay(t.Context(), dial, key.NewNode()); err == nil {
		r.nc.Close()
		t.Error("the relay takes somebody who is no member")
	}
	var ends []*relayConn
	for _, n := range nodes {
		r, err := dialRelay(t.Context(), dial, n.node)
		if err != nil {
			t.Fatalf("a member: %v", err)
		}
		defer r.nc.Close()
		ends = append(ends, r)
	}
	if err := ends[0].Send(nodes[1].node.Public(), []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if b, err := ends[1].hears(nodes[0].node.Public(), patience); err != nil || string(b) != "hello" {
		t.Fatalf("the relay carried %q (%v)", b, err)
	}
	s.mesh.Remove(nodes[0].name)
	start := time.Now()
	_ = ends[0].nc.SetReadDeadline(start.Add(patience))
	for {
		_, err := ends[0].Recv()
		if err == nil {
			continue
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a removed member is still connected to the relay")
		}
		break
	}
	t.Logf("the relay hung up on a removed member after %v", time.Since(start).Round(time.Millisecond))
	if r, err := dialRelay(t.Context(), dial, nodes[0].node); err == nil {
		r.nc.Close()
		t.Error("the relay takes who is no longer a member")
	}
	if err := nodes[1].logout(t.Context(), streams[1].wire); err != nil {
		t.Fatal(err)
	}
	netns.Eventually(t, patience, "the relay refuses who has logged out", func() error {
		r, err := dialRelay(t.Context(), dial, nodes[1].node)
		if err == nil {
			r.nc.Close()
			return errors.New("it is taken")
		}
		return nil
	})
}

// wrongCertificate: somebody on the way to the relay has a certificate that an authority vouches for, whom the client
// trusts. It is not the one that the coordinator has named.
func (s *homeScene) wrongCertificate(t *testing.T) {
	victim := s.lab.StockPeer(s.lab.Client("victim", netns.UDPBlocked)) // trusts the lab's authority
	s.stockUp(victim)
	wantReach(t, victim.Host, s.addrs("home")[0])
	certFile, keyFile := s.lab.IssueFor("home.test")
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := s.lab.Internet().Listen("203.0.113.1:4443")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	imp := &impostor{cert: cert}
	go imp.serve(ln)

	box := victim.Host.Behind()
	box.NFT(fmt.Sprintf(`table ip impostor {
	chain pre { type nat hook prerouting priority -110; ip daddr %s tcp dport 443 dnat to 203.0.113.1:4443; }
}
`, s.home.Router.Addr4))
	victim.Kill()
	victim.Start()
	netns.Eventually(t, 30*time.Second, "the victim meets the impostor", func() error {
		if imp.refused.Load() < 3 {
			return fmt.Errorf("refused %d times", imp.refused.Load())
		}
		return nil
	})
	if n := imp.relayed.Load(); n > 0 {
		t.Errorf("the client speaks with a relay that has another certificate, %d times", n)
	}
	if err := victim.Host.Ping(t.Context(), s.addrs("home")[0]); err == nil {
		t.Error("the router answers, though there is no way to it")
	}
	box.NFT("delete table ip impostor")
	wantReach(t, victim.Host, s.addrs("home")[0])
	t.Logf("the impostor was refused %d times", imp.refused.Load())
}

// impostor is a relay with a certificate of its own.
type impostor struct {
	cert    tls.Certificate
	refused atomic.Int64 // clients who hung up on its certificate
	relayed atomic.Int64 // who asked it to relay
}

func (i *impostor) serve(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go i.meet(c)
	}
}

func (i *impostor) meet(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{i.cert}, MaxVersion: tls.VersionTLS12}) // refusals arrive within the handshake
	if err := tc.Handshake(); err != nil {
		if strings.Contains(err.Error(), "certificate") {
			i.refused.Add(1)
		}
		return
	}
	// The control connection's TLS is not verified: Noise inside is.
	if req, err := http.ReadRequest(bufio.NewReader(tc)); err == nil && strings.HasPrefix(req.URL.Path, "/derp") {
		i.relayed.Add(1)
	}
}
