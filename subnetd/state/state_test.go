package state

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"tailscale.com/types/key"
)

func open(t testing.TB) *Dir {
	t.Helper()
	d, err := Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func put(t testing.TB, d *Dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(d.path, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func ls(t testing.TB, d *Dir) []string {
	t.Helper()
	entries, err := os.ReadDir(d.path)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestIdentityRoundTrip(t *testing.T) {
	d := open(t)
	want := Identity{
		Machine: key.NewMachine(), Node: key.NewNode(), Server: key.NewMachine().Public(),
		Control: "https://control.example", Port: 41111, Inner: 42222, Conduit: 43333,
	}
	if err := d.Save(IdentityFile, want); err != nil {
		t.Fatal(err)
	}
	var got Identity
	found, err := d.Load(IdentityFile, &got)
	if !found || err != nil {
		t.Fatal(found, err)
	}
	if !got.Machine.Equal(want.Machine) || !got.Node.Equal(want.Node) || got.Server != want.Server ||
		got.Control != want.Control || got.Port != want.Port || got.Inner != want.Inner || got.Conduit != want.Conduit {
		t.Fatal("identity changed on its way through the disk")
	}
	for name, mode := range map[string]os.FileMode{".": 0o700, IdentityFile: 0o600, lockName: 0o600} {
		info, err := os.Stat(filepath.Join(d.path, name))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: mode %v, want %v (%v)", name, info.Mode().Perm(), mode, err)
		}
	}
}

// An identity before the first contact has zero keys.
func TestZeroRoundTrip(t *testing.T) {
	d := open(t)
	if err := d.Save(IdentityFile, Identity{}); err != nil {
		t.Fatal(err)
	}
	got := Identity{Port: 1}
	if found, err := d.Load(IdentityFile, &got); !found || err != nil || !got.Machine.IsZero() || !got.Server.IsZero() || got.Port != 0 {
		t.Fatal(found, err, got.Port)
	}
}

// An identity of a version before loads; the ports it lacks are not picked yet.
func TestOldIdentity(t *testing.T) {
	d := open(t)
	want := Identity{Machine: key.NewMachine(), Port: 41001}
	machine, err := want.Machine.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	put(t, d, IdentityFile, `{"machine": "`+string(machine)+`", "port": 41001}`)
	var got Identity
	if found, err := d.Load(IdentityFile, &got); !found || err != nil || !got.Machine.Equal(want.Machine) || got.Port != 41001 || got.Inner != 0 || got.Conduit != 0 {
		t.Errorf("found %v, %v, %+v", found, err, got)
	}
}

func TestLoadMissing(t *testing.T) {
	v := Wish{Down: true}
	found, err := open(t).Load(WishFile, &v)
	if found || err != nil || !v.Down {
		t.Fatal(found, err, v)
	}
}

func TestSaveSameContentWritesNothing(t *testing.T) {
	d := open(t)
	if err := d.Save(WishFile, Wish{Down: true}); err != nil {
		t.Fatal(err)
	}
	d.fsync = func(*os.File) error { t.Error("written again"); return nil }
	if err := d.Save(WishFile, Wish{Down: true}); err != nil {
		t.Fatal(err)
	}
}

func TestCorruptIsSetAside(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "zeros": "\x00\x00", "cut": `{"down": tr`, "type": `{"down": 7}`, "null": "null", "trailing": `{"down":true}x`,
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t)
			d.now = func() time.Time { return time.Unix(1000, 0) }
			put(t, d, WishFile, content)
			v := Wish{}
			found, err := d.Load(WishFile, &v)
			var ce *CorruptError
			if found || !errors.As(err, &ce) || v.Down {
				t.Fatal(found, err, v)
			}
			if want := filepath.Join(d.path, "wish.json.corrupt-1000"); ce.Aside != want || !strings.Contains(err.Error(), want) {
				t.Errorf("aside %q: %v", ce.Aside, err)
			}
			kept, err := os.ReadFile(ce.Aside)
			if err != nil || string(kept) != content {
				t.Errorf("kept %q, %v", kept, err)
			}
			if found, err := d.Load(WishFile, &v); found || err != nil {
				t.Errorf("second load: %v %v", found, err)
			}
		})
	}
}

func TestTooBigIsSetAside(t *testing.T) {
	d := open(t)
	put(t, d, WishFile, "{}")
	if err := os.Truncate(filepath.Join(d.path, WishFile), MaxSize+1); err != nil {
		t.Fatal(err)
	}
	var ce *CorruptError
	if _, err := d.Load(WishFile, &Wish{}); !errors.As(err, &ce) {
		t.Fatal(err)
	}
	if err := d.Save("big", strings.Repeat("x", MaxSize)); !errors.Is(err, errTooBig) {
		t.Fatal(err)
	}
}

