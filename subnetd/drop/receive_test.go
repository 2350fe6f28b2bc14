package drop

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"subnetd/subnetd/mesh"

	"golang.org/x/sys/unix"
)

func TestReceive(t *testing.T) {
	r := newRig(t, Settings{})
	photo := random(3*block + 17)
	r.put("photo.jpg", phone, photo)
	r.put("photo.jpg", phone, []byte("another"))
	r.put("photo.jpg", laptop, photo)
	r.put("empty", phone, nil)
	r.put("Zoë 日本.txt", phone, []byte("x"))
	if code, text := r.do("PUT", "chunked", phone, 0, io.MultiReader(bytes.NewReader(photo))); code != 200 {
		t.Errorf("chunked: %d %s", code, text)
	}
	r.only(r.inbox, map[string]string{
		"photo.jpg": string(photo), "photo (1).jpg": "another", "photo (2).jpg": string(photo), "empty": "", "Zoë 日本.txt": "x", "chunked": string(photo),
	})
	d := r.s.Show()
	var names []string
	for _, f := range d.Files {
		names = append(names, f.Name+" of "+f.From)
	}
	slices.Sort(names)
	want := []string{"Zoë 日本.txt of phone.mesh", "chunked of phone.mesh", "empty of phone.mesh", "photo (1).jpg of phone.mesh", "photo (2).jpg of laptop.mesh", "photo.jpg of phone.mesh"}
	if !slices.Equal(names, want) {
		t.Errorf("shown %q, want %q", names, want)
	}
	if want := int64(3*len(photo) + 8); d.Used != want || len(d.Transfers) != 0 || d.Missing != "" {
		t.Errorf("used %d, want %d; %+v", d.Used, want, d)
	}
	if r.changes.Load() == 0 {
		t.Error("nobody was told")
	}
}

func TestWhoMay(t *testing.T) {
	r := newRig(t, Settings{})
	all := []mesh.Range{{From: guest.Addresses[0].Addr(), To: guest.Addresses[0].Addr()}}
	own := r.nm.Load().Self.Addresses
	to := []mesh.Range{{From: own[0].Addr(), To: own[0].Addr()}}
	grant := mesh.Grant{Srcs: all, Dsts: to, Caps: []string{mesh.CapSend}}
	for what, c := range map[string]struct {
		from   mesh.Node
		change func(*mesh.Netmap, *mesh.Node)
		want   bool
	}{
		"of its user": {phone, func(*mesh.Netmap, *mesh.Node) {}, true},
		"of another":  {guest, func(*mesh.Netmap, *mesh.Node) {}, false},
		"granted":     {guest, func(nm *mesh.Netmap, _ *mesh.Node) { nm.Grants = []mesh.Grant{grant} }, true},
		"another capability": {guest, func(nm *mesh.Netmap, _ *mesh.Node) {
			grant := grant
			grant.Caps = []string{mesh.CapTarget}
			nm.Grants = []mesh.Grant{grant}
		}, false},
		"granted to another":      {phone, func(nm *mesh.Netmap, n *mesh.Node) { nm.Grants = []mesh.Grant{grant}; n.User = 2 }, false},
		"granted elsewhere":       {guest, func(nm *mesh.Netmap, _ *mesh.Node) { grant := grant; grant.Dsts = all; nm.Grants = []mesh.Grant{grant} }, false},
		"it is tagged":            {phone, func(_ *mesh.Netmap, n *mesh.Node) { n.Tags = []string{"tag:x"} }, false},
		"we are tagged":           {phone, func(nm *mesh.Netmap, _ *mesh.Node) { nm.Self.Tags = []string{"tag:x"} }, false},
		"granted to what is ours": {guest, func(nm *mesh.Netmap, _ *mesh.Node) { nm.Grants = []mesh.Grant{grant}; nm.Self.Tags = []string{"tag:x"} }, true},
		"unsigned":                {phone, func(_ *mesh.Netmap, n *mesh.Node) { n.Unsigned = true }, false},
		"without file sharing":    {phone, func(nm *mesh.Netmap, _ *mesh.Node) { nm.Self.Caps = []string{"x"} }, false},
		"by a device behind it": {guest, func(nm *mesh.Netmap, n *mesh.Node) {
			nm.Grants = []mesh.Grant{grant}
			n.Addresses = prefixes("100.64.0.9/32", "100.64.0.4/32")
		}, false},
	} {
		nm := netmap()
		c.change(nm, &c.from)
		if got := May(nm, &c.from); got != c.want {
			t.Errorf("%s: %v", what, got)
		}
	}
	if May(nil, &phone) {
		t.Error("without a mesh somebody may")
	}
	if code, text := r.do("PUT", "x", guest, 0, strings.NewReader("x")); code != http.StatusForbidden || !strings.Contains(text, "policy") {
		t.Errorf("refused with %d %q", code, text)
	}
	if code, _ := r.do("GET", "x", guest, 0, nil); code != http.StatusForbidden {
		t.Errorf("asking is answered %d", code)
	}
	if _, err := os.Stat(r.inbox); err == nil {
		r.only(r.inbox, nil)
	}
}

