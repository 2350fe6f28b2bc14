package cert

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// problem is why a request is refused (RFC 8555, 6.7; RFC 7807).
type problem struct {
	Type   string `json:"type"`
	Detail string `json:"detail"`
	Status int    `json:"status,omitempty"`

	after    time.Duration // it may succeed after that; 0: not said
	location string        // of what is in the way
}

func (p *problem) Error() string { return p.Detail }

// refuse makes a problem of one of the kinds of RFC 8555, 6.7.
func refuse(status int, kind, format string, a ...any) *problem {
	return &problem{Type: "urn:ietf:params:acme:error:" + kind, Detail: fmt.Sprintf(format, a...), Status: status}
}

func malformed(format string, a ...any) *problem {
	return refuse(http.StatusBadRequest, "malformed", format, a...)
}

func unauthorized(format string, a ...any) *problem {
	return refuse(http.StatusForbidden, "unauthorized", format, a...)
}

func notFound() *problem {
	return refuse(http.StatusNotFound, "malformed", "there is no such thing here (any more)")
}

func busy(after time.Duration, format string, a ...any) *problem {
	p := refuse(http.StatusTooManyRequests, "rateLimited", format, a...)
	p.after = after
	return p
}

// problemOf is what is told of an error.
func problemOf(err error) *problem {
	var p *problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, ErrUnknown):
		return refuse(http.StatusForbidden, "rejectedIdentifier", "%v", err)
	case errors.Is(err, ErrClock), errors.Is(err, ErrNoMesh):
		p = refuse(http.StatusServiceUnavailable, "serverInternal", "%v", err)
		p.after = time.Minute
		return p
	}
	return refuse(http.StatusInternalServerError, "serverInternal", "%v", err)
}

// head sets what the answer says beside the text.
func (p *problem) head(h http.Header) {
	h.Set("Content-Type", "application/problem+json")
	if p.after > 0 {
		h.Set("Retry-After", strconv.Itoa(int(p.after/time.Second)))
	}
	if p.location != "" {
		h.Set("Location", p.location)
	}
}
