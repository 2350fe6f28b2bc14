package swarm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// The bounds of one map frame, in bytes.
const (
	maxFrame   = 8 << 20  // as sent, compressed
	maxDecoded = 32 << 20 // JSON
	keepBuffer = 1 << 20  // larger buffers are given back after use
)

var errFrameSize = errors.New("the coordinator sent a map frame larger than 8 MiB")

// buffers are lent for one frame: nodes wait most of the time, and hold none while they do.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

type buffer struct{ packed, text []byte }

func (b *buffer) free() {
	if cap(b.packed) > keepBuffer {
		b.packed = nil
	}
	if cap(b.text) > keepBuffer {
		b.text = nil
	}
	buffers.Put(b)
}

// readFrame reads a little-endian uint32 length and that many bytes of zstd-packed JSON, and says what the JSON says.
// io.EOF means that the stream ended between two frames.
func (s *Swarm) readFrame(r io.Reader) (frame, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > maxFrame {
		return frame{}, errFrameSize
	}
	b := buffers.Get().(*buffer)
	defer b.free()
	if cap(b.packed) < int(n) {
		b.packed = make([]byte, n)
	}
	b.packed = b.packed[:n]
	if _, err := io.ReadFull(r, b.packed); err != nil {
		return frame{}, fmt.Errorf("read map frame: %w", err)
	}
	text, err := s.zstd.DecodeAll(b.packed, b.text[:0])
	if err != nil {
		return frame{}, fmt.Errorf("unpack map frame: %w", err)
	}
	b.text = text
	s.frames.Add(1)
	s.bytes.Add(int64(len(text)))
	return parseFrame(text)
}