func TestHostileNames(t *testing.T) {
	r := newRig(t, Settings{})
	for _, name := range []string{"../x", "/etc/x", "a/b", `..\x`, "..", ".", "", "a\x00b", "a\nb", "\xff\xfe", strings.Repeat("n", 256)} {
		if code, _ := r.do("PUT", name, phone, 0, strings.NewReader("x")); code != http.StatusBadRequest {
			t.Errorf("%q is answered %d", name, code)
		}
	}
	for _, path := range []string{"a/../../x", "%2e%2e/x", "..%2f..%2fx", "%zz"} {
		q, err := http.NewRequestWithContext(t.Context(), "PUT", r.url+Prefix, strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		q.URL.Opaque = Prefix + path
		q.Header.Set("From", phone.Name)
		if res, err := http.DefaultClient.Do(q); err == nil {
			res.Body.Close()
			if res.StatusCode != http.StatusBadRequest {
				t.Errorf("%q is answered %d", path, res.StatusCode)
			}
		}
	}
	r.put(strings.Repeat("n", 255), phone, []byte("x"))
	r.put(".profile", phone, []byte("y"))
	r.only(r.inbox, map[string]string{strings.Repeat("n", 255): "x", "_profile": "y"})
	if all, err := os.ReadDir(filepath.Dir(r.inbox)); err != nil || len(all) != 1 {
		t.Errorf("beside the inbox is %v, %v", all, err)
	}
}

func TestMethodsAndRanges(t *testing.T) {
	r := newRig(t, Settings{})
	if code, _ := r.do("POST", "x", phone, 0, strings.NewReader("x")); code != http.StatusMethodNotAllowed {
		t.Errorf("POST is answered %d", code)
	}
	if code, _ := r.do("PUT", "x", phone, 5, strings.NewReader("x")); code != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("going on from nothing is answered %d", code)
	}
	for text, want := range map[string]int64{"": 0, "bytes=0-": 0, "bytes=65536-": 65536, "bytes=-5": -1, "bytes=5-9": -1, "bytes=5": -1, "5-": -1, "bytes=+5-": -1, "bytes=1-,2-": -1, "bytes=9223372036854775808-": -1} {
		if got, err := offsetOf(text); err == nil && got != want || (err != nil) != (want < 0) {
			t.Errorf("%q is %d, %v", text, got, err)
		}
	}
	r.only(r.inbox, nil)
}

// TestResume: what is there after a cut is told in blocks, and only the rest comes again.
func TestResume(t *testing.T) {
	r := newRig(t, Settings{})
	file := random(5*block + 100)
	half := 2*block + 33
	x := r.open("film.mkv", phone, 0, int64(len(file)))
	x.send(file[:half], "film.mkv", int64(half))
	x.c.Close()
	r.until(func() bool { return len(r.s.transfers()) == 0 })
	if d := r.s.Show(); len(d.Files) != 0 || d.Used != int64(half) {
		t.Errorf("of a half file is shown %+v", d)
	}
	if got := r.sums("film.mkv", laptop); len(got) != 0 {
		t.Errorf("another sender is told %v", got)
	}
	if got := r.sums("film.mkv", phone); !slices.Equal(got, sumsOf(file[:half])) {
		t.Errorf("the sender is told %v", got)
	}
	if code, text := r.do("PUT", "film.mkv", phone, int64(half), bytes.NewReader(file[half:])); code != 200 {
		t.Fatalf("the rest: %d %s", code, text)
	}
	r.only(r.inbox, map[string]string{"film.mkv": string(file)})
	if got := r.sums("film.mkv", phone); len(got) != 0 {
		t.Errorf("of a whole file is told %v", got)
	}
}

