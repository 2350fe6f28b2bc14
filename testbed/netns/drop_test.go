package netns_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

const (
	dropLarge = 200_000_000 // of one file; the benchmark's are ten times as large
	dropCut   = 48_000_000  // of one whose transfer is cut
)

// dropScene is a home whose router keeps what the mesh sends in a folder, a stock phone of its owner's, one of somebody else's,
// and two things at home, the first of which may send into the mesh.
type dropScene struct {
	*homeScene
	phone, bob *netns.StockPeer
	nas, tv    *netns.Host
	folder     string // where the mesh's files land
	serial     byte   // of the last file made
}

// TestDrop: files go between stock clients and the router whole, by any name, over cuts, and nowhere else; what does not fit is
// refused in words; and a thing at home that runs no client sends them by a plain PUT.
func TestDrop(t *testing.T) {
	s := openDrop(t)
	for _, part := range []struct {
		name string
		do   func(*dropScene, *testing.T)
	}{
		{"taken", (*dropScene).taken}, {"hostile", (*dropScene).hostile}, {"many", (*dropScene).many},
		{"cut", (*dropScene).cut}, {"killed", (*dropScene).killed},
		{"sent", (*dropScene).sent}, {"sent again", (*dropScene).sentAgain},
		{"others", (*dropScene).others}, {"gateway", (*dropScene).gateway},
		{"full", (*dropScene).full}, {"unmounted", (*dropScene).unmounted}, {"inbox", (*dropScene).inbox},
	} {
		s.lab.Run(part.name, func(t *testing.T) { part.do(s, t) })
	}
}

func openDrop(t *testing.T) *dropScene {
	t.Helper()
	lab := netns.New(t)
	s := &dropScene{homeScene: &homeScene{t: t, lab: lab, home: lab.Home(netns.Public)}, folder: filepath.Join(lab.Dir(), "usb")}
	if err := os.Mkdir(s.folder, 0o700); err != nil {
		t.Fatal(err)
	}
	s.nas, s.tv = lab.Device(s.home, "nas", 51), lab.Device(s.home, "tv", 52)
	s.mesh = lab.HomeMesh(s.home.Router, s.options(fmt.Sprintf("folder = %q\nkeep_free = \"1MB\"\n", s.folder)))
	s.phone, s.bob = s.client("phone", netns.Public, netns.StockVersions()[0]), s.client("bob", netns.Public, netns.StockVersions()[0])
	s.letIn(s.phone)
	s.letIn(s.bob, "--user", "bob")
	for _, p := range []*netns.StockPeer{s.phone, s.bob} {
		wantReach(t, p.Host, s.addrs("home")...)
	}
	for _, h := range []*netns.Host{s.nas, s.tv} {
		h.Resolver(netip.MustParseAddr("100.100.100.100"))
	}
	return s
}

// options is the home with this in its [drop].
func (s *dropScene) options(drop string) netns.HomeOptions {
	return netns.HomeOptions{URL: "http://home.test", Expose: "chosen", Policy: allMay, OtherTOML: "[drop]\n" + drop,
		Devices: []string{"nas=192.168.77.51", "nas=fd77:77::51", "tv=192.168.77.52", "tv=fd77:77::52"}}
}

// file makes a file of the given name that is like no other, and gives its path and the SHA-256 of what it holds.
func (s *dropScene) file(name string, size int64) (path, sum string) {
	s.t.Helper()
	s.serial++
	dir := filepath.Join(s.lab.Dir(), "outgoing", strconv.Itoa(int(s.serial)))
	path = filepath.Join(dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	digest := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(f, digest)}, netns.Payload(s.serial, size), make([]byte, 1<<20)); err != nil {
		s.t.Fatal(err)
	}
	return path, hex.EncodeToString(digest.Sum(nil))
}

// cp runs `tailscale file cp` on a stock client, towards the router.
func (s *dropScene) cp(from *netns.StockPeer, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return from.CLI(ctx, append(append([]string{"file", "cp"}, args...), s.addrs("home")[0].String()+":")...)
}

// mustCp is cp of what has to arrive.
func (s *dropScene) mustCp(t *testing.T, args ...string) {
	t.Helper()
	if out, err := s.cp(s.phone, args...); err != nil {
		t.Fatalf("file cp %q: %v\n%s", args, err, out)
	}
}

