package simnet

import (
	"time"

	"subnetd/subnetd/path"
)

const (
	window  = 4                      // segments under way
	firstRT = 250 * time.Millisecond // until the first is sent again; then twice as long each time
	lastRT  = 4 * time.Second
)

// transfer is much data to a peer, as TCP would bring it: no more is under way
// than the window, and if nothing is acknowledged, ever less is sent.
type transfer struct {
	to, from *Node
	next     uint64 // the sender's: first segment not sent yet
	acked    uint64 // the sender's: first segment not acknowledged
	want     uint64 // the receiver's: first segment not there
	after    map[uint64]bool
	rt       time.Duration
	timer    int // of the retransmission that counts
}

// Transfer sends to the peer without end. The flow of the peer counts what came
// in order.
func (n *Node) Transfer(o *Node) {
	t := &transfer{from: n, to: o, after: map[uint64]bool{}, rt: firstRT}
	n.Flow(o).transfer, o.Flow(n).transfer = t, t
	o.Flow(n).last = n.sim.now
	t.fill()
}

func (t *transfer) fill() {
	for t.next < t.acked+window {
		t.send(t.next)
		t.next++
	}
	t.arm()
}

func (t *transfer) send(n uint64) {
	t.from.Flow(t.to).Sent++
	t.from.sendData(t.to.Key, data{t.from.Key, n, segment})
}

// arm has the first segment sent again if nothing is acknowledged.
func (t *transfer) arm() {
	t.timer++
	timer := t.timer
	t.from.sim.After(t.rt, func() {
		if timer == t.timer {
			t.rt = min(2*t.rt, lastRT)
			t.send(t.acked)
			t.arm()
		}
	})
}

func (t *transfer) take(d data, from path.Source) {
	if d.kind == ack {
		if d.n > t.acked {
			t.acked, t.rt = d.n, firstRT
			t.fill()
		}
		return
	}
	if d.n >= t.want {
		t.after[d.n] = true
	}
	for t.after[t.want] {
		delete(t.after, t.want)
		t.to.count(data{t.from.Key, t.want, segment}, from)
		t.want++
	}
	t.to.sendData(t.from.Key, data{t.to.Key, t.want, ack})
}