// The clock of a router may stand still or jump back: the newest three stay.
func TestCorruptKeepsNewestThree(t *testing.T) {
	d := open(t)
	stamps := []int64{5000, 5000, 10, 20, 30}
	for i, s := range stamps {
		d.now = func() time.Time { return time.Unix(s, 0) }
		put(t, d, WishFile, fmt.Sprintf("bad %d", i))
		if _, err := d.Load(WishFile, &Wish{}); err == nil {
			t.Fatal("no error")
		}
	}
	want := []string{lockName, "wish.json.corrupt-5002", "wish.json.corrupt-5003", "wish.json.corrupt-5004"}
	if diff := cmp.Diff(want, ls(t, d)); diff != "" {
		t.Fatal(diff)
	}
	if b, _ := os.ReadFile(filepath.Join(d.path, "wish.json.corrupt-5004")); string(b) != "bad 4" {
		t.Fatalf("newest is %q", b)
	}
}

func TestOpenTidiesAndLocks(t *testing.T) {
	d := open(t)
	put(t, d, WishFile+tempSuffix, "half")
	put(t, d, "foreign", "stays")
	if _, err := Open(d.path); !errors.Is(err, ErrInUse) {
		t.Fatalf("second Open: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(d.path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if diff := cmp.Diff([]string{lockName, "foreign"}, ls(t, again)); diff != "" {
		t.Fatal(diff)
	}
}

func TestFullDisk(t *testing.T) {
	for _, fault := range []struct {
		err  error
		want string
	}{{syscall.ENOSPC, "the disk is full"}, {syscall.EROFS, "the disk is read-only"}, {syscall.EIO, "the old one stays"}} {
		d := open(t)
		if err := d.Save(WishFile, Wish{}); err != nil {
			t.Fatal(err)
		}
		d.fsync = func(*os.File) error { return fault.err }
		err := d.Save(WishFile, Wish{Down: true})
		if !errors.Is(err, fault.err) || !strings.Contains(err.Error(), fault.want) {
			t.Errorf("%v: %v", fault.err, err)
		}
		got := Wish{Down: true}
		if found, err := d.Load(WishFile, &got); !found || err != nil || got.Down {
			t.Errorf("old content is gone: %v %v %v", found, err, got)
		}
		if diff := cmp.Diff([]string{lockName, WishFile}, ls(t, d)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestNames(t *testing.T) {
	d := open(t)
	for _, name := range []string{"", ".", "..", "../x", "a/b", lockName, "x.tmp", "x.corrupt-1", "a\x00b", strings.Repeat("a", 65)} {
		if err := d.Save(name, 1); err == nil {
			t.Errorf("%q saved", name)
		}
		if _, err := d.Load(name, new(int)); err == nil {
			t.Errorf("%q loaded", name)
		}
		if err := d.Remove(name); err == nil {
			t.Errorf("%q removed", name)
		}
	}
}

func TestRemove(t *testing.T) {
	d := open(t)
	for range 2 {
		if err := d.Remove(WishFile); err != nil {
			t.Fatal(err)
		}
		put(t, d, WishFile, "{}")
	}
}

const (
	childDir   = "SUBNETD_TEST_STATE_DIR"
	childFirst = "SUBNETD_TEST_STATE_FIRST"
)

// counted is content that shows whether it is whole.
type counted struct {
	N   int
	Pad string
}

func count(n int) counted { return counted{N: n, Pad: strings.Repeat(strconv.Itoa(n%10), 20_000)} }

// TestChild is not a test of its own: it is the process that TestKill kills. It
// saves ever higher numbers and says each that is saved.
func TestChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		return
	}
	d, err := Open(dir)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(3)
	}
	first, _ := strconv.Atoi(os.Getenv(childFirst))
	for n := first; ; n++ {
		if err := d.Save("count", count(n)); err != nil {
			fmt.Println("error", err)
			os.Exit(3)
		}
		fmt.Println("saved", n)
	}
}

// TestKill kills a saving process 200 times: the file always holds what was
// last said to be saved, or what was being saved when it died.
func TestKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	saved := 0
	for round := range 200 {
		said := killedChild(t, dir, saved+1, time.Duration(rand.IntN(4000))*time.Microsecond)
		saved = max(saved, said)
		d, err := Open(dir)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		var got counted
		found, err := d.Load("count", &got)
		if !found || err != nil {
			t.Fatalf("round %d: found %v: %v", round, found, err)
		}
		if got != count(got.N) || got.N < saved || got.N > saved+1 {
			t.Fatalf("round %d: %d on disk, %d was saved", round, got.N, saved)
		}
		if diff := cmp.Diff([]string{lockName, "count"}, ls(t, d)); diff != "" {
			t.Fatalf("round %d: leftovers: %s", round, diff)
		}
		saved = got.N
		d.Close()
	}
	t.Logf("%d saves in 200 lives", saved)
}