// seen is the names in a folder of the daemon's that its owner sees.
func (s *dropScene) seen(t *testing.T, dir string) []string {
	t.Helper()
	all, err := os.ReadDir(s.mesh.Sees(dir))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range all {
		if !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names
}

// wantFile compares a file with what was sent.
func wantFile(t *testing.T, path, sum string) {
	t.Helper()
	if got, err := fileSum(path); err != nil || got != sum {
		t.Errorf("%s holds %s, was sent as %s: %v", filepath.Base(path), got, sum, err)
	}
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	digest := sha256.New()
	_, err = io.CopyBuffer(struct{ io.Writer }{digest}, f, make([]byte, 1<<20))
	return hex.EncodeToString(digest.Sum(nil)), err
}

// taken: what `tailscale file cp` sends is there under its name when it says so, whatever its size; the daemon's memory stays
// as it was.
func (s *dropScene) taken(t *testing.T) {
	before := s.mesh.Memory("VmRSS")
	s.forgetPeak(t)
	for _, f := range []struct {
		name string
		size int64
	}{{"one byte", 1}, {"nothing", 0}, {"Фото с моря 🏖 ü.jpg", 70_000}, {"-rf", 9}, {"large.bin", dropLarge}} {
		path, sum := s.file(f.name, f.size)
		start := time.Now()
		s.mustCp(t, path)
		wantFile(t, filepath.Join(s.folder, f.name), sum)
		t.Logf("%s: %d bytes in %v", f.name, f.size, time.Since(start).Round(time.Millisecond))
	}
	peak := s.mesh.Memory("VmHWM")
	if t.Logf("resident before %.1f MB, at most %.1f MB", before, peak); peak > before+16 {
		t.Errorf("a large file takes %.1f MB of memory", peak-before)
	}
}

// forgetPeak makes VmHWM begin anew.
func (s *dropScene) forgetPeak(t testing.TB) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.mesh.Pid()), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// peerAPI is where a stock client finds a node's door for other members, in IPv4 or IPv6.
func peerAPI(t *testing.T, from *netns.StockPeer, node string, six bool) string {
	t.Helper()
	st, err := from.Status()
	if err != nil {
		t.Fatal(err)
	}
	n, err := st.PeerNamed(node)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(n.PeerAPIURL, func(u string) bool { return strings.Contains(u, "[") == six })
	if i < 0 {
		t.Fatalf("%s tells %s no door: %q", node, from.Host.Name, n.PeerAPIURL)
	}
	return n.PeerAPIURL[i]
}

// put sends text by a bare PUT and gives the answer's code, 0 if there was none, and body.
func put(ctx context.Context, h *netns.Host, url, text string) (code int, body string) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, err := h.RunPlain(ctx, "curl", "-sS", "--globoff", "--path-as-is", "-X", "PUT", "-w", "\n%{http_code}", "--data-binary", text, url)
	if err != nil {
		return 0, out
	}
	i := strings.LastIndexByte(out, '\n')
	code, _ = strconv.Atoi(out[i+1:])
	return code, out[:i]
}

