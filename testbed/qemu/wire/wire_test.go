package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFrameBytes(t *testing.T) {
	var b bytes.Buffer
	if err := Write(&b, Frame{ID: 0x01020304, Kind: Signal, Payload: []byte{9}}); err != nil {
		t.Fatal(err)
	}
	if want := []byte{0, 0, 0, 1, 1, 2, 3, 4, byte(Signal), 9}; !bytes.Equal(b.Bytes(), want) {
		t.Errorf("got % x, want % x", b.Bytes(), want)
	}
}

func TestFramesInARow(t *testing.T) {
	want := []Frame{{Kind: Hello, Payload: []byte{}}, {ID: 7, Kind: Out, Payload: bytes.Repeat([]byte("x"), MaxPayload)}, {ID: 1 << 31, Kind: In, Payload: []byte{}}}
	var b bytes.Buffer
	for _, f := range want {
		if err := Write(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range want {
		f, err := Read(&b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(w, f); diff != "" {
			t.Error(diff)
		}
	}
	if _, err := Read(&b); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v, want EOF", err)
	}
}

func TestFrameTooLong(t *testing.T) {
	if err := Write(io.Discard, Frame{Kind: Out, Payload: make([]byte, MaxPayload+1)}); err == nil {
		t.Error("a frame over the bound was written")
	}
}

func TestBrokenStreams(t *testing.T) {
	for name, in := range map[string]string{
		"too long":     "\x7f\x00\x00\x00" + "\x00\x00\x00\x00" + "\x03",
		"no kind":      "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00",
		"unknown kind": "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x7f",
		"cut header":   "\x00\x00\x00",
		"cut payload":  "\x00\x00\x00\x02" + "\x00\x00\x00\x00" + "\x03" + "x",
	} {
		if f, err := Read(strings.NewReader(in)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: frame %+v, error %v", name, f, err)
		}
	}
}

// FuzzRead: whatever comes, a frame that is read is one that can be written, and the same bytes.
func FuzzRead(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x01\x00\x00\x00\x05\x03x"))
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, in []byte) {
		frame, err := Read(bytes.NewReader(in))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := Write(&b, frame); err != nil || !bytes.HasPrefix(in, b.Bytes()) {
			t.Errorf("%x was read as %+v and written as %x (%v)", in, frame, b.Bytes(), err)
		}
	})
}