// killedChild lets a child save from number first on, kills it some time after
// its first save and returns the last number it said.
func killedChild(t *testing.T, dir string, first int, after time.Duration) int {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestChild$")
	cmd.Env = append(os.Environ(), childDir+"="+dir, childFirst+"="+strconv.Itoa(first))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r, last := bufio.NewReader(out), 0
	for {
		line, err := r.ReadString('\n')
		if err == io.EOF {
			break // the rest of a line cut by the kill is no promise
		}
		if _, scanErr := fmt.Sscanf(line, "saved %d\n", &last); scanErr != nil || err != nil {
			t.Errorf("child says %q (%v)", line, err)
		}
		if last == first {
			time.AfterFunc(after, func() { cmd.Process.Kill() })
		}
	}
	cmd.Wait() // it was killed
	if last == 0 {
		t.Fatal("child never saved")
	}
	return last
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"machine":"privkey:00","port":1}`))
	f.Add([]byte(`{"port":70000}`))
	f.Add([]byte("null"))
	f.Add([]byte(""))
	d := open(f)
	f.Fuzz(func(t *testing.T, content []byte) {
		put(t, d, IdentityFile, string(content))
		var v Identity
		found, err := d.Load(IdentityFile, &v)
		var ce *CorruptError
		switch {
		case found && err == nil:
			if err := d.Save(IdentityFile, v); err != nil {
				t.Fatalf("loaded but cannot be saved: %v", err)
			}
		case !found && errors.As(err, &ce):
			if kept, err := os.ReadFile(ce.Aside); err != nil || string(kept) != string(content) {
				t.Fatalf("not kept: %v", err)
			}
		default:
			t.Fatal(found, err)
		}
	})
}

// WriteFile replaces a file as a whole, keeps its mode, follows a link and writes nothing that is there already.
func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "real"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(link, []byte("new")); err != nil {
		t.Fatal(err)
	}
	first, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(file); string(b) != "new" || first.Mode().Perm() != 0o644 {
		t.Errorf("%q with mode %v", b, first.Mode())
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != fs.ModeSymlink {
		t.Errorf("the link was replaced: %v, %v", info, err)
	}
	if err := WriteFile(file, []byte("new")); err != nil {
		t.Fatal(err)
	}
	if again, err := os.Stat(file); err != nil || !os.SameFile(first, again) {
		t.Errorf("content that is there was written again: %v", err)
	}
	deep := filepath.Join(dir, "a", "b", "c")
	if err := WriteFile(deep, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(deep); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("a new file: %v, %v", info, err)
	}
	if err := WriteFile(filepath.Join(file, "below"), []byte("x")); err == nil {
		t.Error("a file became a folder")
	}
}

// TestLost: a damaged file is remembered as lost until somebody puts it back or
// gives the copy up.
func TestLost(t *testing.T) {
	dir := t.TempDir()
	d, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got := d.Lost("mesh"); got != "" {
		t.Errorf("never there, and lost as %s", got)
	}
	file := filepath.Join(dir, "mesh")
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	var corrupt *CorruptError
	if _, err := d.Load("mesh", &v); !errors.As(err, &corrupt) {
		t.Fatalf("loading it: %v", err)
	}
	if got := d.Lost("mesh"); got != corrupt.Aside {
		t.Errorf("lost as %q, want %q", got, corrupt.Aside)
	}
	if err := d.Save("mesh", map[string]any{"a": 1}); err != nil {
		t.Fatal(err)
	}
	if got := d.Lost("mesh"); got != "" {
		t.Errorf("it is back, and lost as %s", got)
	}
}

// Peek reads what another holds, and leaves what it does not understand.
func TestPeek(t *testing.T) {
	d, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var got map[string]int
	if found, err := Peek(d.Path(), "x", &got); found || err != nil {
		t.Errorf("nothing there: %v %v", found, err)
	}
	if err := d.Save("x", map[string]int{"a": 1}); err != nil {
		t.Fatal(err)
	}
	if found, err := Peek(d.Path(), "x", &got); !found || err != nil || got["a"] != 1 {
		t.Errorf("%v %v %v", got, found, err)
	}
	file := filepath.Join(d.Path(), "x")
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if found, err := Peek(d.Path(), "x", &got); found || err == nil || got["a"] != 1 {
		t.Errorf("damaged: %v %v %v", got, found, err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	if _, err := Peek(d.Path(), "../x", &got); err == nil {
		t.Error("a file elsewhere")
	}
}