// hostile: names made to get out of the folder, or to be taken for something else, are refused or made harmless.
func (s *dropScene) hostile(t *testing.T) {
	canary := filepath.Join(s.lab.Dir(), "hostile-canary")
	if err := os.WriteFile(canary, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	before, taken := s.seen(t, s.folder), 0
	for i, name := range []string{
		"..%2Fhostile-canary", "../hostile-canary", "%2e%2e%2fhostile-canary", "..%5Chostile-canary", "%2Fetc%2Fhostile", "/hostile", "//hostile", "a%2F..%2F..%2Fhostile",
		"hostile%00.jpg", "%00", "hostile%0A.jpg", "hostile%0D%0AX:%20y", "hostile%1B[2J", ".hostile", "..", ".", "%2e%2e", "", "%20", "hostile%7F",
		"hostile.partial", "hostile.deleted", "hostile" + strings.Repeat("x", 249), "hostile" + strings.Repeat("x", 2000), "hostile" + strings.Repeat("%C3%BC", 125),
		"hostile%FF%FE", "hostile%ED%A0%80", "%E2%80%AEgpj.hostile", "CON", "nul.hostile", "hostile:stream", "hostile|rm", "hostile%3F%2A", "hostile.", "hostile%20", "~hostile", "$(hostile)", "%zz",
	} {
		door := peerAPI(t, s.phone, "home", i%2 == 1)
		code, body := put(t.Context(), s.phone.Host, door+"/v0/put/"+name, fmt.Sprint("hostile ", i))
		if code == 200 {
			taken++
		}
		if code != 200 && (code < 400 || code >= 500) {
			t.Errorf("%q is answered with %d %s", name, code, body)
		}
	}
	t.Logf("taken: %d", taken)
	wantFileText(t, canary, "mine")
	now := s.seen(t, s.folder)
	if len(now) != len(before)+taken {
		t.Errorf("%d hostile files were taken, there are %d more: %q", taken, len(now)-len(before), now)
	}
	for _, name := range now {
		if info, err := os.Lstat(filepath.Join(s.folder, name)); err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o111 != 0 {
			t.Errorf("%q: %v %v", name, info, err)
		}
		if strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' || r == 0xfffd }) || len(name) > 255 {
			t.Errorf("the owner finds a file named %q", name)
		}
	}
	for _, dir := range []string{"/", "/etc", "/tmp", s.mesh.State, filepath.Dir(s.folder), filepath.Dir(s.mesh.State)} {
		_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if e != nil && e.IsDir() && path != dir {
				return fs.SkipDir
			}
			if path != canary && err == nil && strings.Contains(path, "hostile") {
				t.Errorf("it got out: %s", path)
			}
			return nil
		})
	}
}

func wantFileText(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s holds %q, want %q: %v", path, got, want, err)
	}
}

// many: ten files at once arrive, and three of one name do so beside each other.
func (s *dropScene) many(t *testing.T) {
	type sent struct{ path, name, sum string }
	var all []sent
	for i := range 13 {
		name := fmt.Sprintf("many-%d.bin", min(i, 10))
		path, sum := s.file(name, 3_000_000)
		all = append(all, sent{path, name, sum})
	}
	if err := together(len(all), func(i int) error {
		out, err := s.cp(s.phone, all[i].path)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, f := range all[:10] {
		wantFile(t, filepath.Join(s.folder, f.name), f.sum)
	}
	var same []string
	for _, name := range s.seen(t, s.folder) {
		if strings.HasPrefix(name, "many-10") {
			sum, err := fileSum(filepath.Join(s.folder, name))
			if err != nil {
				t.Error(err)
			}
			same = append(same, sum)
		}
	}
	want := []string{all[10].sum, all[11].sum, all[12].sum}
	if slices.Sort(want); !slices.Equal(slices.Sorted(slices.Values(same)), want) {
		t.Errorf("three files of one name: there are %d, or others", len(same))
	}
}

// together calls f for 0 to n-1, all at the same time.
func together(n int, f func(i int) error) error {
	errs := make([]error, n)
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() { errs[i] = f(i) })
	}
	group.Wait()
	return errors.Join(errs...)
}

// half gives the first half of a file to read, and has no end.
func half(t *testing.T, path string, size int64) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer f.Close()
		_, _ = io.CopyN(w, f, size/2)
	}()
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return r
}

// sentBytes is how many bytes an interface has sent.
func sentBytes(t *testing.T, h *netns.Host, ifname string) int64 {
	t.Helper()
	out, err := h.Output(t.Context(), "cat", "/sys/class/net/"+ifname+"/statistics/tx_bytes")
	n, perr := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err := errors.Join(err, perr); err != nil {
		t.Fatal(err)
	}
	return n
}

// awaitSent waits until an interface has sent so many bytes.
func awaitSent(t *testing.T, h *netns.Host, ifname string, n int64) {
	t.Helper()
	netns.Eventually(t, time.Minute, "half of it is on its way", func() error {
		if now := sentBytes(t, h, ifname); now < n {
			return fmt.Errorf("%d bytes of %d", now, n)
		}
		return nil
	})
}