// TestResumeElsewhere: the file became another one; what is there is cut where it differs,
// also if it was longer.
func TestResumeElsewhere(t *testing.T) {
	for _, from := range []int{0, block, 2*block + 5} {
		r := newRig(t, Settings{})
		was := random(3 * block)
		x := r.open("f", phone, 0, int64(len(was)+1))
		x.send(was, "f", int64(len(was)))
		x.c.Close()
		r.until(func() bool { return len(r.s.transfers()) == 0 })
		if code, text := r.do("PUT", "f", phone, int64(from), strings.NewReader("the end")); code != 200 {
			t.Fatalf("%d %s", code, text)
		}
		r.only(r.inbox, map[string]string{"f": string(was[:from]) + "the end"})
	}
}

// TestTakenOver: a sender who was cut off without our hearing of it goes on at once.
func TestTakenOver(t *testing.T) {
	r := newRig(t, Settings{})
	file := random(4 * block)
	x := r.open("f", phone, 0, int64(len(file)))
	x.send(file[:block], "f", block)
	if got := r.sums("f", phone); !slices.Equal(got, sumsOf(file[:block])) {
		t.Fatalf("told %v", got)
	}
	if code, text := r.do("PUT", "f", phone, block, bytes.NewReader(file[block:])); code != 200 {
		t.Fatalf("%d %s", code, text)
	}
	if got := x.answer(); got != http.StatusConflict {
		t.Errorf("the one before is answered %d", got)
	}
	r.only(r.inbox, map[string]string{"f": string(file)})
}

// TestSameNameAtOnce: two files of one name that come at once from one sender are two.
func TestSameNameAtOnce(t *testing.T) {
	r := newRig(t, Settings{})
	r.s.silence = sometime // however slow this machine is
	a, b := random(2*block), random(block)
	x := r.open("f", phone, 0, int64(len(a)))
	x.send(a[:block], "f", block)
	told := make(chan []checksum)
	go func() { told <- r.sums("f", phone) }()
	r.until(func() bool {
		r.s.mu.Lock()
		defer r.s.mu.Unlock()
		return len(r.s.under) == 1 && r.s.under[0].moves != nil
	})
	x.send(a[block:block+1], "f", block+1)
	if got := <-told; len(got) != 0 {
		t.Errorf("of a file that arrives just now is told %v", got)
	}
	r.put("f", phone, b)
	if _, err := x.c.Write(a[block+1:]); err != nil {
		t.Fatal(err)
	}
	if got := x.answer(); got != 200 {
		t.Errorf("the first is answered %d", got)
	}
	r.only(r.inbox, map[string]string{"f": string(b), "f (1)": string(a)})
}

// TestMany: more than may be under way at once wait for their turn, and all arrive.
func TestMany(t *testing.T) {
	r := newRig(t, Settings{})
	want := map[string]string{}
	var all sync.WaitGroup
	var most int
	seen := func() {
		running := 0
		for _, t := range r.s.transfers() {
			if !t.Waits {
				running++
			}
		}
		most = max(most, running)
	}
	for i := range 20 {
		name, data := fmt.Sprint("f", i), random(3*block+i)
		want[name] = string(data)
		all.Go(func() { r.put(name, phone, data) })
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	r.until(func() bool {
		seen()
		select {
		case <-done:
			return true
		default:
			return false
		}
	})
	r.only(r.inbox, want)
	if most > mostPerPeer {
		t.Errorf("%d ran at once", most)
	}
}

func TestTurns(t *testing.T) {
	var q turns
	ends := []func(){}
	for i := range mostAtOnce {
		end, err := q.take(t.Context(), fmt.Sprint(i/mostPerPeer))
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, end)
	}
	got := make(chan error)
	for range mostQueuedPer {
		go func() {
			end, err := q.take(t.Context(), "z")
			if err == nil {
				end()
			}
			got <- err
		}()
	}
	r := &rig{T: t}
	r.until(func() bool { q.mu.Lock(); defer q.mu.Unlock(); return q.waitsAll == mostQueuedPer })
	if _, err := q.take(t.Context(), "z"); err != ErrBusy {
		t.Errorf("one more waits: %v", err)
	}
	for _, end := range ends {
		end()
		end() // counts once
	}
	for range mostQueuedPer {
		if err := <-got; err != nil {
			t.Error(err)
		}
	}
	if q.all != 0 || q.waitsAll != 0 || len(q.running)+len(q.waiting) != 0 || q.next != nil {
		t.Errorf("%+v is left", q.running)
	}
}

