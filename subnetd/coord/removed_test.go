package coord

import (
	"testing"

	"tailscale.com/types/key"
)

// TestRemovedReturns: a node that was removed while it was off is told so by its
// map; a key that never was a member's gets a login page as ever.
func TestRemovedReturns(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.client("phone", "192.0.2.1")
		c.mustRegister(withAuth(m.invite()))
		if _, err := m.c.Remove(t.Context(), "phone"); err != nil {
			t.Fatal(err)
		}
		if res := c.mustRegister(); !res.MachineAuthorized || res.AuthURL != "" {
			t.Errorf("a removed node is answered %+v", res)
		}
		if m.node(c.node) != nil || m.c.Admits(c.node) {
			t.Error("it is a member again")
		}
		c.node = key.NewNode().Public()
		if res := c.mustRegister(); res.MachineAuthorized || res.AuthURL == "" {
			t.Errorf("a key nobody had is answered %+v", res)
		}
	})
}
