// Package jsontext has what package json beside it names.
package jsontext

import "errors"

// Kind is what a token begins with.
type Kind byte

// Token is one of a JSON text.
type Token struct{}

// Null is the token of that name.
var Null Token

// Encoder writes nothing.
type Encoder struct{}

// WriteToken is not there.
func (*Encoder) WriteToken(Token) error { return errors.ErrUnsupported }

// Decoder reads nothing.
type Decoder struct{}

// PeekKind tells of no token.
func (*Decoder) PeekKind() Kind { return 0 }

// ReadToken is not there.
func (*Decoder) ReadToken() (Token, error) { return Token{}, errors.ErrUnsupported }
