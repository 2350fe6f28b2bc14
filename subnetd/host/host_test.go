package host

import (
	"testing"

	"tailscale.com/types/key"
)

// A name of an exit's interface is the same at every start, fits the kernel, and is
// told from those of others.
func TestExitInterface(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		k := key.NewNode().Public()
		name := ExitInterface(k)
		if !IsExitInterface(name) || len(name) > 15 || name != ExitInterface(k) || seen[name] {
			t.Errorf("%q", name)
		}
		seen[name] = true
	}
	for _, name := range []string{"", "mesh0", "mesh-", "mesh-work", "mesh-0123abc", "mesh-0123abcd0", "mesh-0123ABCD", "xmesh-0123abcd", "mesh-0123abcg"} {
		if IsExitInterface(name) {
			t.Errorf("%q is none of ours", name)
		}
	}
}
