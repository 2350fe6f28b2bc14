package swarm

import (
	"bytes"
	"encoding/json"
	"strconv"
)

// scan walks JSON without building anything of what it passes: a swarm reads the same peers thousands of times, and
// must not cost more than the coordinator that it measures. What is wrong in the text sets bad and ends the walk; what
// is skipped is only looked at as far as needed to find its end.
type scan struct {
	b   []byte
	i   int
	bad bool
}

// peek is the first byte of the next token, or 0 at the end.
func (s *scan) peek() byte {
	for !s.bad && s.i < len(s.b) {
		switch c := s.b[s.i]; c {
		case ' ', '\t', '\r', '\n':
			s.i++
		default:
			return c
		}
	}
	return 0
}

// take consumes c, which must be next.
func (s *scan) take(c byte) {
	if s.peek() != c || c == 0 {
		s.bad = true
		return
	}
	s.i++
}

// object calls member for each; member consumes the value. null is an empty object.
func (s *scan) object(member func(name []byte)) {
	s.list('{', '}', func() {
		name := s.str()
		s.take(':')
		if !s.bad {
			member(name)
		}
	})
}

// array calls element for each; element consumes it. null is an empty array.
func (s *scan) array(element func()) { s.list('[', ']', element) }

func (s *scan) list(open, end byte, each func()) {
	if s.peek() == 'n' {
		s.skip()
		return
	}
	s.take(open)
	if s.peek() == end {
		s.i++
		return
	}
	for !s.bad {
		each()
		if s.peek() == end {
			s.i++
			return
		}
		s.take(',')
	}
}

// str is the next string. It points into the text unless it held escapes.
func (s *scan) str() []byte {
	raw := s.quoted()
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw
	}
	var text string
	if json.Unmarshal(s.b[s.i-len(raw)-2:s.i], &text) != nil {
		s.bad = true
	}
	return []byte(text)
}

// quoted is what stands between the quotes of the next string.
func (s *scan) quoted() []byte {
	s.take('"')
	start := s.i
	for !s.bad {
		n := bytes.IndexByte(s.b[s.i:], '"')
		if n < 0 {
			break
		}
		s.i += n + 1
		if !escaped(s.b[start : s.i-1]) {
			return s.b[start : s.i-1]
		}
	}
	s.bad = true
	return nil
}

// escaped reports whether what follows b is preceded by an odd number of backslashes.
func escaped(b []byte) bool {
	n := len(b) - len(bytes.TrimRight(b, `\`))
	return n%2 == 1
}

func (s *scan) integer() int64 {
	n, err := strconv.ParseInt(string(s.skip()), 10, 64)
	if err != nil {
		s.bad = true
	}
	return n
}

func (s *scan) boolean() bool { return string(s.skip()) == "true" }

// skip passes the next value and returns its text.
func (s *scan) skip() []byte {
	first := s.peek()
	start := s.i
	switch first {
	case 0:
		s.bad = true
	case '"':
		s.quoted()
	case '{', '[':
		s.nested()
	default:
		for s.i < len(s.b) && !ends(s.b[s.i]) {
			s.i++
		}
		s.bad = s.bad || s.i == start
	}
	if s.bad {
		return nil
	}
	return s.b[start:s.i]
}

// nested passes an object or array.
func (s *scan) nested() {
	for depth := 0; s.i < len(s.b); {
		switch s.b[s.i] {
		case '"':
			if s.quoted(); s.bad {
				return
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				s.i++
				return
			}
		}
		s.i++
	}
	s.bad = true
}

// ends reports whether c cannot belong to a number, true, false or null.
func ends(c byte) bool {
	return c == ',' || c == '}' || c == ']' || c == ':' || c == '"' || c == '{' || c == '[' || c <= ' '
}
