package control

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"tailscale.com/tailcfg"
)

// The bounds of one map frame, in bytes.
const (
	maxFrame   = 32 << 20
	keepBuffer = 1 << 20 // larger buffers are given back after use
)

var errFrameSize = errors.New("the coordinator sent a map frame larger than 32 MiB")

// frameReader reads the frames of a map stream: a little-endian uint32 length,
// then that many bytes of JSON. We do not ask for it to be packed: what that
// saves is a second of a slow line once per connection, and a decoder would be a
// fiftieth of the program.
type frameReader struct {
	r  io.Reader
	in bytes.Buffer
}

// next returns the next message. io.EOF means that the stream ended between
// two frames.
func (f *frameReader) next() (*tailcfg.MapResponse, error) {
	if err := f.read(); err != nil {
		return nil, err
	}
	m := new(tailcfg.MapResponse)
	err := json.Unmarshal(f.in.Bytes(), m)
	shrink(&f.in)
	if err != nil {
		return nil, fmt.Errorf("read map frame: %w", err)
	}
	return m, nil
}

func (f *frameReader) read() error {
	var head [4]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > maxFrame {
		return errFrameSize
	}
	f.in.Reset()
	// CopyN grows with what really arrives, not with what the length promises.
	if _, err := io.CopyN(&f.in, f.r, int64(n)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read map frame: %w", err)
	}
	return nil
}

func shrink(b *bytes.Buffer) {
	if b.Cap() > keepBuffer {
		*b = bytes.Buffer{}
		return
	}
	b.Reset()
}
