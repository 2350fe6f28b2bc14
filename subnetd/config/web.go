package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Served is a device of lan.devices whose web server this router asks for whoever calls
// the device by https.
type Served struct {
	Name   string // in lan.devices, in lower case
	Scheme string // "http" or "https", as the device itself speaks
	Port   uint16
}

// Web pages of most devices are at one of these.
const (
	portHTTP  = 80
	portHTTPS = 443
)

// String is the device as it stands in the file.
func (s Served) String() string { return s.Name + "=" + s.Target() }

// Target is where the device itself is asked, "http:5000".
func (s Served) Target() string { return s.Scheme + ":" + strconv.Itoa(int(s.Port)) }

// parseServed reads "NAME=[http:|https:]PORT".
func parseServed(s string) (Served, bool) {
	name, target, _ := strings.Cut(s, "=")
	out, err := ParseServed(name, target)
	return out, err == nil
}

// ParseServed reads "[http:|https:]PORT" of a device. Without a scheme it is http, but
// for the port of https. The error says what would be right.
func ParseServed(name, target string) (Served, error) {
	scheme, port, both := strings.Cut(strings.ToLower(target), ":")
	if !both {
		scheme, port = "http", scheme
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if scheme != "http" && scheme != "https" || err != nil || n == 0 {
		return Served{}, fmt.Errorf("%s is no web server: that is a port like 80, or one with a scheme like https:5001", clip(quote(target)))
	}
	if !isLabel(name) {
		return Served{}, fmt.Errorf("%s is no name: letters, digits and hyphens are, at most 63", clip(quote(name)))
	}
	if !both && n == portHTTPS {
		scheme = "https"
	}
	return Served{strings.ToLower(name), scheme, uint16(n)}, nil
}

// Serving has this router serve a device, in the place of what was said of it before.
func (l LAN) Serving(s Served) (LAN, error) {
	l.Web = append(slices.DeleteFunc(slices.Clone(l.Web), s.same), s)
	return l, l.check()
}

// NotServing ends that.
func (l LAN) NotServing(name string) LAN {
	l.Web = slices.DeleteFunc(slices.Clone(l.Web), Served{Name: name}.same)
	return l
}

func (s Served) same(o Served) bool { return s.Name == o.Name }

// ServedAs is how a device of that name is served.
func (l LAN) ServedAs(name string) (Served, bool) {
	i := slices.IndexFunc(l.Web, Served{Name: strings.ToLower(name)}.same)
	if i < 0 || name == "" {
		return Served{}, false
	}
	return l.Web[i], true
}

// renamed has what is said of one name said of another; "": of nobody.
func (l LAN) renamed(was, is string) LAN {
	if was == is || was == "" {
		return l
	}
	l.Web = slices.Clone(l.Web)
	for i := range l.Web {
		if l.Web[i].Name == was {
			l.Web[i].Name = is
		}
	}
	l.Web = slices.DeleteFunc(l.Web, Served{}.same)
	return l
}
