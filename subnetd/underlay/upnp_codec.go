package underlay

import (
	"bytes"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// The messages of UPnP IGD, by which older home routers are asked to forward a
// port: SSDP to find the router's description, XML that describes it, and SOAP
// to talk with it. Of XML only what routers say is understood here: a whole
// parser would be larger than the port mapper.

const (
	ssdpGroup = "239.255.255.250"
	ssdpPort  = 1900

	// What we look for. Not every router answers to both.
	ssdpGateway = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
	ssdpAll     = "ssdp:all"

	upnpServicePrefix = "urn:schemas-upnp-org:service:"
	upnpMostServices  = 4   // of one description
	upnpLongestURL    = 512 // LOCATION, URLBase and controlURL

	upnpConflict      = 718 // ConflictInMappingEntry
	upnpOnlyPermanent = 725 // OnlyPermanentLeasesSupported
	upnpOtherConflict = 729 // ConflictWithOtherMechanisms, of version 2
)

// upnpService is what maps ports at a router.
type upnpService struct {
	control string // URL
	kind    string // such as "urn:schemas-upnp-org:service:WANIPConnection:1"
}

// upnpSearch asks who is there. Its HOST names the group even when it goes to
// the router alone, as routers expect.
func upnpSearch(target string) []byte {
	return fmt.Appendf(nil, "M-SEARCH * HTTP/1.1\r\nHOST: %s:%d\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\nST: %s\r\n\r\n",
		ssdpGroup, ssdpPort, target)
}

// parseSSDP reads where a router has its description. It must be at the router itself.
func parseSSDP(b []byte, router netip.Addr) (location string, ok bool) {
	status, rest, _ := strings.Cut(string(b), "\n")
	if f := strings.Fields(status); len(f) < 2 || !strings.HasPrefix(f[0], "HTTP/1.") || f[1] != "200" {
		return "", false
	}
	for line := range strings.Lines(rest) {
		name, value, _ := strings.Cut(line, ":")
		if !strings.EqualFold(strings.TrimSpace(name), "LOCATION") {
			continue
		}
		u, ok := upnpURL(strings.TrimSpace(value))
		if a, err := netip.ParseAddr(u.Hostname()); !ok || err != nil || a != router {
			return "", false
		}
		return u.String(), true
	}
	return "", false
}

// upnpURL reads a whole URL; u is never nil.
func upnpURL(s string) (u *url.URL, ok bool) {
	if len(s) > upnpLongestURL {
		return &url.URL{}, false
	}
	u, err := url.Parse(s)
	if err != nil {
		return &url.URL{}, false
	}
	u.Fragment, u.RawFragment = "", ""
	return u, u.Scheme == "http" && u.Hostname() != "" && u.User == nil && u.Opaque == ""
}

// upnpPort is where a URL's host listens; 0: nowhere.
func upnpPort(u *url.URL) uint16 {
	if u.Port() == "" {
		return 80
	}
	n, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}

// parseDevice reads a description, which came from location, for the services
// that map ports. A router with several uplinks has several.
func parseDevice(b []byte, location string) []upnpService {
	var all []upnpService
	var service upnpService
	var within bool
	var base string
	s := xmlScanner{rest: b}
	for s.next() {
		switch {
		case s.name == "service":
			if s.closes && within && mapsPorts(service.kind) && service.control != "" {
				all = append(all, service)
			}
			service, within = upnpService{}, !s.closes
		case s.closes && s.name == "URLBase" && base == "":
			base = s.text
		case !s.closes || !within:
		case s.name == "serviceType" && service.kind == "":
			service.kind = s.text
		case s.name == "controlURL" && service.control == "":
			service.control = s.text
		}
	}
	var usable []upnpService
	for _, service := range all {
		control, ok := resolveControl(location, base, service.control)
		if ok && len(usable) < upnpMostServices {
			usable = append(usable, upnpService{control, service.kind})
		}
	}
	return usable
}

func mapsPorts(kind string) bool {
	switch strings.TrimPrefix(kind, upnpServicePrefix) {
	case "WANIPConnection:1", "WANIPConnection:2", "WANPPPConnection:1":
		return strings.HasPrefix(kind, upnpServicePrefix)
	}
	return false
}

// resolveControl makes the control URL whole. It must be at the host of the
// description. Some routers call themselves by a name here; we put their
// address in its place, since no name server is to say where we connect to.
func resolveControl(location, base, control string) (string, bool) {
	from, ok := upnpURL(location)
	if !ok || len(base) > upnpLongestURL || len(control) > upnpLongestURL {
		return "", false
	}
	host, at := from.Hostname(), from
	if b, err := from.Parse(base); err == nil && base != "" {
		at = b
	}
	c, err := at.Parse(control)
	if err != nil {
		return "", false
	}
	c, ok = upnpURL(c.String())
	if !ok || upnpPort(c) == 0 {
		return "", false
	}
	if c.Hostname() != host {
		if _, err := netip.ParseAddr(c.Hostname()); err == nil {
			return "", false
		}
		c.Host = netip.AddrPortFrom(upnpHost(from), upnpPort(c)).String()
	}
	return c.String(), true
}

// upnpHost is the address of a URL; invalid if it is a name.
func upnpHost(u *url.URL) netip.Addr {
	a, _ := netip.ParseAddr(u.Hostname())
	return a
}

// upnpArg is one argument of a SOAP action. The order matters to some routers.
type upnpArg struct{ name, value string }

// upnpCall is the body of a SOAP request.
func upnpCall(kind, action string, args ...upnpArg) []byte {
	var b bytes.Buffer
	b.WriteString(`<?xml version="1.0"?>` + "\r\n" +
		`<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" ` +
		`s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>`)
	fmt.Fprintf(&b, `<u:%s xmlns:u="%s">`, action, kind) // both are constants of ours, see mapsPorts
	for _, a := range args {
		fmt.Fprintf(&b, "<%s>%s</%s>", a.name, a.value, a.name)
	}
	fmt.Fprintf(&b, "</u:%s></s:Body></s:Envelope>\r\n", action)
	return b.Bytes()
}

// upnpAnswer is what a router says to a SOAP request.
type upnpAnswer struct {
	done     bool       // it did what was asked
	code     int        // or why not; 0: it does not say
	external netip.Addr // of GetExternalIPAddress; may be invalid
}

func parseSOAP(b []byte, action string) upnpAnswer {
	var a upnpAnswer
	var fault bool
	s := xmlScanner{rest: b}
	for s.next() {
		switch {
		case s.name == "Fault":
			fault = true
		case s.name == action+"Response":
			a.done = true
		case !s.closes:
		case s.name == "errorCode" && a.code == 0:
			a.code, _ = strconv.Atoi(s.text)
		case s.name == "NewExternalIPAddress" && !a.external.IsValid():
			a.external, _ = netip.ParseAddr(s.text)
		}
	}
	if fault || a.code != 0 {
		return upnpAnswer{code: a.code}
	}
	return a
}

// xmlScanner walks over tags. It keeps no stack: nesting costs nothing, and
// whoever uses it looks at innermost elements only.
type xmlScanner struct {
	rest []byte

	name   string // of the tag, without its namespace
	closes bool
	text   string // of an element that ends here and has no elements within

	opened string // the tag before, if it opened; "" otherwise
	inner  []byte // text since then
}

// next goes to the next tag; false: there is none, or this is not XML.
func (s *xmlScanner) next() bool {
	for {
		start := bytes.IndexByte(s.rest, '<')
		if start < 0 {
			return false
		}
		s.inner = append(s.inner, unescapeXML(s.rest[:start])...)
		s.rest = s.rest[start+1:]
		skipped, ok := s.skip()
		if !ok {
			return false
		}
		if !skipped {
			return s.tag()
		}
	}
}

// skip passes over what is no tag. A document type is refused: no router has
// one, and entities could be declared in it.
func (s *xmlScanner) skip() (skipped, ok bool) {
	for _, k := range []struct{ begin, end string }{{"?", "?>"}, {"!--", "-->"}, {"![CDATA[", "]]>"}} {
		rest, found := bytes.CutPrefix(s.rest, []byte(k.begin))
		if !found {
			continue
		}
		inner, after, ended := bytes.Cut(rest, []byte(k.end))
		if k.begin == "![CDATA[" {
			s.inner = append(s.inner, inner...)
		}
		s.rest = after
		return true, ended
	}
	return false, !bytes.HasPrefix(s.rest, []byte("!"))
}

// tag reads one tag; its "<" was passed.
func (s *xmlScanner) tag() bool {
	end := tagEnd(s.rest)
	if end < 0 {
		return false
	}
	tag := s.rest[:end]
	s.rest = s.rest[end+1:]
	tag, closes := bytes.CutPrefix(tag, []byte("/"))
	tag, single := bytes.CutSuffix(tag, []byte("/"))
	if i := bytes.IndexAny(tag, " \t\r\n"); i >= 0 {
		tag = tag[:i]
	}
	if i := bytes.LastIndexByte(tag, ':'); i >= 0 {
		tag = tag[i+1:]
	}
	s.name, s.closes, s.text = string(tag), closes || single, ""
	if s.name == "" {
		return false
	}
	if closes && s.opened == s.name {
		s.text = strings.TrimSpace(string(s.inner))
	}
	s.opened, s.inner = "", s.inner[:0]
	if !s.closes {
		s.opened = s.name
	}
	return true
}

// tagEnd finds the ">" that is not within an attribute's value.
func tagEnd(b []byte) int {
	var quote byte
	for i, c := range b {
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == '>':
			return i
		case c == '<':
			return -1
		}
	}
	return -1
}

// unescapeXML knows the five names that need no declaration.
func unescapeXML(b []byte) []byte {
	if bytes.IndexByte(b, '&') < 0 {
		return b
	}
	r := strings.NewReplacer("&lt;", "<", "&gt;", ">", "&quot;", `"`, "&apos;", "'", "&amp;", "&")
	return []byte(r.Replace(string(b)))
}