// startHalf has the phone send half of a file, and gives how to end that.
func (s *dropScene) startHalf(t *testing.T, path string, size int64) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := s.phone.Cmd(ctx, "file", "cp", "--name="+filepath.Base(path), "-", s.addrs("home")[0].String()+":")
	cmd.Stdin = half(t, path, size)
	before := sentBytes(t, s.phone.Host, "tailscale0")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		cancel()
		_ = cmd.Wait() // it was killed
	})
	t.Cleanup(end)
	awaitSent(t, s.phone.Host, "tailscale0", before+size/2)
	return end
}

// cut: the connection dies in the middle, of which the router hears nothing. Sent again, at once, the file arrives, and what had
// arrived before is not sent a second time.
func (s *dropScene) cut(t *testing.T) {
	path, sum := s.file("cut.bin", dropCut)
	home := s.addrs("home")
	end := s.startHalf(t, path, dropCut)
	s.phone.Host.NFT(fmt.Sprintf(`table inet cut { chain out { type filter hook output priority 0;
		ip daddr %s meta l4proto tcp reject with tcp reset
		ip6 daddr %s meta l4proto tcp reject with tcp reset
	}; }`, home[0], home[1]))
	end()
	if slices.Contains(s.seen(t, s.folder), "cut.bin") {
		t.Error("half a file is shown as one")
	}
	s.phone.Host.NFT("delete table inet cut")
	before := sentBytes(t, s.phone.Host, "tailscale0")
	s.mustCp(t, path)
	wantFile(t, filepath.Join(s.folder, "cut.bin"), sum)
	if again := sentBytes(t, s.phone.Host, "tailscale0") - before; again > dropCut*3/4 {
		t.Errorf("%d of %d bytes were sent after the cut", again, dropCut)
	} else {
		t.Logf("%d of %d bytes were sent after the cut", again, dropCut)
	}
	if n := slices.IndexFunc(s.seen(t, s.folder), func(n string) bool { return strings.HasPrefix(n, "cut") && n != "cut.bin" }); n >= 0 {
		t.Errorf("there is more than one: %q", s.seen(t, s.folder))
	}
}

