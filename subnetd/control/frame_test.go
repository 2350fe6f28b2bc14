package control

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/klauspost/compress/zstd"
	"subnetd/subnetd/mesh"
)

// packer makes frames as a coordinator does.
type packer struct{ enc *zstd.Encoder }

func newPacker(t testing.TB) packer {
	t.Helper()
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(128<<10))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { enc.Close() })
	return packer{enc}
}

func (p packer) pack(text string) []byte { return framed(p.enc.EncodeAll([]byte(text), nil)) }

// framed puts the length in front.
func framed(packed []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(packed))), packed...)
}

// zeros are n zero bytes, packed as a stream, so that no size stands in front.
func zeros(t testing.TB, n int64) []byte {
	t.Helper()
	var b bytes.Buffer
	enc, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(128<<10), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(enc, zero{}, n); err != nil {
		t.Fatal(err)
	}
	if err := enc.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type zero struct{}

func (zero) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func reader(t testing.TB, r io.Reader) *frameReader {
	t.Helper()
	f, err := newFrameReader(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.close)
	return f
}

// Frames are read whole however the net cuts them.
func TestFrames(t *testing.T) {
	p := newPacker(t)
	stream := append(p.pack(`{"Domain": "one"}`), p.pack(`{"KeepAlive": true}`)...)
	stream = append(stream, p.pack(`{"Domain": "`+strings.Repeat("long", 100_000)+`"}`)...)
	for name, r := range map[string]io.Reader{
		"at once":       bytes.NewReader(stream),
		"byte by byte":  iotest.OneByteReader(bytes.NewReader(stream)),
		"half of asked": iotest.HalfReader(bytes.NewReader(stream)),
		"data with end": iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		t.Run(name, func(t *testing.T) {
			f := reader(t, r)
			if m, err := f.next(); err != nil || m.Domain != "one" {
				t.Fatalf("first frame: %v, %v", m, err)
			}
			if m, err := f.next(); err != nil || !m.KeepAlive || m.Domain != "" {
				t.Fatalf("second frame: %v, %v", m, err)
			}
			if m, err := f.next(); err != nil || len(m.Domain) != 400_000 {
				t.Fatalf("third frame: %v", err)
			}
			if _, err := f.next(); !errors.Is(err, io.EOF) {
				t.Errorf("at the end: %v; want io.EOF", err)
			}
		})
	}
}

func TestBadFrames(t *testing.T) {
	p := newPacker(t)
	good := p.pack(`{"Domain": "x"}`)
	tests := []struct {
		name  string
		bytes []byte
		want  error  // nil: any
		text  string // part of the error's text
	}{
		{"nothing", nil, io.EOF, ""},
		{"half a length", good[:2], io.ErrUnexpectedEOF, ""},
		{"length only", good[:4], io.ErrUnexpectedEOF, "read map frame"},
		{"cut off", good[:len(good)-1], io.ErrUnexpectedEOF, "read map frame"},
		{"one byte too large", binary.LittleEndian.AppendUint32(nil, maxFrame+1), errFrameSize, ""},
		{"largest length", []byte{0xff, 0xff, 0xff, 0xff}, errFrameSize, ""},
		{"length in the wrong order", append([]byte{0, 0, 0, byte(len(good) - 4)}, good[4:]...), errFrameSize, ""},
		{"largest allowed, but cut off", binary.LittleEndian.AppendUint32(nil, maxFrame), io.ErrUnexpectedEOF, ""},
		{"no bytes", framed(nil), nil, "read map frame"},
		{"not packed", framed([]byte(`{"Domain": "x"}`)), zstd.ErrMagicMismatch, "unpack map frame"},
		{"packed frame cut off", framed(good[4 : len(good)-1]), nil, "unpack map frame"},
		{"packed frame with a changed byte", framed(changed(good[4:])), nil, "map frame"},
		{"not JSON", p.pack("domain"), nil, "read map frame"},
		{"half of the JSON", p.pack(`{"Domain": `), nil, "read map frame"},
		{"JSON of another kind", p.pack(`[1]`), nil, "read map frame"},
		{"a window too large", framed([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0, 0}), errDecodedSize, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := reader(t, bytes.NewReader(tt.bytes)).next()
			if err == nil {
				t.Fatalf("read %+v", m)
			}
			if tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v; want %v with %q", err, tt.want, tt.text)
			}
		})
	}
}

func changed(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)-1] ^= 0xff // of the checksum
	return b
}

// A small frame may not unpack to something large, in whatever way it is packed,
// nor may the refusal cost much more than the bound.
func TestBomb(t *testing.T) {
	p := newPacker(t)
	half := zeros(t, maxDecoded/2+1)
	tests := map[string][]byte{
		"one byte too many":  zeros(t, maxDecoded+1),
		"size in front":      p.enc.EncodeAll(make([]byte, maxDecoded+1), nil),
		"two packs in a row": append(bytes.Clone(half), half...),
	}
	for name, packed := range tests {
		t.Run(name, func(t *testing.T) {
			if len(packed) > maxFrame/8 {
				t.Fatalf("the bomb itself has %d bytes", len(packed))
			}
			f := reader(t, bytes.NewReader(framed(packed)))
			var err error
			spent := allocated(func() { _, err = f.next() })
			if !errors.Is(err, errDecodedSize) {
				t.Errorf("error %v; want errDecodedSize", err)
			}
			// A growing buffer is copied a few times, and twice as often under -race.
			if limit := uint64(8*maxDecoded + 8<<20); spent > limit {
				t.Errorf("%d MiB allocated on the way", spent>>20)
			}
			t.Logf("%d bytes, refused after %d MiB", len(packed), spent>>20)
		})
	}
}

