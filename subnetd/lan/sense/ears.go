package sense

import (
	"context"
	"net"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// maxInterfaces bounds those that are heard.
const maxInterfaces = 32

// ears are what hears on the interfaces of the LAN that are up. They are the loop's own.
type ears struct {
	s     *Sense
	table *netlink.Conn
	open  map[int]*ear // by index
	deaf  bool         // it was logged that packets cannot be heard
}

// ear hears one interface.
type ear struct {
	name string
	v4   *packets
	v6   *packets
}

// set makes them those of the interfaces as these are now, and reads the neighbour table
// if that may hold something new.
func (e *ears) set(ctx context.Context) {
	want, same := e.want(), e.open != nil
	if !same {
		e.open = map[int]*ear{}
	}
	for index, ear := range e.open {
		if want[index] != ear.name {
			ear.close()
			delete(e.open, index)
			same = false
		}
	}
	for index, name := range want {
		if e.open[index] == nil {
			e.open[index] = e.listen(ctx, index, name)
			e.s.asks.all(name)
			same = false
		}
	}
	if same && !e.s.tookMissed() {
		return
	}
	indices := make([]int, 0, len(want))
	for index := range want {
		indices = append(indices, index)
	}
	slices.Sort(indices)
	if err := filterTable(e.table, indices); err != nil {
		e.s.c.Log.Warn("neighbours are not heard", "err", err)
	}
	e.read()
}

// read reads the neighbour table.
func (e *ears) read() {
	if err := e.s.readTable(); err != nil {
		e.s.c.Log.Warn("the neighbour table cannot be read", "err", err)
	}
}

// tookMissed reports whether something was missed since it was asked last.
func (s *Sense) tookMissed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	missed := s.missed
	s.missed = false
	return missed
}

// want notes which interfaces of the LAN are up.
func (e *ears) want() map[int]string {
	s := e.s
	s.mu.Lock()
	names := slices.Clone(s.interfaces)
	s.mu.Unlock()
	up := map[int]string{}
	for _, name := range names[:min(len(names), maxInterfaces)] {
		if i, err := net.InterfaceByName(name); err == nil && i.Flags&net.FlagUp != 0 {
			up[i.Index] = name
		}
	}
	s.mu.Lock()
	s.links = up
	changed := s.book.Interfaces(s.c.Now(), names)
	s.mu.Unlock()
	if changed {
		signal(s.news)
	}
	return up
}

// listen opens an ear. Without AF_PACKET in the kernel it hears nothing, and the rest
// goes on.
func (e *ears) listen(ctx context.Context, index int, name string) *ear {
	out := &ear{name: name}
	var err4, err6 error
	out.v4, err4 = listenPackets(index, unix.ETH_P_IP, filterV4())
	out.v6, err6 = listenPackets(index, unix.ETH_P_IPV6, filterV6())
	if (err4 != nil || err6 != nil) && !e.deaf {
		e.deaf = true
		e.s.c.Log.Info("packets of the LAN are not heard", "interface", name, "err", err4, "err6", err6)
	}
	out.v4.run(ctx, func(mac string, b []byte) { e.s.hearPacket(mac, name, b) })
	out.v6.run(ctx, func(mac string, b []byte) { e.s.hearPacket(mac, name, b) })
	out.v4.join(index, 4)
	out.v6.join(index, 6)
	return out
}

func (e *ear) close() {
	e.v4.close()
	e.v6.close()
}

func (e *ears) close() {
	for _, ear := range e.open {
		ear.close()
	}
}
