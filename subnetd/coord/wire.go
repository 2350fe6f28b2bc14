package coord

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"tailscale.com/tailcfg"
)

// response is tailcfg.MapResponse as we send it: nodes and patches that are JSON
// already, the same for all who are sent them, and lists that can be empty
// without being absent.
type response struct {
	KeepAlive         bool                  `json:",omitempty"`
	PingRequest       *tailcfg.PingRequest  `json:",omitempty"`
	Node              *tailcfg.Node         `json:",omitempty"`
	DERPMap           *tailcfg.DERPMap      `json:",omitempty"`
	Peers             []json.RawMessage     `json:"-"` // all of them, in the first message
	PeersChanged      []json.RawMessage     `json:"-"`
	PeersChangedPatch []json.RawMessage     `json:"-"`
	PeersRemoved      []tailcfg.NodeID      `json:",omitempty"`
	DNSConfig         *tailcfg.DNSConfig    `json:",omitempty"`
	Domain            string                `json:",omitempty"`
	PacketFilters     map[string]any        `json:",omitempty"` // of []tailcfg.FilterRule
	UserProfiles      []tailcfg.UserProfile `json:",omitempty"`
	ControlTime       *time.Time            `json:",omitempty"`
}

// empty reports whether there is nothing to send.
func (r *response) empty() bool {
	return r.Node == nil && r.DERPMap == nil && r.DNSConfig == nil && r.PacketFilters == nil && r.PingRequest == nil &&
		len(r.PeersChanged)+len(r.PeersRemoved)+len(r.PeersChangedPatch)+len(r.UserProfiles) == 0
}

// texts is the JSON in parts. What is JSON already is neither copied nor, as
// json.Marshal would, checked again for each client.
func (r *response) texts() ([][]byte, error) {
	head, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("write map: %w", err)
	}
	out := [][]byte{head[:len(head)-1]}
	empty := len(head) == len("{}")
	for _, list := range []struct {
		name  string
		items []json.RawMessage
	}{{"Peers", r.Peers}, {"PeersChanged", r.PeersChanged}, {"PeersChangedPatch", r.PeersChangedPatch}} {
		for i, item := range list.items {
			before := ","
			if i == 0 {
				before = `"` + list.name + `":[`
				if !empty {
					before = "," + before
				}
				empty = false
			}
			out = append(out, []byte(before), item)
		}
		if len(list.items) > 0 {
			out = append(out, []byte("]"))
		}
	}
	return append(out, []byte("}")), nil
}

// The parts of a zstd frame that stores its content: RFC 8878, 3.1.1.
const (
	zstdMagic     = 0xfd2fb528
	zstdStored    = 0b10_1_00000 // four bytes of content size, and no window but that
	zstdHead      = 9            // bytes before the first block
	zstdBlockHead = 3
	zstdLastBlock = 1
)

// piece is how many bytes of a message are handed on at once: HTTP/2 keeps, for
// as long as a connection lives, a buffer of the largest it was given.
const piece = 4 << 10

// writeFrame writes a message as it goes over the wire: its length, little-
// endian, and its JSON, in a zstd frame if the client asked for that. The frame
// only stores: an encoder is 3 % of the whole program, and what a home's nodes
// are told is short.
func writeFrame(w io.Writer, r *response, zstd bool) error {
	texts, err := r.texts()
	if err != nil {
		return err
	}
	total := 0
	for _, t := range texts {
		total += len(t)
	}
	f := &frameWriter{w: w, zstd: zstd, left: total, buf: make([]byte, 0, min(piece, total+zstdHead+4)+zstdBlockHead)}
	if zstd {
		blocks := (total + piece - 1) / piece
		f.buf = binary.LittleEndian.AppendUint32(f.buf, uint32(zstdHead+blocks*zstdBlockHead+total))
		f.buf = binary.LittleEndian.AppendUint32(f.buf, zstdMagic)
		f.buf = append(f.buf, zstdStored)
	}
	f.buf = binary.LittleEndian.AppendUint32(f.buf, uint32(total)) // of the frame, or of what zstd stores
	for _, t := range texts {
		if err := f.content(t); err != nil {
			return err
		}
	}
	return f.flush()
}

// frameWriter cuts content into pieces, and those into blocks of zstd.
type frameWriter struct {
	w     io.Writer
	zstd  bool
	left  int // bytes of content yet to come
	block int // bytes of content that the block still takes
	buf   []byte
}

// content adds bytes of content, of which there is at least one in all.
func (f *frameWriter) content(b []byte) error {
	for len(b) > 0 {
		if f.block == 0 {
			f.begin()
		}
		if len(f.buf) >= piece {
			if err := f.flush(); err != nil {
				return err
			}
		}
		n := min(len(b), f.block, piece-len(f.buf))
		f.buf = append(f.buf, b[:n]...)
		f.left, f.block, b = f.left-n, f.block-n, b[n:]
	}
	return nil
}

// begin starts a block.
func (f *frameWriter) begin() {
	f.block = min(f.left, piece)
	if !f.zstd {
		return
	}
	head := uint32(f.block) << 3 // the type of a stored block is 0
	if f.block == f.left {
		head |= zstdLastBlock
	}
	f.buf = append(f.buf, byte(head), byte(head>>8), byte(head>>16))
}

func (f *frameWriter) flush() error {
	_, err := f.w.Write(f.buf)
	f.buf = f.buf[:0]
	return err
}
