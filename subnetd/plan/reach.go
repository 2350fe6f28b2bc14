package plan

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"

	"subnetd/subnetd/config"
	"subnetd/subnetd/host"
)

// relayLabel begins the relay's name under the mesh's domain. Nobody resolves
// it: it is what its certificate is for, where only addresses are known.
const relayLabel = "relay."

// Reach is how members find the coordinator in this router, and its relay.
type Reach struct {
	URL     string // the login server; "": this router has no address
	Outside bool   // it is meant to work from everywhere, not at home only
	Name    string // the URL's host if that is a DNS name
	TLS     bool   // the URL is https: members verify the certificate of Name
	Relay   RelayAt
	Inside  RelayAt // the relay for this router's own node
	Missing []string
}

// RelayAt is where a relay listens. Without an address of either family its
// host is resolved.
type RelayAt struct {
	Host   string
	V4, V6 netip.Addr
	Port   uint16
}

// ReachOf finds the way in. lans are the names of the home's interfaces.
func ReachOf(c config.Home, f host.Facts, lans []string) Reach {
	listen, port := listenOf(c.Listen)
	wan := WANAddrs(f, lans)
	near := nearest(f, lans, listen)
	r := Reach{Inside: RelayAt{Host: relayLabel + c.Domain, Port: port}}
	r.Inside.V4, r.Inside.V6 = firstOf(append(slices.Clone(wan), near...))
	if listen.IsValid() {
		r.Inside.V4, r.Inside.V6 = firstOf([]netip.Addr{listen})
	}
	if c.URL == "" {
		r.atHome(c, near, port)
	} else {
		r.everywhere(c, wan, port)
	}
	return r
}

func listenOf(s string) (addr netip.Addr, port uint16) {
	h, p, _ := net.SplitHostPort(s) // it was checked with the configuration
	n, _ := strconv.ParseUint(p, 10, 16)
	if addr, _ = netip.ParseAddr(h); addr.IsUnspecified() {
		addr = netip.Addr{}
	}
	return addr, uint16(n)
}

// nearest is the addresses by which hosts at home reach this router, the best
// first: private ones of the LANs, then of any interface, then whatever there is.
func nearest(f host.Facts, lans []string, listen netip.Addr) []netip.Addr {
	if listen.IsValid() {
		return []netip.Addr{listen}
	}
	rank := func(name string, a netip.Addr) int {
		switch {
		case slices.Contains(lans, name) && a.IsPrivate():
			return 0
		case a.IsPrivate():
			return 1
		}
		return 2
	}
	var out []netip.Addr
	ranks := map[netip.Addr]int{}
	for _, i := range f.Interfaces {
		for _, p := range i.Addrs {
			if a := p.Addr(); i.Up && !isOurs(i.Name) && a.IsGlobalUnicast() {
				out, ranks[a] = append(out, a), rank(i.Name, a)
			}
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return ranks[out[i]] < ranks[out[j]] })
	return out
}

// firstOf gives the first address of each family, invalid where there is none.
func firstOf(as []netip.Addr) (v4, v6 netip.Addr) {
	for _, a := range as {
		switch {
		case a.Is4() && !v4.IsValid():
			v4 = a
		case a.Is6() && !v6.IsValid():
			v6 = a
		}
	}
	return v4, v6
}

// atHome is the way without an owner's word: a private address, which stock
// clients go on using as it stands.
func (r *Reach) atHome(c config.Home, near []netip.Addr, port uint16) {
	r.Relay = RelayAt{Host: relayLabel + c.Domain, Port: port}
	r.Relay.V4, r.Relay.V6 = firstOf(near)
	at := r.Relay.V4
	if !at.IsValid() {
		at = r.Relay.V6
	}
	if !at.IsValid() {
		r.Missing = []string{"This router has no address yet: connect its LAN."}
		return
	}
	r.URL = "http://" + netip.AddrPortFrom(at, port).String()
	r.Missing = []string{"This address works at home only. For members elsewhere, set home.url to a DNS name or the public address of this router."}
	if !at.IsPrivate() {
		r.Missing = append(r.Missing, fmt.Sprintf("%s is no private address: stock clients that reconnect to it insist on port 443. Set home.url to \"http://%s\".", at, at))
	}
}

// everywhere is the way by the name or address that the owner gave.
func (r *Reach) everywhere(c config.Home, wan []netip.Addr, port uint16) {
	u, err := url.Parse(c.URL)
	if err != nil {
		return // it was checked with the configuration
	}
	r.URL, r.Outside, r.TLS = strings.TrimSuffix(c.URL, "/"), true, u.Scheme == "https"
	r.Relay = RelayAt{Host: relayLabel + c.Domain, Port: 443}
	at, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		r.Name = strings.ToLower(u.Hostname())
		r.Relay.Host = r.Name
	} else {
		r.Relay.V4, r.Relay.V6 = firstOf(append([]netip.Addr{at}, wan...))
		if !slices.Contains(wan, at) {
			r.Missing = append(r.Missing, fmt.Sprintf("%s of home.url is no address of this router: whoever has it must forward TCP ports 80 and 443 and UDP port 3478 to here.", at))
		}
	}
	if u.Port() == strconv.Itoa(int(port)) && at.IsPrivate() {
		r.Relay.Port = port // a private literal is used as it stands
	}
	if len(wan) > 0 && !slices.ContainsFunc(wan, func(a netip.Addr) bool { return !a.IsPrivate() }) && len(r.Missing) == 0 && !at.IsPrivate() {
		r.Missing = append(r.Missing, fmt.Sprintf("This router's address towards the internet, %s, is private: the router in front must forward TCP ports 80 and 443 and UDP port 3478 to it.", wan[0]))
	}
}
