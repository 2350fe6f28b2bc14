package netns_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// The page in a browser. What happens in the page is told by scripts in testbed/page; they run on a host of the home's LAN and
// ask this side, by name, for what happens elsewhere.

// asked is what a script can ask for. It returns when that is so, and fails the test if it will not be.
type asked map[string]func(argument string)

// playPage runs a script in a browser on a host, to its end. Its pictures go to the folder SUBNETD_SHOTS, if there is one.
func playPage(t *testing.T, h *netns.Host, limit time.Duration, can asked, script string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := h.Cmd(ctx, "node", append([]string{script}, args...)...)
	cmd.Dir = scripts(t)
	cmd.Env = append(cmd.Env, "SHOTS="+os.Getenv("SUBNETD_SHOTS"))
	if err := perform(t, cmd, can); err != nil {
		t.Fatalf("%s: %v", script, err)
	}
}

// scripts is the folder of the scripts, with what they need.
func scripts(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../page")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "playwright-core")); err != nil {
		t.Fatalf("the browser's driver is missing: run testbed/provision.sh (%v)", err)
	}
	return dir
}

// perform does what the script asks for, line by line, until it ends.
func perform(t *testing.T, cmd *exec.Cmd, can asked) error {
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var wrong strings.Builder
	cmd.Stderr = &wrong
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if err := answer(t, in, lines.Bytes(), can); err != nil {
			in.Close()
			return errors.Join(err, cmd.Wait(), errors.New(wrong.String()))
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w\n%s", err, wrong.String())
	}
	return nil
}

func answer(t *testing.T, to io.Writer, line []byte, can asked) error {
	var said struct{ Ask, Argument, Tell string }
	if err := json.Unmarshal(line, &said); err != nil {
		t.Logf("%s", line)
		return nil
	}
	if said.Ask == "" {
		t.Logf("%s: %s", time.Now().Format("04:05.0"), said.Tell)
		return nil
	}
	do, ok := can[said.Ask]
	if !ok {
		return fmt.Errorf("the script asks for %q", said.Ask)
	}
	began := time.Now()
	do(said.Argument)
	t.Logf("%s: %s: %v", began.Format("04:05.0"), said.Ask, time.Since(began).Round(time.Millisecond))
	_, err := io.WriteString(to, "{}\n")
	return err
}

// TestPageBrowser: a router without any configuration but its public name becomes a mesh in its page's wizard. A stock client joins
// by the code on the screen, another is let in, a thing is reached by its name, a TV's internet takes an exit and loses it, and
// the daemon ends and comes back under the open page. Then a second home's router joins that mesh in its own page's wizard, and a
// change there that cuts the browser off is undone.
func TestPageBrowser(t *testing.T) {
	lab := netns.New(t)
	s := &pageStory{t: t, lab: lab, home: lab.Home(netns.Public), web: lab.Far("web")}
	serveSource(t, s.web)
	s.tv, s.printer = lab.Device(s.home, "tv", 51), lab.Device(s.home, "printer", 52)
	s.servePrinter()
	s.mesh = lab.HomeMeshIdle(s.home.Router, netns.HomeOptions{URL: "http://home.test", Expose: "chosen", Unjoined: true})
	s.mesh.Subnetd.Start()
	s.laptop, s.phone = lab.StockPeer(lab.Client("laptop", netns.Easy)), lab.StockPeer(lab.Client("phone", netns.Hard))
	for _, thing := range []*netns.Host{s.tv, s.printer} {
		wantReach(t, thing, s.home.LAN4.Addr().Next(), s.home.LAN6.Addr().Next()) // the router hears of it
	}
	playPage(t, s.home.LAN, 4*time.Minute, asked{
		"join": s.join, "knock": s.knock, "in": s.in, "open": s.open, "shut": s.shut,
		"offer": s.offer, "off": s.off, "leaves": s.leaves, "stop": s.stop, "start": s.start,
	}, "story.mjs", pageOf(s.home), s.tv.Addr4.String(), s.printer.Addr4.String())
	s.cottage()
}

// pageOf is where a home's page is, for those at home.
func pageOf(h *netns.Home) string {
	return "http://" + netip.AddrPortFrom(h.LAN4.Addr().Next(), 8411).String()
}

// cottage is the second home.
func (s *pageStory) cottage() {
	home := s.lab.NewHome(south)
	d := s.lab.Subnetd(home.Router, "[mesh]\nhostname = \"cottage\"\n"+strings.Replace(siteConfig, "all", "chosen", 1))
	i := s.mesh.Invite()
	playPage(s.t, home.LAN, time.Minute, asked{"unplug": func(string) { d.Kill9(); d.Start() }}, "cottage.mjs", pageOf(home), i.URL, i.Key)
	all, err := s.mesh.Nodes()
	if err != nil || !slices.ContainsFunc(all.Nodes, func(n netns.HomeNode) bool { return n.Online && strings.HasPrefix(n.Name, "cottage.") }) {
		s.t.Errorf("the cottage is not in: %v, %+v", err, all.Nodes)
	}
}

// pageStory is where the page's story takes place.
type pageStory struct {
	t                    *testing.T
	lab                  *netns.Lab
	home                 *netns.Home
	mesh                 *netns.HomeMesh
	tv, printer, web     *netns.Host
	laptop, phone, cabin *netns.StockPeer
}

