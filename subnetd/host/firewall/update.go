package firewall

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Where only set elements differ, as when a member comes or goes, chains and rules
// stay: no hook changes, and no packet meets a table that is half gone. Ranges go
// and come as a whole, as the kernel's checks for overlap want it, and what both
// the old and the new set have is not touched.
//
// The classes' rights (sets of kind concat) never change in place: the source map
// may number the classes anew, and a packet that found its class by the old map
// would find the rights that the number has now.

// edit is what makes a set of the kernel one of ours.
type edit struct {
	set        set
	gone, come []nftables.SetElement
}

// update makes the sets of the kernel's table those of t, in one transaction, and
// looks whether they are: some kernels since 5.7 take what a transaction deletes
// for an overlap with what it adds. On error nothing is certain but that the table
// has to be replaced.
func (t *table) update(conn *nftables.Conn, is digest) error {
	edits, err := t.edits(conn)
	if err != nil {
		return err
	}
	for _, e := range edits {
		s := e.set.nft(t.nft())
		if err := cmp.Or(inChunks(conn.SetDeleteElements, s, e.gone), inChunks(conn.SetAddElements, s, e.come)); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	conn.FlushChain(&nftables.Chain{Table: t.nft(), Name: markerChain})
	is.mark(conn, t.nft())
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("change sets: %w", err)
	}
	for _, e := range edits {
		again, err := t.edit(conn, e.set)
		if err == nil && len(again.gone)+len(again.come) > 0 {
			err = errors.New("the kernel has other elements than it was given")
		}
		if err != nil {
			return fmt.Errorf("set %s: %w", e.set.name, err)
		}
	}
	return nil
}

// edits compares the kernel's table with t. Any difference but in elements of
// sets that may change in place is an error.
func (t *table) edits(conn *nftables.Conn) ([]edit, error) {
	whole, err := t.rulesIntact(conn)
	if err == nil && !whole {
		err = errors.New("somebody changed the rules")
	}
	if err != nil {
		return nil, err
	}
	var out []edit
	for _, s := range t.sets {
		e, err := t.edit(conn, s)
		if err != nil {
			return nil, fmt.Errorf("set %s: %w", s.name, err)
		}
		if len(e.gone)+len(e.come) > 0 {
			out = append(out, e)
		}
	}
	return out, nil
}

// edit compares one set.
func (t *table) edit(conn *nftables.Conn, s set) (edit, error) {
	have, err := conn.GetSetElements(s.nft(t.nft()))
	if err != nil {
		return edit{}, err
	}
	if s.kind == concat {
		if len(have) != len(s.values) {
			return edit{}, errors.New("somebody changed the elements")
		}
		return edit{set: s}, nil
	}
	gone, come, err := s.difference(have)
	return edit{s, gone, come}, err
}

// difference is what has to go from and come to a set with elements have, so that
// it gets the values of s. What goes is named by its key.
func (s set) difference(have []nftables.SetElement) (gone, come []nftables.SetElement, err error) {
	old, err := s.items(have)
	if err != nil {
		return nil, nil, err
	}
	items, err := s.items(s.values)
	if err != nil {
		return nil, nil, err
	}
	stays := map[string]bool{}
	for _, i := range items {
		stays[i.id] = true
	}
	there := map[string]bool{}
	for _, i := range old {
		there[i.id] = true
		if stays[i.id] {
			continue
		}
		for _, e := range i.elements {
			gone = append(gone, nftables.SetElement{Key: e.Key, IntervalEnd: e.IntervalEnd})
		}
	}
	for _, i := range items {
		if !there[i.id] {
			come = append(come, i.elements...)
		}
	}
	return gone, come, nil
}

// item is what comes and goes as one: an element, or both ends of a range; a range
// up to the last address has no end.
type item struct {
	id       string // equal ids, equal items
	elements []nftables.SetElement
}

// items are the items of elements in whatever order, ascending.
func (s set) items(elements []nftables.SetElement) ([]item, error) {
	elements = slices.Clone(elements)
	sort.Slice(elements, func(i, j int) bool {
		a, b := &elements[i], &elements[j]
		if c := bytes.Compare(a.Key, b.Key); c != 0 {
			return c < 0
		}
		return a.IntervalEnd && !b.IntervalEnd // where a range follows at once
	})
	ranges := s.kind == interval || s.kind == verdicts
	open := false
	var out []item
	for _, e := range elements {
		if e.IntervalEnd != open {
			return nil, fmt.Errorf("half a range at %x", e.Key)
		}
		open = ranges && !open
		if e.IntervalEnd {
			last := &out[len(out)-1]
			last.id += fmt.Sprintf("-%x", e.Key)
			last.elements = append(last.elements, e)
			continue
		}
		value, err := s.value(e)
		if err != nil {
			return nil, fmt.Errorf("element %x: %w", e.Key, err)
		}
		out = append(out, item{fmt.Sprintf("%s %x", value, e.Key), []nftables.SetElement{e}})
	}
	return out, nil
}

// value is what a map has for the element. A verdict of the kernel's comes as it
// is in the netlink message.
func (s set) value(e nftables.SetElement) (string, error) {
	if v := e.VerdictData; v != nil {
		return fmt.Sprintf("%d %s", v.Kind, v.Chain), nil
	}
	if s.kind != verdicts {
		return fmt.Sprintf("%x", e.Val), nil
	}
	ad, err := netlink.NewAttributeDecoder(e.Val)
	if err != nil {
		return "", err
	}
	ad.ByteOrder = binary.BigEndian
	var kind int32
	var chain string
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_VERDICT_CODE:
			kind = int32(ad.Uint32())
		case unix.NFTA_VERDICT_CHAIN:
			chain = ad.String()
		}
	}
	return fmt.Sprintf("%d %s", kind, chain), ad.Err()
}
