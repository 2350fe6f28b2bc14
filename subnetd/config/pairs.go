package config

import (
	"net/netip"
	"strings"
)

// Entries of lists that have two parts, and what must hold between keys.

// parseRecord reads "name=address". The name stays as it is written: whether it
// is relative is seen by its dots, and to what only when all is read.
func parseRecord(s string) (Record, bool) {
	name, addr, _ := strings.Cut(s, "=")
	a, ok := parseAddr(addr)
	return Record{Name: strings.ToLower(name), Addr: a}, ok && isName(strings.TrimSuffix(name, "."))
}

// parseSplit reads "domain=resolver" and "domain=resolver:port".
func parseSplit(s string) (Split, bool) {
	domain, resolver, _ := strings.Cut(s, "=")
	domain = strings.ToLower(strings.TrimSuffix(domain, "."))
	if a, ok := parseAddr(resolver); ok {
		return Split{Domain: domain, Resolver: a.String()}, isName(domain)
	}
	ap, err := netip.ParseAddrPort(resolver)
	return Split{Domain: domain, Resolver: ap.String()}, err == nil && ap.Port() != 0 && isAddr(ap.Addr()) && isName(domain)
}

func parseAddr(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	return a, err == nil && isAddr(a)
}

// isAddr reports whether a may be the address of one thing that others reach.
func isAddr(a netip.Addr) bool {
	return a.Zone() == "" && !a.Is4In6() && !a.IsUnspecified() && !a.IsLoopback() &&
		!a.IsMulticast() && !a.IsLinkLocalUnicast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// finish does what needs all keys: it completes names, and tells what keys that
// are right one by one cannot mean together.
func finish(c *Config) []*Error {
	var mistakes []*Error
	for i, r := range c.Home.Records {
		full := qualified(r.Name, c.Home.Domain)
		if !isName(full) {
			mistakes = append(mistakes, &Error{Key: "home.records", Problem: "has " + clip(quote(full)), Allowed: "at most 253 characters for a name with home.domain"})
		}
		c.Home.Records[i].Name = full
	}
	mistakes = append(mistakes, c.LAN.unsure()...)
	if why := bounds(c.Exit.All()); why != "" {
		mistakes = append(mistakes, &Error{Key: "exit.rows", Problem: "with exit.use " + why, Allowed: "less"})
	}
	const both = "both of them or none"
	switch h := c.Home; {
	case h.CertFile != "" && h.KeyFile == "":
		mistakes = append(mistakes, &Error{Key: "home.cert_file", Problem: "is set without home.key_file", Allowed: both})
	case h.CertFile == "" && h.KeyFile != "":
		mistakes = append(mistakes, &Error{Key: "home.key_file", Problem: "is set without home.cert_file", Allowed: both})
	}
	return mistakes
}

// qualified completes a name without a dot by the domain of the mesh.
func qualified(name, domain string) string {
	if strings.Contains(name, ".") {
		return strings.TrimSuffix(name, ".")
	}
	return name + "." + strings.ToLower(domain)
}