// killed: the daemon dies amid a transfer. What is shown afterwards is whole, and the same file is taken again.
func (s *dropScene) killed(t *testing.T) {
	path, sum := s.file("killed.bin", dropCut)
	end := s.startHalf(t, path, dropCut)
	s.mesh.Kill()
	end()
	s.mesh.Start()
	if slices.Contains(s.seen(t, s.folder), "killed.bin") {
		t.Error("half a file is shown as one")
	}
	netns.Eventually(t, 30*time.Second, "the phone sends it again", func() error {
		out, err := s.cp(s.phone, path)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	wantFile(t, filepath.Join(s.folder, "killed.bin"), sum)
}

// fetched is what has arrived at the phone, by name, moved to a new folder.
func (s *dropScene) fetched(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(s.lab.Dir(), "fetched")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := s.phone.CLI(t.Context(), "file", "get", "--conflict=rename", dir); err != nil {
		t.Fatalf("file get: %v\n%s", err, out)
	}
	return dir
}

// send runs `subnetd send`, and gives its exit code.
func (s *dropScene) send(args ...string) (string, int) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := s.mesh.CLIContext(ctx, append([]string{"send"}, args...)...)
	return out, exitCode(err)
}

// sent: what the router sends arrives at a stock client, under its name, ten at once too. Wrong words are refused.
func (s *dropScene) sent(t *testing.T) {
	sums := map[string]string{}
	var paths []string
	for _, f := range []struct {
		name string
		size int64
	}{{"one byte", 1}, {"nothing", 0}, {"Søndag 🎈.jpg", 70_000}, {"large.bin", dropLarge}} {
		path, sum := s.file(f.name, f.size)
		sums[f.name], paths = sum, append(paths, path)
	}
	before := s.mesh.Memory("VmRSS")
	s.forgetPeak(t)
	start := time.Now()
	if out, code := s.send(append(paths, "phone")...); code != 0 {
		t.Fatalf("send: %d\n%s", code, out)
	}
	t.Logf("sent in %v", time.Since(start).Round(time.Millisecond))
	peak := s.mesh.Memory("VmHWM")
	if t.Logf("resident before %.1f MB, at most %.1f MB", before, peak); peak > before+16 {
		t.Errorf("a large file takes %.1f MB of memory", peak-before)
	}
	var many []string
	for i := range 10 {
		path, sum := s.file(fmt.Sprintf("many-%d.bin", i), 3_000_000)
		sums[filepath.Base(path)], many = sum, append(many, path)
	}
	if err := together(len(many), func(i int) error {
		if out, code := s.send(many[i], "phone.mesh.internal"); code != 0 {
			return fmt.Errorf("send: %d\n%s", code, out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	dir := s.fetched(t)
	for name, sum := range sums {
		wantFile(t, filepath.Join(dir, name), sum)
	}
	s.sentWrong(t, paths[0])
}

func (s *dropScene) sentWrong(t *testing.T, path string) {
	for _, w := range []struct {
		args []string
		code int
		say  string
	}{
		{nil, 2, "usage"},
		{[]string{"phone"}, 2, "usage"},
		{[]string{path, "nobody"}, 1, "nobody"},
		{[]string{filepath.Join(s.lab.Dir(), "nowhere"), "phone"}, 1, "nowhere"},
		{[]string{s.lab.Dir(), "phone"}, 1, "director"},
		{[]string{path, "bob"}, 1, "bob"},
	} {
		out, code := s.send(w.args...)
		if code != w.code || !strings.Contains(strings.ToLower(out), w.say) {
			t.Errorf("send %q: %d, want %d with %q\n%s", w.args, code, w.code, w.say, out)
		}
	}
	for _, name := range []string{"../out", "a/b", "..", "", "a\nb"} {
		cmd := s.mesh.Cmd(t.Context(), "send", "--name", name, "-", "phone")
		cmd.Stdin = strings.NewReader("text")
		if out, err := cmd.CombinedOutput(); err == nil {
			t.Errorf("sent under the name %q: %s", name, out)
		}
	}
}

// sentAgain: `send` dies in the middle; said again, it goes on where it was.
func (s *dropScene) sentAgain(t *testing.T) {
	path, sum := s.file("again.bin", dropCut)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	before := sentBytes(t, s.home.Router, "mesh0")
	cmd := s.mesh.Cmd(ctx, "send", "--name", "again.bin", "-", "phone")
	cmd.Stdin = half(t, path, dropCut)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	awaitSent(t, s.home.Router, "mesh0", before+dropCut/2)
	cancel()
	if err := cmd.Wait(); err == nil {
		t.Error("half of a file was sent, and that is a success")
	}
	before = sentBytes(t, s.home.Router, "mesh0")
	netns.Eventually(t, 20*time.Second, "it is sent again", func() error { // the phone first notices that the first one ended
		if out, code := s.send(path, "phone"); code != 0 {
			return fmt.Errorf("%d: %s", code, out)
		}
		return nil
	})
	if again := sentBytes(t, s.home.Router, "mesh0") - before; again > dropCut*3/4 {
		t.Errorf("%d of %d bytes were sent after the cut", again, dropCut)
	} else {
		t.Logf("%d of %d bytes were sent after the cut", again, dropCut)
	}
	wantFile(t, filepath.Join(s.fetched(t), "again.bin"), sum)
}

// others: who is not the owner's and has no grant, is at home, or is nobody, puts nothing here. A grant lets him.
func (s *dropScene) others(t *testing.T) {
	before := s.seen(t, s.folder)
	door := peerAPI(t, s.bob, "home", false) + "/v0/put/from-bob"
	if code, body := put(t.Context(), s.bob.Host, door, "text"); code != 403 {
		t.Errorf("bob is answered with %d %s", code, body)
	}
	for _, h := range []*netns.Host{s.nas, s.lab.Client("stranger", netns.Public)} {
		u, err := url.Parse(door)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []string{u.Host, netip.AddrPortFrom(s.home.Router.Addr4, netip.MustParseAddrPort(u.Host).Port()).String()} {
			if code, body := put(t.Context(), h, "http://"+at+"/v0/put/from-nobody", "text"); code != 0 && code != 403 {
				t.Errorf("%s at %s is answered with %d %s", h.Name, at, code, body)
			}
		}
	}
	if now := s.seen(t, s.folder); !slices.Equal(now, before) {
		t.Errorf("there is more than before: %q", now)
	}
	if err := s.mesh.SetPolicy(`{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
		"grants": [{"src": ["bob@"], "dst": ["*"], "app": {"https://tailscale.com/cap/file-send": [{}]}}]}`); err != nil {
		t.Fatal(err)
	}
	netns.Eventually(t, 10*time.Second, "bob may send by a grant", func() error {
		if code, body := put(t.Context(), s.bob.Host, door, "text"); code != 200 {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	wantFileText(t, filepath.Join(s.folder, "from-bob"), "text")
}

// upload is what a thing at home does that runs no client.
func upload(t *testing.T, h *netns.Host, path, url string, flags ...string) (code int, body string) {
	t.Helper()
	out, err := h.RunPlain(t.Context(), "curl", append(flags, "-sS", "--max-time", "60", "-w", "\n%{http_code}", "-T", path, url)...)
	if err != nil {
		t.Fatalf("%s uploads to %s: %v\n%s", h.Name, url, err, out)
	}
	i := strings.LastIndexByte(out, '\n')
	code, _ = strconv.Atoi(out[i+1:])
	return code, strings.TrimSpace(out[:i])
}

// gateway: a thing at home that may sends to a stock client by a plain PUT; others are refused in words, and may once they are
// allowed.
func (s *dropScene) gateway(t *testing.T) {
	const at = "http://drop.home.mesh.internal/"
	path, sum := s.file("photo ü.jpg", 20_000_000)
	if code, body := upload(t, s.nas, path, at+"phone/"); code != 403 || body == "" {
		t.Errorf("nobody may yet, and it is answered with %d %q", code, body)
	}
	say(t, s.mesh.Subnetd, "inbox", "allow", "nas")
	for i, flag := range []string{"-4", "-6"} {
		code, body := upload(t, s.nas, path, at+"phone/"+[]string{"", "other.jpg"}[i], flag)
		if code != 201 || body == "" || strings.Contains(body, "\n") {
			t.Errorf("curl %s: %d %q", flag, code, body)
		}
	}
	dir := s.fetched(t)
	wantFile(t, filepath.Join(dir, "photo ü.jpg"), sum)
	wantFile(t, filepath.Join(dir, "other.jpg"), sum)
	for _, w := range []struct {
		from *netns.Host
		url  string
		code int
	}{
		{s.tv, at + "phone/", 403}, {s.nas, at + "nobody/", 404}, {s.nas, at + "phone/..%2Fout", 400}, {s.nas, at + "phone/a%00b", 400}, {s.nas, at + "bob/", 403},
	} {
		if code, body := upload(t, w.from, path, w.url); code != w.code || body == "" {
			t.Errorf("%s to %s: %d %q, want %d", w.from.Name, w.url, code, body, w.code)
		}
	}
	say(t, s.mesh.Subnetd, "inbox", "allow", "tv")
	if code, body := upload(t, s.tv, path, at+"phone/"); code != 201 {
		t.Errorf("the TV is allowed, and answered with %d %q", code, body)
	}
	wantFile(t, filepath.Join(s.fetched(t), "photo ü.jpg"), sum)
	say(t, s.mesh.Subnetd, "inbox", "forbid", "tv")
	if code, body := upload(t, s.tv, path, at+"phone/"); code != 403 {
		t.Errorf("the TV is forbidden again, and answered with %d %q", code, body)
	}
}

// disk is a small disk of the daemon's, where files go from now on. It is where real is, too.
func (s *dropScene) disk(t *testing.T, name string) (dir, real string) {
	t.Helper()
	dir, real = filepath.Join(s.lab.Dir(), name), filepath.Join(s.lab.Dir(), name+"-real")
	for _, d := range []string{dir, real} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s.mesh.Mount("-t", "tmpfs", "-o", "size=24m", "none", real)
	s.mesh.Mount("--bind", real, dir)
	say(t, s.mesh.Subnetd, "inbox", "folder", dir)
	return dir, real
}

// refused wants the phone to be told that a file is not taken, with a word that says why, and that nothing of it is seen.
func (s *dropScene) refused(t *testing.T, dir, word string, in io.Reader, args ...string) {
	t.Helper()
	before := s.seen(t, dir)
	cmd := s.phone.Cmd(t.Context(), append(append([]string{"file", "cp"}, args...), s.addrs("home")[0].String()+":")...)
	cmd.Stdin = in
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(strings.ToLower(string(out)), word) {
		t.Errorf("file cp %q: %v, want it refused with %q:\n%s", args, err, word, out)
	}
	t.Logf("%s", bytes.TrimSpace(out))
	if now := s.seen(t, dir); !slices.Equal(now, before) {
		t.Errorf("before there were %q, now %q", before, now)
	}
}

// full: what does not fit on the disk is refused, at once if its size is told, else when the disk is full. Afterwards it is as
// before, and what fits is taken.
func (s *dropScene) full(t *testing.T) {
	dir, _ := s.disk(t, "stick")
	small, sum := s.file("small.bin", 5_000_000)
	large, _ := s.file("large.bin", 40_000_000)
	s.refused(t, dir, "space", nil, large)
	in, err := os.Open(large)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	s.refused(t, dir, "space", in, "--name=endless.bin", "-")
	s.mustCp(t, small)
	wantFile(t, s.mesh.Sees(filepath.Join(dir, "small.bin")), sum)
}

// unmounted: a disk that is pulled out leaves its folder behind, and nothing is written there. Back in, it is used again.
func (s *dropScene) unmounted(t *testing.T) {
	dir, real := s.disk(t, "drive")
	path, sum := s.file("small.bin", 1_000_000)
	s.mesh.Unmount(dir)
	s.refused(t, dir, "folder", nil, path)
	if all, err := os.ReadDir(s.mesh.Sees(dir)); err != nil || len(all) > 0 {
		t.Errorf("something is where the disk was: %v %v", all, err)
	}
	s.mesh.Mount("--bind", real, dir)
	s.mustCp(t, path)
	wantFile(t, s.mesh.Sees(filepath.Join(dir, "small.bin")), sum)
	s.mesh.Unmount(dir)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if out, err := s.cp(s.phone, path); err == nil {
		t.Errorf("taken without a folder: %s", out)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder was made anew: %v", err)
	}
}

// inbox: without a folder files wait at the router, as many as its quota allows, until they are fetched.
func (s *dropScene) inbox(t *testing.T) {
	s.mesh.SetOptions(s.options("quota = \"3MB\"\nkeep_free = \"1MB\"\n"))
	netns.Eventually(t, 10*time.Second, "there is an inbox", func() error {
		if out := say(t, s.mesh.Subnetd, "inbox", "folder"); strings.Contains(out, s.lab.Dir()+"/drive") {
			return errors.New(out)
		}
		return nil
	})
	first, sum := s.file("Überraschung.bin", 2_000_000)
	second, sum2 := s.file("second.bin", 2_000_000)
	s.mustCp(t, first)
	listed := say(t, s.mesh.Subnetd, "inbox")
	if !strings.Contains(listed, "Überraschung.bin") || !strings.Contains(listed, "phone") {
		t.Errorf("the inbox tells neither what it is nor whose:\n%s", listed)
	}
	if out, err := s.cp(s.phone, second); err == nil || !strings.Contains(out, "quota") && !strings.Contains(out, "full") {
		t.Errorf("more than the quota: %v\n%s", err, out)
	}
	if now := say(t, s.mesh.Subnetd, "inbox"); strings.Contains(now, "second.bin") {
		t.Errorf("a file that was refused is in the inbox:\n%s", now)
	}
	dir := filepath.Join(s.lab.Dir(), "got")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	say(t, s.mesh.Subnetd, "inbox", "get", "Überraschung.bin", dir)
	wantFile(t, filepath.Join(dir, "Überraschung.bin"), sum)
	_, _ = s.mesh.CLI("inbox", "remove", "Überraschung.bin") // unless fetching it has done so
	s.mustCp(t, second)
	s.mesh.Restart()
	say(t, s.mesh.Subnetd, "inbox", "get", "--all", dir)
	wantFile(t, filepath.Join(dir, "second.bin"), sum2)
	for _, args := range [][]string{{"get", "../../usb/large.bin", dir}, {"remove", "../state"}, {"get", "nothing", dir}, {"remove", "nothing"}} {
		if out, err := s.mesh.CLI(append([]string{"inbox"}, args...)...); exitCode(err) == 0 {
			t.Errorf("inbox %q: %s", args, out)
		}
	}
}
