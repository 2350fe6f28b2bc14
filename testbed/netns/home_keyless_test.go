package netns_test

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// TestHomeKeyless: `tailscale up` without a key shows a URL; there is a plain page with a code, and nothing that anybody
// does to the page lets the device in. The owner does, by the code, and the device comes up by itself.
func TestHomeKeyless(t *testing.T) {
	for _, version := range netns.StockVersions() {
		t.Run(version, func(t *testing.T) {
			s := openHome(t, netns.HomeOptions{})
			client := s.client("laptop", netns.Easy, version)
			up := client.StartCLI("up", "--login-server="+s.mesh.Options.URL)
			login := loginURL(t, up, s.mesh.Options.URL)
			code := s.pendingCode(t, "laptop")
			s.wantPage(t, client.Host, login, code)
			s.wantOutside(t, client, "laptop")

			start := time.Now()
			s.mesh.Approve(code)
			wantEnd(t, up, 15*time.Second)
			t.Logf("up %v after the approval", time.Since(start).Round(time.Millisecond))
			wantReach(t, client.Host, s.addrs("home")...)
			if all, err := s.mesh.Nodes(); err != nil || len(all.Pending) > 0 {
				t.Errorf("still at the door: %+v %v", all.Pending, err)
			}
			out, err := s.mesh.CLI("nodes", "approve", code)
			if exitCode(err) != 1 || !plainSentence(out) {
				t.Errorf("a code used again: %v", err)
			}
			t.Logf("a code used again: %s", strings.TrimSpace(out))
		})
	}
}

// loginURL waits until a `tailscale up` shows where to log in.
func loginURL(t *testing.T, up *netns.Process, base string) string {
	t.Helper()
	want, login := regexp.MustCompile(regexp.QuoteMeta(base)+`/\S+`), ""
	netns.Eventually(t, 20*time.Second, "tailscale up shows a URL", func() error {
		if login = want.FindString(strings.Join(up.Lines(), "\n")); login == "" {
			return errors.New(up.Tail(20))
		}
		return nil
	})
	return login
}

// pendingCode waits until a device is at the door, and gives its code.
func (s *homeScene) pendingCode(t *testing.T, hostname string) string {
	t.Helper()
	code := ""
	netns.Eventually(t, 10*time.Second, hostname+" is at the door", func() error {
		all, err := s.mesh.Nodes()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(all.Pending, func(p netns.HomePending) bool { return p.Hostname == hostname })
		if i < 0 {
			return fmt.Errorf("there is %+v", all.Pending)
		}
		code = all.Pending[i].Code
		return nil
	})
	printed := s.mesh.Must("nodes")
	t.Logf("subnetd nodes:\n%s", printed)
	if !strings.Contains(printed, code) || !strings.Contains(printed, hostname) {
		t.Error("`nodes` does not show who waits, with the code")
	}
	return code
}

// wantPage reads the page as a browser would, and tries what a curious or hostile one would.
func (s *homeScene) wantPage(t *testing.T, h *netns.Host, login, code string) {
	t.Helper()
	page, err := h.RunPlain(t.Context(), "curl", "-sS", "-i", "--max-time", "10", login)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the page:\n%s", page)
	head, body, _ := strings.Cut(page, "\r\n\r\n")
	if !strings.Contains(head, " 200 ") || !strings.Contains(strings.ToLower(head), "content-type: text/") {
		t.Error("the page is no page")
	}
	for _, want := range []string{code, h.Name, "subnetd nodes approve"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page does not show %q", want)
		}
	}
	lower := strings.ToLower(body)
	for _, bad := range []string{"<script", "javascript:", " onload", " onclick", "<form", "<iframe"} {
		if strings.Contains(lower, bad) {
			t.Errorf("the page has %s", bad)
		}
	}
	for _, try := range [][]string{
		{"-X", "POST", login}, {"-X", "POST", "-d", "approve=1&code=" + code, login}, {"-X", "PUT", "-d", code, login},
		{"-X", "DELETE", login}, {login + "?approve=1"}, {login + "/approve"},
		{"-X", "POST", "-d", `{"code":"` + code + `"}`, s.mesh.Options.URL + "/v1/home/nodes/approve"},
		{s.mesh.Options.URL + "/v1/home/nodes"},
	} {
		out, err := h.RunPlain(t.Context(), "curl", append([]string{"-sS", "--max-time", "10", "-w", "\n%{http_code}"}, try...)...)
		if err != nil {
			t.Errorf("curl %q: %v", try, err)
		}
		if strings.Contains(try[len(try)-1], "/v1/") && !strings.HasSuffix(out, "\n404") {
			t.Errorf("the owner's calls answer here: curl %q: %s", try, out)
		}
	}
}

