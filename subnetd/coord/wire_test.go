package coord

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"tailscale.com/tailcfg"
)

// TestFrame: both kinds of frame hold the same message, around every boundary of
// a piece and a block, and a decoder that is not ours reads what we store.
func TestFrame(t *testing.T) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	for n := range 3 * piece {
		if n > 40 && n%piece > 40 && n%piece < piece-140 {
			continue
		}
		r := &response{PacketFilters: map[string]any{"base": []tailcfg.FilterRule{}}, PeersRemoved: []tailcfg.NodeID{7},
			PeersChanged: []json.RawMessage{mustJSON(&tailcfg.Node{ID: 1}), mustJSON(&tailcfg.Node{ID: 2, Name: strings.Repeat("x", n)})}}
		plain, packed := &pieces{}, &pieces{}
		if err := errors.Join(writeFrame(plain, r, false), writeFrame(packed, r, true)); err != nil {
			t.Fatal(err)
		}
		text, err := dec.DecodeAll(packed.all[4:], nil)
		if err != nil || !bytes.Equal(text, plain.all[4:]) {
			t.Fatalf("%d bytes: %q and %q, %v", n, text, plain.all[4:], err)
		}
		for _, f := range []*pieces{plain, packed} {
			if said := binary.LittleEndian.Uint32(f.all); int(said) != len(f.all)-4 || f.largest > piece+zstdBlockHead {
				t.Fatalf("%d bytes: length %d of a frame of %d, written in pieces of %d", n, said, len(f.all)-4, f.largest)
			}
		}
		var m tailcfg.MapResponse
		if err := json.Unmarshal(text, &m); err != nil || m.PacketFilters["base"] == nil || len(m.PeersRemoved) != 1 || len(m.PeersChanged) != 2 {
			t.Fatalf("%d bytes: %+v, %v", n, m, err)
		}
	}
}

// TestTexts: the parts are the JSON that they would be together.
func TestTexts(t *testing.T) {
	one, two := mustJSON(&tailcfg.Node{ID: 1}), mustJSON(&tailcfg.Node{ID: 2})
	patch := mustJSON(&tailcfg.PeerChange{NodeID: 3, DERPRegion: 900})
	for _, r := range []*response{
		{}, {KeepAlive: true}, {Peers: []json.RawMessage{one}}, {PeersChanged: []json.RawMessage{one, two}},
		{PeersChangedPatch: []json.RawMessage{patch}},
		{Domain: "x", Peers: []json.RawMessage{one, two}, PeersChanged: []json.RawMessage{two}, PeersChangedPatch: []json.RawMessage{patch, patch}},
	} {
		texts, err := r.texts()
		if err != nil {
			t.Fatal(err)
		}
		var m tailcfg.MapResponse
		dec := json.NewDecoder(bytes.NewReader(bytes.Join(texts, nil)))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&m); err != nil {
			t.Fatalf("%q: %v", texts, err)
		}
		if len(m.Peers) != len(r.Peers) || len(m.PeersChanged) != len(r.PeersChanged) || len(m.PeersChangedPatch) != len(r.PeersChangedPatch) ||
			m.KeepAlive != r.KeepAlive || m.Domain != r.Domain {
			t.Errorf("%q was read as %+v", texts, m)
		}
	}
}

// pieces is what was written, and the largest part of it at once.
type pieces struct {
	all     []byte
	largest int
}

func (p *pieces) Write(b []byte) (int, error) {
	p.all, p.largest = append(p.all, b...), max(p.largest, len(b))
	return len(b), nil
}
