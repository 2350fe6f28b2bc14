package simnet_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestGrid: every kind of place meets every other. Data always arrives, and
// goes directly wherever theory says that it can.
//
// Theory: a ping reaches the other side if that lets everybody in, or has sent
// to where the ping comes from. Who has a port per peer comes from a port that
// nobody was told, so such a side is let in only by its address or by all.
func TestGrid(t *testing.T) {
	for _, e := range engines[:2] {
		t.Run(e.name, func(t *testing.T) { testGrid(t, e.first) })
	}
}

func testGrid(t *testing.T, kernel bool) {
	all := kinds()
	var table strings.Builder
	for _, x := range all {
		fmt.Fprintf(&table, "\n%14s", x.name)
		for _, y := range all {
			can := !x.noUDP && !y.noUDP && (x.wellSeen || y.wellSeen) &&
				(!x.hard || y.lets < 2) && (!y.hard || x.lets < 2)
			t.Run(x.name+" to "+y.name, func(t *testing.T) {
				p := meet(1, x.place, y.place)
				p.kernels(kernel, kernel)
				const every = 200 * time.Millisecond
				p.a.Talk(p.b, every)
				took, ok := p.Until(20*time.Second, p.direct)
				if ok != can {
					t.Errorf("direct: %v, want %v; a->b %+v, b->a %+v", ok, can, p.a.Path(p.b), p.b.Path(p.a))
				}
				p.Run(time.Minute)
				if p.direct() != can {
					t.Errorf("a minute later direct: %v", p.direct())
				}
				f := p.a.Flow(p.b)
				if f.Gap > 500*time.Millisecond {
					t.Errorf("%v passed without an answer", f.Gap)
				}
				if lim := 3; f.Moves > lim {
					t.Errorf("the way changed %d times", f.Moves)
				}
				if !can && f.Direct > 0 || can && f.Direct < f.Back*9/10 {
					t.Errorf("%d of %d came directly", f.Direct, f.Back)
				}
				p.losesNothing(t, every)
				if ok {
					fmt.Fprintf(&table, "%6d", took.Milliseconds())
				} else {
					fmt.Fprintf(&table, "%6s", "relay")
				}
			})
		}
	}
	t.Log("milliseconds until direct, columns in the order of rows:", table.String())
}
