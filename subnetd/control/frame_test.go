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

	"subnetd/subnetd/mesh"
)

// framed is a frame as a coordinator sends it: the length, and the text.
func framed(text string) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(text))), text...)
}

// Frames are read whole however the net cuts them.
func TestFrames(t *testing.T) {
	stream := append(framed(`{"Domain": "one"}`), framed(`{"KeepAlive": true}`)...)
	stream = append(stream, framed(`{"Domain": "`+strings.Repeat("long", 100_000)+`"}`)...)
	for name, r := range map[string]io.Reader{
		"at once":       bytes.NewReader(stream),
		"byte by byte":  iotest.OneByteReader(bytes.NewReader(stream)),
		"half of asked": iotest.HalfReader(bytes.NewReader(stream)),
		"data with end": iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		t.Run(name, func(t *testing.T) {
			f := &frameReader{r: r}
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
	good := framed(`{"Domain": "x"}`)
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
		{"no bytes", framed(""), nil, "read map frame"},
		{"packed, though we did not ask for it", framed("\x28\xb5\x2f\xfd"), nil, "read map frame"},
		{"not JSON", framed("domain"), nil, "read map frame"},
		{"half of the JSON", framed(`{"Domain": `), nil, "read map frame"},
		{"JSON of another kind", framed(`[1]`), nil, "read map frame"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := (&frameReader{r: bytes.NewReader(tt.bytes)}).next()
			if err == nil {
				t.Fatalf("read %+v", m)
			}
			if tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v; want %v with %q", err, tt.want, tt.text)
			}
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

// A length that promises 32 MiB costs nothing before they arrive.
func TestPromisedLength(t *testing.T) {
	f := &frameReader{r: bytes.NewReader(append(binary.LittleEndian.AppendUint32(nil, maxFrame), 1, 2, 3))}
	if spent := allocated(func() { f.next() }); spent > 1<<20 {
		t.Errorf("%d KiB allocated for three bytes", spent>>10)
	}
}

// After one large frame the memory is given back, while the stream goes on.
func TestLargeFrameGivesBack(t *testing.T) {
	stream := append(framed(`{"Domain": "`+strings.Repeat("x", 12<<20)+`"}`), framed(`{"KeepAlive": true}`)...)
	f := &frameReader{r: bytes.NewReader(stream)}
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
	good := framed(`{"Domain": "x"}`)
	f.Add(good)
	f.Add(append(bytes.Clone(good), good...))
	f.Add(good[:len(good)-3])
	f.Add(framed(""))
	f.Add([]byte{0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &frameReader{r: bytes.NewReader(b)}
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
	f.Fuzz(func(t *testing.T, lines string) {
		var stream bytes.Buffer
		for line := range strings.Lines(lines) {
			stream.Write(framed(line))
		}
		r := &frameReader{r: &stream}
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
