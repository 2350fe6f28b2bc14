// Package json stands in for github.com/go-json-experiment/json: what the methods of tailscale.com's types name of it, by
// which they could be written with it. Here all of them are written with encoding/json, and none of this is called.
// Upstream's fills tables when the program starts, so that the linker cannot leave it out.
package json

import (
	"errors"
	"io"

	"github.com/go-json-experiment/json/jsontext"
)

// Options is upstream's.
type Options any

// MarshalerTo is upstream's.
type MarshalerTo interface {
	MarshalJSONTo(*jsontext.Encoder) error
}

// UnmarshalerFrom is upstream's.
type UnmarshalerFrom interface {
	UnmarshalJSONFrom(*jsontext.Decoder) error
}

// DefaultOptionsV2 is upstream's.
func DefaultOptionsV2() Options { return nil }

// Marshal is not there, as are the others.
func Marshal(any, ...Options) ([]byte, error) { return nil, errors.ErrUnsupported }

// MarshalWrite is not there.
func MarshalWrite(io.Writer, any, ...Options) error { return errors.ErrUnsupported }

// MarshalEncode is not there.
func MarshalEncode(*jsontext.Encoder, any, ...Options) error { return errors.ErrUnsupported }

// Unmarshal is not there.
func Unmarshal([]byte, any, ...Options) error { return errors.ErrUnsupported }

// UnmarshalDecode is not there.
func UnmarshalDecode(*jsontext.Decoder, any, ...Options) error { return errors.ErrUnsupported }