const printed = "the printer's page"

func (s *pageStory) servePrinter() {
	l, err := s.printer.Listen("[::]:80")
	if err != nil {
		s.t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, printed) })}
	go func() { _ = srv.Serve(l) }()
	s.t.Cleanup(func() { _ = srv.Close() })
}

// join takes the laptop in by the line that the code on the screen holds.
func (s *pageStory) join(line string) {
	m := regexp.MustCompile(`^tailscale up --login-server=(\S+) --auth-key=(\S+)$`).FindStringSubmatch(line)
	if m == nil {
		s.t.Fatalf("this is no line that joins: %q", line)
	}
	s.laptop.Up(m[1], m[2])
}

// knock lets the phone ask to be let in, without a key.
func (s *pageStory) knock(string) {
	s.phone.StartCLI("up", "--login-server="+s.mesh.Options.URL, "--hostname=phone", "--accept-dns=false")
}

func (s *pageStory) in(string) {
	netns.Eventually(s.t, 20*time.Second, "the phone is in", func() error {
		is, err := s.phone.Status()
		if err == nil && is.BackendState != "Running" {
			err = errors.New(is.BackendState)
		}
		return err
	})
}

// open lets the phone open a thing's page by its name.
func (s *pageStory) open(name string) {
	netns.Eventually(s.t, 10*time.Second, "the phone opens "+name, func() error {
		got, err := s.fetch(name)
		if err == nil && got != printed {
			err = fmt.Errorf("the page says %q", got)
		}
		return err
	})
}

// shut wants the phone not to open it any more.
func (s *pageStory) shut(name string) {
	if got, err := s.fetch(name); err == nil {
		s.t.Fatalf("%s is still open: %q", name, got)
	}
}

func (s *pageStory) fetch(name string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 3*time.Second)
	defer cancel()
	at, err := lookup(ctx, s.phone.Host, name)
	if err != nil {
		return "", err
	}
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return s.phone.Host.Dial(ctx, network, netip.AddrPortFrom(at[0], 80).String())
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+name+"/", nil)
	if err != nil {
		return "", err
	}
	res, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return string(body), err
}

// offer makes a member that offers to be an exit.
func (s *pageStory) offer(name string) {
	h := s.lab.Client(name, netns.Public)
	for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if out, err := h.Run(s.t.Context(), "sh", "-c", "echo 1 >/proc/sys/net/"+f); err != nil {
			s.t.Fatal(err, out)
		}
	}
	s.cabin = s.lab.StockPeer(h)
	i := s.mesh.Invite()
	s.cabin.Up(i.URL, i.Key, "--advertise-exit-node")
}

func (s *pageStory) off(string) { s.cabin.Kill() }

// leaves wants the TV's internet to leave by the cabin, by the home, or not at all.
func (s *pageStory) leaves(where string) {
	switch where {
	case "cabin":
		wantOutBy(s.t, s.tv, s.web, s.cabin.Host, 15*time.Second)
	case "home":
		wantOutBy(s.t, s.tv, s.web, s.home.Router, 15*time.Second)
	default:
		for _, a := range []netip.Addr{s.web.Addr4, s.web.Addr6} {
			if got, err := seenFrom(s.t.Context(), s.tv, a); err == nil {
				s.t.Errorf("the TV is blocked, and the web sees %v", got)
			}
		}
	}
}

func (s *pageStory) stop(string) {
	if err := s.mesh.Stop(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *pageStory) start(string) { s.mesh.Start() }

// TestPageBrowserStates: each state that a house can be in, and each place and question of its page, is drawn on purpose, can be
// read by everybody, and is come to by the keyboard alone.
func TestPageBrowserStates(t *testing.T) {
	lab := netns.New(t)
	playPage(t, lab.Client("anywhere", netns.Public), 3*time.Minute, nil, "states.mjs")
}

// TestPageBrowserCrowd: the page of a home with five hundred things and as many members.
func TestPageBrowserCrowd(t *testing.T) {
	const things, members = 500, 500
	s := openHome(t, netns.HomeOptions{Expose: "chosen"})
	var neighbours []string
	for i := range things {
		neighbours = append(neighbours, fmt.Sprintf("neigh add fd77:77::1:%x lladdr 02:00:00:00:%02x:%02x dev lan0 nud permanent", i, i>>8, i&255))
	}
	s.home.Router.IP(neighbours...)
	crowd := s.crowd()
	key := s.mesh.Invite("--reusable").Key
	crowd.register(t, key, members-1)
	playPage(t, s.home.LAN, 3*time.Minute, asked{"arrive": func(string) { crowd.joinOne(t, key, members-1) }}, "crowd.mjs", pageOf(s.home), fmt.Sprint(things), fmt.Sprint(members))
}

// register makes members of so many raw nodes, a few at a time; none of them is there afterwards.
func (c *rawCrowd) register(t *testing.T, key string, n int) {
	t.Helper()
	errs, next := make([]error, n), make(chan int)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for i := range next {
				errs[i] = c.registerOne(t.Context(), key, i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func (c *rawCrowd) registerOne(ctx context.Context, key string, i int) error {
	node := newRawNode(c, i)
	w, err := node.connect(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	return node.register(ctx, w, key)
}
