package coord

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Only a member may send a big request; who waits to be let in may not.
func TestBigBodies(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		big := `{"Version":130,"NodeKey":"` + strings.Repeat("x", maxStrangersBody) + `"}`
		is := func(c *client, want int, who string) {
			t.Helper()
			if code, _, err := c.call(context.Background(), "/machine/register", big); err != nil || code != want {
				t.Errorf("%s: %d, %v; want %d", who, code, err, want)
			}
		}
		c := m.client("c", "192.0.2.1")
		is(c, http.StatusRequestEntityTooLarge, "a stranger")
		c.ask()
		is(c, http.StatusRequestEntityTooLarge, "one who waits")
		c.mustRegister(withAuth(m.invite()))
		is(c, http.StatusBadRequest, "a member") // the key in it is none
		m.must(c.connect())
		is(c, http.StatusBadRequest, "a member who comes back")
	})
}

// A body that never ends does not hold its request for ever.
func TestEndlessBody(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.member("c")
		began := time.Now()
		r, w := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://coordinator/machine/map", r)
		m.must(err)
		go func() { _, _ = io.WriteString(w, `{"Version":`) }() // and no more
		res, err := c.http.Do(req)
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			m.must(res.Body.Close())
		}
		if took := time.Since(began); took > bodyTimeout+time.Second {
			t.Errorf("it took %v: %v", took, err)
		}
		m.must(w.Close())
		if res := c.mustRegister(); !res.MachineAuthorized {
			t.Errorf("its next request is answered %+v", res)
		}
	})
}
