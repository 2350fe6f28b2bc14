package appliance_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestPowerCuts cuts the power again and again: in operation, while files, the daemon's state and updates are written, and during
// boots, also of a system that is tried and of one that does not come up. SUBNETD_CUTS times, seeded by SUBNETD_SEED, or until
// the test's deadline leaves no time for another round; runs with other seeds add up. After every cut the file system is whole, every boot that is not cut comes up, and the router
// is the one that it was.
func TestPowerCuts(t *testing.T) {
	cuts, seed := times(t, "SUBNETD_CUTS", 3), uint64(times(t, "SUBNETD_SEED", int(time.Now().Unix())))
	t.Logf("%d cuts, seed %d", cuts, seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	good, err := os.ReadFile(imageOf(t, "update"))
	if err != nil {
		t.Fatal(err)
	}
	b := bench(t)
	b.Unpack()
	images := b.offer(good, withInit(t, good, ""))
	b.Power()
	boot := b.Up()
	identity := b.identity()
	seen := map[string]int{}
	n := 0
	for n < cuts && b.time(3*boot) {
		b.write(images[rng.IntN(2)]) // the record is written by the small one each second, by the large one now and then
		n = b.cutWithin(rng, n, 15*time.Second, "in operation")
		for n < cuts && rng.IntN(2) == 0 && b.time(3*boot) {
			b.Power()
			n = b.cutWithin(rng, n, boot, "during a boot")
		}
		b.Power()
		boot = b.Up()
		for _, what := range []string{"tried once", "did not come up", "slot b of"} {
			if b.Console.Said(what) {
				seen[what]++
			}
		}
		if now := b.identity(); now != identity {
			t.Fatalf("after cut %d it is another: %s, before %s", n, now, identity)
		}
		t.Logf("%d cuts: up %v after the power came on", n, boot.Round(time.Second))
	}
	t.Logf("%d cuts, seed %d; boots that said: %v", n, seed, seen)
}

// time reports whether there is so much until the test's deadline.
func (b *testBox) time(need time.Duration) bool {
	deadline, ok := b.t.Deadline()
	return !ok || time.Until(deadline) > need
}

// identity is the digest of the node's keys.
func (b *testBox) identity() string {
	b.t.Helper()
	return b.must("sha256sum /data/subnetd/identity* | cut -c1-64")
}

// write starts what writes until the power goes: files, small and large, synced and not; keys of the mesh; and updates.
func (b *testBox) write(image offered) {
	b.t.Helper()
	for _, line := range []string{
		"i=0; while :; do i=$((i+1)); dd if=/dev/urandom of=/data/new bs=4k count=$((i%64)); mv /data/new /data/file-$((i%16)); done",
		"while :; do date >/data/synced.new; sync; mv /data/synced.new /data/synced; done",
		"while :; do subnetd invite; done",
		"while :; do " + image.read + " | appliance update " + image.sum + "; done",
	} {
		if err := b.Console.Type("(" + line + ") >/dev/null 2>&1 &"); err != nil {
			b.t.Fatal(err)
		}
	}
}

// cutWithin cuts the power, for the n-th time, at any moment of a time, and wants what is on the disk then to be whole.
func (b *testBox) cutWithin(rng *rand.Rand, n int, limit time.Duration, when string) int {
	b.t.Helper()
	after := time.Duration(rng.Int64N(int64(limit)))
	moment := time.NewTimer(after)
	<-moment.C
	b.Cut()
	b.t.Logf("cut %d, %s, after %v", n+1, when, after.Round(time.Millisecond))
	data := b.Data()
	for _, args := range [][]string{{"-p", data}, {"-f", "-n", data}} { // what the journal tells; and then nothing is left to mend
		out, err := exec.Command("e2fsck", args...).CombinedOutput()
		if err != nil && !(args[0] == "-p" && exitCode(err) == 1) {
			b.t.Errorf("e2fsck %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	return n + 1
}

func exitCode(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return -1
}

// times is the number in an environment variable, or another one.
func times(t *testing.T, variable string, usual int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s is no number", variable, text)
	}
	return n
}