func allocated(f func()) uint64 {
	var a, b runtime.MemStats
	runtime.ReadMemStats(&a)
	f()
	runtime.ReadMemStats(&b)
	return b.TotalAlloc - a.TotalAlloc
}

// A length that promises 8 MiB costs nothing before they arrive.
func TestPromisedLength(t *testing.T) {
	f := reader(t, bytes.NewReader(append(binary.LittleEndian.AppendUint32(nil, maxFrame), 1, 2, 3)))
	if spent := allocated(func() { f.next() }); spent > 1<<20 {
		t.Errorf("%d KiB allocated for three bytes", spent>>10)
	}
}

// After one large frame the memory is given back, while the stream goes on.
func TestLargeFrameGivesBack(t *testing.T) {
	p := newPacker(t)
	stream := append(p.pack(`{"Domain": "`+strings.Repeat("x", 12<<20)+`"}`), p.pack(`{"KeepAlive": true}`)...)
	f := reader(t, bytes.NewReader(stream))
	before := live()
	if m, err := f.next(); err != nil || len(m.Domain) != 12<<20 {
		t.Fatal(err)
	}
	if kept := live() - before; kept > 4<<20 {
		t.Errorf("%d MiB kept after a frame of 12 MiB", kept>>20)
	}
	if m, err := f.next(); err != nil || !m.KeepAlive {
		t.Errorf("the next frame: %v", err)
	}
}

// live is how much memory is in use after collection.
func live() int64 {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func FuzzFrame(f *testing.F) {
	p := newPacker(f)
	good := p.pack(`{"Domain": "x"}`)
	f.Add(good)
	f.Add(append(bytes.Clone(good), good...))
	f.Add(good[:len(good)-3])
	f.Add(framed(nil))
	f.Add([]byte{0xff, 0xff, 0xff, 0x7f})
	f.Add(framed(zeros(f, 1<<20)))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := reader(t, bytes.NewReader(b))
		for range len(b) {
			if _, err := r.next(); err != nil {
				return // what a reader gives after an error is nothing
			}
		}
		if len(b) > 0 {
			t.Error("more frames than bytes")
		}
	})
}

// FuzzMapResponse lets a coordinator say anything, a line per message.
func FuzzMapResponse(f *testing.F) {
	for _, tt := range deltas {
		f.Add(fill(oneLine(first) + "\n" + oneLine(strings.Join(tt.say, "\n"))))
	}
	f.Add(fill(`{"Node": {"ID": 1}, "Peers": [null, {"ID": 1}], "PeersChangedPatch": [null], "DERPMap": {"Regions": {"1": null}}, "DNSConfig": {"Resolvers": [null]}}`))
	f.Add(fill(`{"Node": {}, "PacketFilter": [{"SrcIPs": ["0.0.0.0/0", "::1%x", "-", "/"], "DstPorts": [{"IP": "::/129"}]}], "ControlTime": "9999-01-01T00:00:00Z"}`))
	p := newPacker(f)
	f.Fuzz(func(t *testing.T, lines string) {
		var stream bytes.Buffer
		for line := range strings.Lines(lines) {
			stream.Write(p.pack(line))
		}
		r := reader(t, &stream)
		s := newSession(func() time.Time { return now }, nil)
		var before frozen
		for {
			m, err := r.next()
			if err != nil {
				return
			}
			nm, err := s.apply(m)
			if err != nil {
				return
			}
			if before.nm != nil {
				before.check(t)
			}
			if nm == nil {
				continue
			}
			checkNetmap(t, nm)
			before = freezeAny(nm)
		}
	})
}

func oneLine(s string) string { return strings.ReplaceAll(s, "\n", " ") }

// freezeAny leaves a netmap that has no text, as one with a time of year 10000, unchecked.
func freezeAny(nm *mesh.Netmap) frozen {
	b, err := json.Marshal(nm)
	if err != nil {
		return frozen{}
	}
	return frozen{nm, string(b)}
}

// checkNetmap asserts what the rest of the house relies on.
func checkNetmap(t *testing.T, nm *mesh.Netmap) {
	t.Helper()
	for i := range nm.Peers {
		p := &nm.Peers[i]
		if p.Key.IsZero() || p.ID == nm.Self.ID || i > 0 && p.ID <= nm.Peers[i-1].ID {
			t.Fatalf("peer %d: without a key, ourselves, twice or out of order", p.ID)
		}
		for _, a := range p.AllowedIPs {
			if !a.IsValid() || a != a.Masked() {
				t.Fatalf("peer %d: allowed %v", p.ID, a)
			}
		}
	}
	for _, r := range nm.Filter {
		for _, s := range r.Srcs {
			if s.From.BitLen() != s.To.BitLen() || s.To.Less(s.From) {
				t.Fatalf("filter source %v", s)
			}
		}
	}
}