// wantOutside says that a device is not yet in the mesh.
func (s *homeScene) wantOutside(t *testing.T, client *netns.StockPeer, name string) {
	t.Helper()
	if n, err := s.mesh.Node(name); err == nil {
		t.Errorf("nobody approved %+v", n)
	}
	if st, err := client.Status(); err != nil || st.BackendState != "NeedsLogin" {
		t.Errorf("the client's state is %q, want NeedsLogin (%v)", st.BackendState, err)
	}
}

// wantEnd waits until a command has ended well.
func wantEnd(t *testing.T, p *netns.Process, limit time.Duration) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(limit):
		t.Fatalf("it does not end within %v:\n%s", limit, p.Tail(20))
	}
	if err := p.Stop(time.Minute); err != nil {
		t.Fatalf("%v\n%s", err, p.Tail(20))
	}
}

// plainSentence says whether a person can read what a program printed: one line, and nothing of its inside.
func plainSentence(out string) bool {
	out = strings.TrimSpace(out)
	return len(out) > 15 && !strings.Contains(out, "\n") && !strings.Contains(out, "goroutine")
}

// TestHomeKeylessTwoAtTheDoor: of two who wait only the one whose code is approved is let in, under the user that the
// owner names; a code that nobody has is refused.
func TestHomeKeylessTwoAtTheDoor(t *testing.T) {
	s := openHome(t, netns.HomeOptions{})
	friend, stranger := s.client("friend", netns.Easy, netns.StockVersions()[0]), s.client("stranger", netns.Easy, netns.StockVersions()[0])
	friendUp := friend.StartCLI("up", "--login-server="+s.mesh.Options.URL)
	strangerUp := stranger.StartCLI("up", "--login-server="+s.mesh.Options.URL)
	strangersCode := s.pendingCode(t, "stranger")
	code := s.pendingCode(t, "friend")
	if out, err := s.mesh.CLI("nodes", "approve", "ZZZZ-ZZZZ"); exitCode(err) != 1 || !plainSentence(out) {
		t.Errorf("an unknown code: %v\n%s", err, out)
	}
	s.mesh.Approve(code, "--user", "bea")
	wantEnd(t, friendUp, 15*time.Second)
	if n, err := s.mesh.Node("friend"); err != nil || n.User != "bea" {
		t.Errorf("%+v, want a node of bea (%v)", n, err)
	}
	s.wantOutside(t, stranger, "stranger")
	if got := s.pendingCode(t, "stranger"); got != strangersCode {
		t.Errorf("the stranger's code is %s, was %s", got, strangersCode)
	}
	strangerUp.Kill()
}