func TestQuota(t *testing.T) {
	r := newRig(t, Settings{Quota: 100_000})
	r.put("a", phone, random(60_000))
	refused := func(what string, offset int64, body io.Reader) {
		t.Helper()
		code, text := r.do("PUT", "b", phone, offset, body)
		if code != http.StatusInsufficientStorage || !strings.Contains(text, "quota") {
			t.Errorf("%s: %d %s", what, code, text)
		}
	}
	refused("too much", 0, bytes.NewReader(random(40_001)))
	refused("too much, of which nobody knew", 0, io.MultiReader(bytes.NewReader(random(40_001))))
	r.only(r.inbox, map[string]string{"a": string(random(60_000))})

	// What others were promised is gone, what is left of some is not.
	x := r.open("c", laptop, 0, 30_000)
	x.send(random(10), "c", 10)
	refused("with others", 0, bytes.NewReader(random(10_001)))
	r.put("d", phone, random(10_000))
	x.c.Close()
	r.until(func() bool { return len(r.s.transfers()) == 0 })
	r.put("e", phone, random(30_000))
	if err := r.s.Remove("a"); err != nil {
		t.Fatal(err)
	}
	r.put("b", phone, random(60_000))
	r.only(r.inbox, map[string]string{"b": string(random(60_000)), "d": string(random(10_000)), "e": string(random(30_000))})
}

// TestFullDisk: refused before it is begun if that is known, else when it happens; nothing
// is left that keeps the disk full.
func TestFullDisk(t *testing.T) {
	const mb = 1 << 20
	folder := t.TempDir()
	disk(t, folder, 8*mb)
	r := newRig(t, Settings{Folder: folder, KeepFree: mb})
	full := func(what string, body io.Reader) {
		t.Helper()
		code, text := r.do("PUT", "big", phone, 0, body)
		if code != http.StatusInsufficientStorage || !strings.Contains(text, "space") {
			t.Errorf("%s: %d %s", what, code, text)
		}
		r.only(folder, nil)
	}
	full("known", bytes.NewReader(make([]byte, 7*mb+1)))
	full("not known", io.MultiReader(bytes.NewReader(make([]byte, 7*mb+1))))
	r.s.Set(Settings{Folder: folder})
	full("to the last byte", io.MultiReader(bytes.NewReader(make([]byte, 9*mb))))
	r.s.Set(Settings{Folder: folder, KeepFree: mb})
	data := random(6 * mb)
	r.put("fits", phone, data)
	r.only(folder, map[string]string{"fits": string(data)})
}

