package front

import (
	"strings"
	"testing"
	"time"
)

// A certificate is made when it is called for, kept for two thirds of its life, and what
// is wrong with it is told, once.
func TestCertificates(t *testing.T) {
	r := newRig(t, app())
	ask := func(want string) {
		t.Helper()
		if got := r.get(phone, self443, "https://page.home.mesh/"); !strings.HasPrefix(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	made := func(want int) {
		t.Helper()
		if n := r.ca.count(); n != want {
			t.Errorf("%d certificates were made, want %d", n, want)
		}
	}
	made(0)
	ask("200 ")
	ask("200 ")
	made(1)
	_ = r.get(phone, nas443, "https://nas.mesh/")
	made(2)
	r.later(life*2/3 - time.Second)
	ask("200 ")
	made(2)
	r.later(time.Second)
	ask("200 ")
	made(3)
	r.later(life)
	r.ca.failing(errClock)
	ask("nothing")
	ask("nothing")
	if got := <-r.trouble; !strings.Contains(got, "page.home.mesh, drop.home.mesh, ca.home.mesh, home.mesh: the clock is not set") {
		t.Error(got)
	}
	r.later(-365 * 24 * time.Hour)
	r.ca.failing(nil)
	ask("200 ")
	if got := <-r.trouble; got != "" {
		t.Errorf("it is told that %q", got)
	}
	made(4)
	r.later(-time.Hour) // a certificate of the future is none
	ask("200 ")
	made(5)
}
