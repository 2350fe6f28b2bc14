package plan

import (
	"slices"
	"strconv"
	"strings"

	"subnetd/subnetd/host"
)

// openings is where the world has to get in at the firewalls of others: our UDP port
// and, where the owner has said how the world reaches the coordinator here, that.
func (p *Plan) openings(in Inputs) host.Openings {
	var o host.Openings
	wan := WANAddrs(in.Facts, p.LANs)
	for _, i := range in.Facts.Interfaces {
		for _, a := range i.Addrs {
			if isWAN(in.Facts, i.Name) && slices.Contains(wan, a.Addr()) {
				o.At = append(o.At, host.WANAddr{Interface: i.Name, Index: i.Index, Addr: a.Addr()})
			}
		}
	}
	if in.Port != 0 {
		o.UDP = append(o.UDP, in.Port)
	}
	if r := p.Host.Firewall.Redirect; r.To != 0 {
		o.TCP, o.Translated = append(o.TCP, r.To), true
		if _, stun := listenOf(in.Config.Home.STUN); stun != 0 {
			o.UDP = append(o.UDP, stun)
		}
	}
	p.tellShut(in.Shut, o)
	return o
}

// shutAt is what one chain of others shuts.
type shutAt struct {
	host.Shut
	udp, tcp []string // ports
}

// tellShut tells the owner of openings that are shut, and how to open them.
func (p *Plan) tellShut(all []host.Shut, o host.Openings) {
	var found []shutAt
	for _, s := range all {
		if s.UDP && !slices.Contains(o.UDP, s.Port) || !s.UDP && !slices.Contains(o.TCP, s.Port) {
			continue // of before
		}
		i := slices.IndexFunc(found, func(f shutAt) bool { return f.Table == s.Table && f.Chain == s.Chain && f.Zone == s.Zone })
		if i < 0 {
			i, found = len(found), append(found, shutAt{Shut: s})
		}
		ports := &found[i].tcp
		if s.UDP {
			ports = &found[i].udp
		}
		if port := strconv.Itoa(int(s.Port)); !slices.Contains(*ports, port) { // the other family has it, too
			*ports = append(*ports, port)
		}
	}
	for _, f := range found {
		what, so := "", ""
		if len(f.udp) > 0 {
			what, so = "UDP "+strings.Join(f.udp, ", "), "members behind difficult NATs reach this router only by relay"
		}
		if len(f.tcp) > 0 {
			if what != "" {
				what, so = what+" and ", so+", and "
			}
			what, so = what+"TCP "+strings.Join(f.tcp, ", "), so+"nobody outside reaches the coordinator here"
		}
		p.problem("wan-shut", "The firewall of this router (table "+f.Table+", chain "+f.Chain+") drops what the internet sends to "+what+": "+so+".", f.opener())
	}
}

// opener is the command that opens the ports, in the language of the firewall there.
func (f *shutAt) opener() string {
	udp, tcp := f.open("udp", f.udp), f.open("tcp", f.tcp)
	if udp != "" && tcp != "" {
		udp += " && "
	}
	if f.Table == "inet fw4" {
		return "Open them there: " + udp + tcp + " && uci commit firewall && service firewall reload"
	}
	return "Open them there, and where these rules are kept for the next boot: " + udp + tcp
}

func (f *shutAt) open(proto string, ports []string) string {
	family, filter := strings.CutSuffix(f.Table, " filter")
	switch {
	case len(ports) == 0:
		return ""
	case f.Table == "inet fw4":
		zone, option := f.Zone, " && uci set firewall.subnetd_"+proto
		if zone == "" {
			zone = "wan"
		}
		return option[len(" && "):] + "=rule" + option + ".name=subnetd-" + proto + option + ".src=" + zone + option + ".proto=" + proto +
			option + ".target=ACCEPT" + option + ".dest_port='" + strings.Join(ports, " ") + "'"
	case filter && f.Chain == "INPUT" && family != "inet":
		return family + "tables -I INPUT -p " + proto + " -m multiport --dports " + strings.Join(ports, ",") + " -j ACCEPT"
	}
	return "nft insert rule " + f.Table + " " + f.Chain + " " + proto + " dport '{ " + strings.Join(ports, ", ") + " }' accept"
}
