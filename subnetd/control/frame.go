package control

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"tailscale.com/tailcfg"
)

// The bounds of one map frame, in bytes.
const (
	maxFrame   = 8 << 20  // as sent, compressed
	maxDecoded = 32 << 20 // JSON
	keepBuffer = 1 << 20  // larger buffers are given back after use
)

var (
	errFrameSize   = errors.New("the coordinator sent a map frame larger than 8 MiB")
	errDecodedSize = errors.New("the coordinator sent a map frame that unpacks to more than 32 MiB")
)

// frameReader reads the frames of a map stream: a little-endian uint32 length,
// then that many bytes of zstd-packed JSON.
type frameReader struct {
	r   io.Reader
	dec *zstd.Decoder
	in  bytes.Buffer
	out bytes.Buffer
}

func newFrameReader(r io.Reader) (*frameReader, error) {
	// Without decode buffers it streams small frames too; else it would unpack a
	// bomb whole before it sees the bound, and keep the largest frame's buffer.
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecodeBuffersBelow(0),
		zstd.WithDecoderMaxMemory(maxDecoded), zstd.WithDecoderMaxWindow(maxDecoded))
	if err != nil {
		return nil, fmt.Errorf("make zstd decoder: %w", err)
	}
	return &frameReader{r: r, dec: dec}, nil
}

func (f *frameReader) close() { f.dec.Close() }

// next returns the next message. io.EOF means that the stream ended between
// two frames.
func (f *frameReader) next() (*tailcfg.MapResponse, error) {
	if err := f.readPacked(); err != nil {
		return nil, err
	}
	if err := f.unpack(); err != nil {
		return nil, err
	}
	m := new(tailcfg.MapResponse)
	err := json.Unmarshal(f.out.Bytes(), m)
	shrink(&f.in)
	shrink(&f.out)
	if err != nil {
		return nil, fmt.Errorf("read map frame: %w", err)
	}
	return m, nil
}

func (f *frameReader) readPacked() error {
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

// unpack streams, so that the bound holds for many packed frames in a row too.
func (f *frameReader) unpack() error {
	f.out.Reset()
	if err := f.dec.Reset(&f.in); err != nil {
		return fmt.Errorf("unpack map frame: %w", err)
	}
	n, err := io.Copy(&f.out, io.LimitReader(f.dec, maxDecoded+1))
	if n > maxDecoded || errors.Is(err, zstd.ErrDecoderSizeExceeded) || errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return errDecodedSize
	}
	if err != nil {
		return fmt.Errorf("unpack map frame: %w", err)
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