// TestHomeKeysRefused: a key that is used, expired, revoked or made up is refused within seconds, and the user of the
// stock client reads why. A good key then works on the same machine.
func TestHomeKeysRefused(t *testing.T) {
	for _, version := range netns.StockVersions() {
		t.Run(version, func(t *testing.T) {
			s := openHome(t, netns.HomeOptions{})
			used, expired, revoked := s.mesh.Invite(), s.mesh.Invite("--expires", "1s"), s.mesh.Invite()
			s.client("first", netns.Public, version).Up(used.URL, used.Key)
			s.mesh.Must("keys", "revoke", revoked.ID)
			for id, state := range map[string]string{used.ID: "used", expired.ID: "expired", revoked.ID: "revoked"} {
				s.wantKey(t, id, state)
			}
			if printed := s.mesh.Must("keys"); strings.Contains(printed, used.Key) || strings.Contains(printed, revoked.Key) {
				t.Errorf("`keys` shows secrets:\n%s", printed)
			}
			client := s.client("laptop", netns.Easy, version)
			for _, tt := range []struct{ name, key, says string }{
				{"used", used.Key, "used"},
				{"expired", expired.Key, "expired"},
				{"revoked", revoked.Key, "revoked"},
				{"made-up", used.Key[:len(used.Key)-4] + "AAAA", "key"},
				{"garbage", "garbage", "key"},
			} {
				t.Run(tt.name, func(t *testing.T) {
					start := time.Now()
					out, err := client.UpWith(20*time.Second, "--login-server="+used.URL, "--auth-key="+tt.key, "--timeout=15s")
					took := time.Since(start)
					if exitCode(err) != 1 {
						t.Fatalf("want exit code 1, got %v", err)
					}
					said := strings.TrimSpace(out)
					if took > 10*time.Second || !plainSentence(said) || !strings.Contains(strings.ToLower(said), tt.says) {
						t.Errorf("after %v the user reads:\n%s", took, said)
					}
					t.Logf("after %v: %s", took.Round(time.Millisecond), said)
					if st, err := client.Status(); err != nil || st.BackendState == "Running" {
						t.Errorf("the client's state is %q (%v)", st.BackendState, err)
					}
				})
				// It goes on asking with the key, and its user's next `up` may end by that answer. Once started again it does not.
				client.Kill()
				client.Start()
			}
			if n, err := s.mesh.Node("laptop"); err == nil {
				t.Errorf("%+v is in", n)
			}
			s.letIn(client)
			wantReach(t, client.Host, s.addrs("home")...)
		})
	}
}

// wantKey waits until a key is listed in a state.
func (s *homeScene) wantKey(t *testing.T, id, state string) {
	t.Helper()
	netns.Eventually(t, 5*time.Second, "key "+id+" is "+state, func() error {
		keys, err := s.mesh.Keys()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(keys, func(k netns.HomeKey) bool { return k.ID == id })
		if i < 0 {
			return fmt.Errorf("it is not among %+v", keys)
		}
		if keys[i].State != state {
			return fmt.Errorf("it is %s", keys[i].State)
		}
		return nil
	})
}

// TestHomeKeyKinds: a reusable key lets several in; a tagged key makes tagged nodes; the user of an invitation owns
// what joined by it.
func TestHomeKeyKinds(t *testing.T) {
	s := openHome(t, netns.HomeOptions{})
	i := s.mesh.Invite("--reusable", "--tags", "tag:printer,tag:office")
	for n, version := range netns.StockVersions() {
		p := s.client(fmt.Sprintf("tagged%d", n), netns.Easy, version)
		p.Up(i.URL, i.Key)
		node, err := s.mesh.Node(p.Host.Name)
		if err != nil || node.User != "" || !slices.Equal(slices.Sorted(slices.Values(node.Tags)), []string{"tag:office", "tag:printer"}) || !node.KeyExpiry.IsZero() {
			t.Errorf("%+v, want a node with two tags, no user, and a key that does not expire (%v)", node, err)
		}
	}
	s.stockUp(s.client("laptop", netns.Easy, netns.StockVersions()[0]), "--user", "bea")
	if node, err := s.mesh.Node("laptop"); err != nil || node.User != "bea" || len(node.Tags) > 0 {
		t.Errorf("%+v, want a node of bea (%v)", node, err)
	}
	if out, err := s.mesh.CLI("invite", "--tags", "printer"); exitCode(err) == 0 || !plainSentence(out) {
		t.Errorf("a tag without tag: in front: %v\n%s", err, out)
	}
}