// TestUnmounted: while the disk is not there nothing lands on what is below it.
func TestUnmounted(t *testing.T) {
	folder := t.TempDir()
	disk(t, folder, 1<<20)
	below := filepath.Join(folder, "photos")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, chosen := range []string{folder, below} {
		r := newRig(t, Settings{Folder: chosen})
		r.put("a", phone, []byte("a"))
		if m := r.saved.Load(); m == nil || *m != (Memory{chosen, folder}) {
			t.Errorf("remembered %+v", m)
		}
	}
	r := newRig(t, Settings{Folder: folder})
	r.put("a", phone, []byte("a"))
	if err := unix.Unmount(folder, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(below, 0o755); err != nil { // the same path on the disk below
		t.Fatal(err)
	}
	refused := func(r *rig, name string) {
		t.Helper()
		code, text := r.do("PUT", name, phone, 0, strings.NewReader("x"))
		if code != http.StatusServiceUnavailable || !strings.Contains(text, "not there") {
			t.Errorf("refused with %d %s", code, text)
		}
		if d := r.s.Show(); d.Missing == "" {
			t.Error("it is not shown")
		}
		if _, err := os.Stat(filepath.Join(below, name)); err == nil {
			t.Errorf("%s is on the disk below", name)
		}
	}
	refused(r, "b")
	again := newRig(t, Settings{}) // another life
	again.s.memory = *r.saved.Load()
	again.s.Set(Settings{Folder: folder})
	refused(again, "b")
	disk(t, folder, 1<<20)
	again.put("c", phone, []byte("c"))
	again.only(folder, map[string]string{"c": "c"})
	if err := unix.Unmount(folder, 0); err != nil {
		t.Fatal(err)
	}
	if err := again.s.Choose(below); err != nil { // the owner says that it is right so
		t.Fatal(err)
	}
	again.s.Set(Settings{Folder: below})
	again.put("d", phone, []byte("d"))
	again.only(below, map[string]string{"d": "d"})
	gone := newRig(t, Settings{Folder: filepath.Join(folder, "nowhere")})
	refused(gone, "e")
	if err := gone.s.Choose(filepath.Join(folder, "nowhere")); err == nil {
		t.Error("a folder that is not there is chosen")
	}
}

// TestFolder: files in a folder are its owner's, and nobody else's are touched.
func TestFolder(t *testing.T) {
	folder := t.TempDir()
	if err := os.Chmod(folder, 0o775); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "secret")
	for _, err := range []error{
		os.WriteFile(outside, []byte("mine"), 0o600), os.WriteFile(filepath.Join(folder, "a"), []byte("mine"), 0o600),
		os.Symlink(outside, filepath.Join(folder, "b")), os.Mkdir(filepath.Join(folder, "c"), 0o755),
		os.Symlink(outside, filepath.Join(folder, partName("2", "d", 0))),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r := newRig(t, Settings{Folder: folder})
	for _, name := range []string{"a", "b", "c"} {
		r.put(name, phone, []byte("new"))
		at := filepath.Join(folder, name+" (1)")
		b, err := os.ReadFile(at)
		if err != nil || string(b) != "new" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if info, err := os.Stat(at); err != nil || info.Mode() != 0o664 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	if code, _ := r.do("PUT", "d", phone, 0, strings.NewReader("new")); code == 200 {
		t.Error("a link is followed")
	}
	for _, at := range []string{outside, filepath.Join(folder, "a")} {
		if b, err := os.ReadFile(at); err != nil || string(b) != "mine" {
			t.Errorf("%s has %q, %v", at, b, err)
		}
	}
	d := r.s.Show()
	if len(d.Files) != 3 || d.Files[0].Name != "c (1)" || d.Files[0].From != "phone.mesh" || d.Folder != folder {
		t.Errorf("shown %+v", d)
	}
	if _, _, err := r.s.Open("a"); err == nil {
		t.Error("what the owner has in the folder is given away")
	}
}

func TestInbox(t *testing.T) {
	r := newRig(t, Settings{})
	r.put("a", phone, []byte("data"))
	f, size, err := r.s.Open("a")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || string(b) != "data" || size != 4 {
		t.Errorf("%q of %d, %v", b, size, err)
	}
	for _, name := range []string{"b", "", "..", "../drop.json", "/etc/passwd", ".hidden"} {
		if _, _, err := r.s.Open(name); code(err) != http.StatusNotFound {
			t.Errorf("%q: %v", name, err)
		}
		if err := r.s.Remove(name); code(err) != http.StatusNotFound {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := r.s.Remove("a"); err != nil {
		t.Error(err)
	}
	r.only(r.inbox, nil)
}

// TestStale: what nobody goes on with is not kept for ever.
func TestStale(t *testing.T) {
	r := newRig(t, Settings{})
	x := r.open("f", phone, 0, 100)
	x.send(random(50), "f", 50)
	r.now.Store(int64(2 * stale))
	r.s.Set(Settings{})
	if got := here(t, r.inbox); len(got) != 1 {
		t.Errorf("what is under way was removed: %v", got)
	}
	x.c.Close()
	r.until(func() bool { return len(r.s.transfers()) == 0 })
	r.now.Store(0)
	r.s.Set(Settings{})
	if got := here(t, r.inbox); len(got) != 1 {
		t.Errorf("there is %v", got)
	}
	r.now.Store(int64(stale + time.Minute))
	r.s.Set(Settings{})
	r.only(r.inbox, nil)
}

// TestProgress: who looks is told of progress at most twice a second.
func TestProgress(t *testing.T) {
	r := newRig(t, Settings{})
	tr := &transfer{}
	r.s.mu.Lock()
	r.s.add(tr)
	r.s.mu.Unlock()
	before := r.changes.Load()
	clock := time.Unix(1_000_000, 0)
	r.s.cfg.Now = func() time.Time { return clock }
	for range 1000 { // ten seconds
		clock = clock.Add(10 * time.Millisecond)
		r.s.moved(tr, 1)
	}
	if got := r.changes.Load() - before; got < 19 || got > 21 || tr.Done != 1000 {
		t.Errorf("told %d times, %d done", got, tr.Done)
	}
}
