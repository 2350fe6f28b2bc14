package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// maxList bounds every list of the file.
const maxList = 256

// spec is one key of the file: what it may hold, in words, and how a value of
// the file (string, bool, int64, []any) gets into a Config. set reports whether
// the value is allowed.
type spec struct {
	section, key string
	allowed      string
	set          func(c *Config, v any) bool
}

// keys is the whole language of the file, in the order of the sample file.
func keys() []spec {
	return []spec{
		{"mesh", "control", `"home" or a URL like "https://control.example"`,
			text(func(s string) bool { return s == "home" || isURL(s) }, func(c *Config, s string) { c.Mesh.Control = s })},
		{"mesh", "hostname", `"" or a name of letters, digits and hyphens, at most 63`,
			text(orEmpty(isLabel), func(c *Config, s string) { c.Mesh.Hostname = s })},
		{"mesh", "auth_key_file", `"" or the absolute path of a file`,
			text(orEmpty(isPath), func(c *Config, s string) { c.Mesh.AuthKeyFile = s })},
		{"lan", "interfaces", `a list of interface names like ["br-lan"]`,
			list(as(isInterface), func(c *Config, l []string) { c.LAN.Interfaces = l })},
		{"lan", "expose", `"all", "chosen" or "none"`,
			text(oneOf("all", "chosen", "none"), func(c *Config, s string) { c.LAN.Expose = Expose(s) })},
		{"lan", "devices", `a list of MAC or single IP addresses, with or without a name, ports and wake, like ["192.168.1.20", "printer=02:00:00:00:00:01 tcp/80 wake"]`,
			list(parseDevice, func(c *Config, l []Device) { c.LAN.Devices = l })},
		{"lan", "names", `a list of names with a MAC address each, like ["tv=02:00:00:00:00:02"]`,
			list(parseNamed, func(c *Config, l []Named) { c.LAN.Names = l })},
		{"lan", "web", `a list of names of lan.devices with the port of a web server each, like ["printer=80", "nas=https:5001"]`,
			list(parseServed, func(c *Config, l []Served) { c.LAN.Web = l })},
		{"lan", "snat", `true or false`,
			truth(func(c *Config, b bool) { c.LAN.SNAT = b })},
		{"exit", "offer", `true or false`,
			truth(func(c *Config, b bool) { c.Exit.Offer = b })},
		{"exit", "rows", `a list of rows "SOURCES -> EXITS" like ["02:00:00:00:00:01, br-guest -> cabin, direct", "lan, router -> cabin, far"]: ` +
			`MAC addresses, LAN interfaces, lan, router -> nodes, the best first; at the end may be direct, else they are blocked while no exit is at hand`,
			exitRows},
		{"exit", "use", `"" or the name of a node, or several, the best first, like "cabin, far", with direct at the end if nothing shall be blocked`,
			text(orEmpty(isExits), func(c *Config, s string) { c.Exit.Use = s })},
		{"exit", "devices", `a list of MAC addresses like ["02:00:00:00:00:01"]`,
			list(as(isMAC), func(c *Config, l []string) { c.Exit.Devices = lower(l) })},
		{"exit", "priority", `0 (found), or a number from 1000 to 32000: our policy rules are there and just behind`,
			number(func(n int64) bool { return n == 0 || n >= 1000 && n <= 32000 }, func(c *Config, n int64) { c.Exit.Priority = uint32(n) })},
		{"tunnel", "engine", `"auto", "kernel" or "userspace"`,
			text(oneOf("auto", "kernel", "userspace"), func(c *Config, s string) { c.Tunnel.Engine = s })},
		{"tunnel", "port", `a number from 0 to 65535; 0: picked once and kept`,
			number(func(n int64) bool { return n >= 0 && n <= 65535 }, func(c *Config, n int64) { c.Tunnel.Port = uint16(n) })},
		{"home", "url", `"" or a URL like "https://home.example"`,
			text(orEmpty(isURL), func(c *Config, s string) { c.Home.URL = s })},
		{"home", "listen", `an address and port like ":8410"`,
			text(isListen, func(c *Config, s string) { c.Home.Listen = s })},
		{"home", "domain", `a domain like "mesh.internal"`,
			text(isName, func(c *Config, s string) { c.Home.Domain = s })},
		{"home", "policy_file", `"" or the absolute path of a file`,
			text(orEmpty(isPath), func(c *Config, s string) { c.Home.PolicyFile = s })},
		{"home", "cert_file", `"" or the absolute path of a file`,
			text(orEmpty(isPath), func(c *Config, s string) { c.Home.CertFile = s })},
		{"home", "key_file", `"" or the absolute path of a file`,
			text(orEmpty(isPath), func(c *Config, s string) { c.Home.KeyFile = s })},
		{"home", "acme_directory", `"" or a URL like "https://acme.example/directory"`,
			text(orEmpty(isURL), func(c *Config, s string) { c.Home.ACMEDirectory = s })},
		{"home", "records", `a list of names with an address each, like ["nas=192.168.1.20", "git.example.com=fd00::20"]`,
			list(parseRecord, func(c *Config, l []Record) { c.Home.Records = l })},
		{"home", "split_dns", `a list of domains with a resolver's address each, like ["lan=192.168.1.1", "corp.example=10.0.0.1:5353"]`,
			list(parseSplit, func(c *Config, l []Split) { c.Home.SplitDNS = l })},
		{"home", "stun", `an address and port like ":3478"`,
			text(isListen, func(c *Config, s string) { c.Home.STUN = s })},
		{"dns", "port", `a number from 0 to 65535, but not 53; 0: no answerer`,
			number(func(n int64) bool { return n >= 0 && n <= 65535 && n != 53 }, func(c *Config, n int64) { c.DNS.Port = uint16(n) })},
		{"dns", "hook", `true or false`,
			truth(func(c *Config, b bool) { c.DNS.Hook = b })},
		{"dns", "dnsmasq_dir", `"" or the absolute path of a directory`,
			text(orEmpty(isPath), func(c *Config, s string) { c.DNS.DnsmasqDir = s })},
		{"dns", "dnsmasq_restart", `a command and its arguments like ["/etc/init.d/dnsmasq", "restart"]`,
			list(as(func(s string) bool { return s != "" && len(s) <= 4095 && !strings.ContainsRune(s, 0) }), func(c *Config, l []string) { c.DNS.DnsmasqRestart = l })},
		{"web", "listen", `an address and port like ":8411"`,
			text(isListen, func(c *Config, s string) { c.Web.Listen = s })},
		{"drop", "folder", `"" (the inbox) or the absolute path of a directory`,
			text(orEmpty(isPath), func(c *Config, s string) { c.Drop.Folder = s })},
		{"drop", "quota", `"auto", 0 (none), or a size like "256MB" or "2GB"`,
			size(QuotaAuto, func(c *Config, n int64) { c.Drop.Quota = n })},
		{"drop", "keep_free", `a size like "64MB" or "2GB"`,
			size(0, func(c *Config, n int64) { c.Drop.KeepFree = n })},
		{"drop", "from", `a list of devices, by MAC address or name, like ["02:00:00:00:00:01", "printer"], or ["lan"]`,
			list(parseSender, func(c *Config, l []string) { c.Drop.From = l })},
	}
}

func text(ok func(string) bool, set func(*Config, string)) func(*Config, any) bool {
	return func(c *Config, v any) bool {
		s, is := v.(string)
		if !is || !ok(s) {
			return false
		}
		set(c, s)
		return true
	}
}

func truth(set func(*Config, bool)) func(*Config, any) bool {
	return func(c *Config, v any) bool {
		b, is := v.(bool)
		if is {
			set(c, b)
		}
		return is
	}
}

func list[T any](parse func(string) (T, bool), set func(*Config, []T)) func(*Config, any) bool {
	return func(c *Config, v any) bool {
		items, is := v.([]any)
		if !is || len(items) > maxList {
			return false
		}
		var out []T
		for _, item := range items {
			s, is := item.(string)
			if !is {
				return false
			}
			t, ok := parse(s)
			if !ok {
				return false
			}
			out = append(out, t)
		}
		set(c, out)
		return true
	}
}

// as takes a text as it is if it is right.
func as(ok func(string) bool) func(string) (string, bool) {
	return func(s string) (string, bool) { return s, ok(s) }
}

func number(ok func(int64) bool, set func(*Config, int64)) func(*Config, any) bool {
	return func(c *Config, v any) bool {
		n, is := v.(int64)
		if !is || !ok(n) {
			return false
		}
		set(c, n)
		return true
	}
}

// exitRows takes the rows if they are right together.
func exitRows(c *Config, v any) bool {
	texts, ok := textsOf(v)
	if !ok {
		return false
	}
	rows, _, err := parseRows(texts)
	c.Exit.Rows = rows
	return err == nil
}

func textsOf(v any) (out []string, ok bool) {
	items, ok := v.([]any)
	for _, item := range items {
		s, is := item.(string)
		if !is {
			return nil, false
		}
		out = append(out, s)
	}
	return out, ok
}

func isExits(s string) bool {
	_, _, err := ParseExits(s)
	return err == nil && len(s) <= 4095
}

func oneOf(allowed ...string) func(string) bool {
	return func(s string) bool { return slices.Contains(allowed, s) }
}

func orEmpty(ok func(string) bool) func(string) bool {
	return func(s string) bool { return s == "" || ok(s) }
}

func lower(l []string) []string {
	for i, s := range l {
		l[i] = strings.ReplaceAll(strings.ToLower(s), "-", ":")
	}
	return l
}

func isURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" &&
		u.User == nil && u.RawQuery == "" && u.Fragment == "" && len(s) <= 512
}

// isLabel follows RFC 1123, 2.1: one label of a host name.
func isLabel(s string) bool {
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-')
	}
	return s != "" && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-' && !strings.ContainsFunc(s, bad)
}

func isName(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return false
		}
	}
	return len(s) <= 253
}

func isPath(s string) bool {
	return filepath.IsAbs(s) && len(s) <= 4095 && !strings.ContainsRune(s, 0)
}

// isInterface follows the kernel: 1 to 15 bytes, no slash, no space, no colon.
func isInterface(s string) bool {
	bad := func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == ':' }
	return s != "" && len(s) <= 15 && s != "." && s != ".." && !strings.ContainsFunc(s, bad)
}

func isMAC(s string) bool {
	mac, err := net.ParseMAC(s)
	return err == nil && len(mac) == 6 && !strings.Contains(s, ".")
}

// isGroup reports whether a MAC address is that of many, IEEE 802-2014, 8.2.
func isGroup(mac string) bool {
	m, err := net.ParseMAC(mac)
	return err == nil && m[0]&1 != 0
}

func isListen(s string) bool {
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil || n == 0 {
		return false
	}
	_, err = netip.ParseAddr(host)
	return host == "" || err == nil
}

// show prints a value as it would stand in the file.
func show(v any) string {
	switch v := v.(type) {
	case string:
		return clip(quote(v))
	case []any:
		var parts []string
		for _, item := range v[:min(len(v), 8)] {
			parts = append(parts, show(item))
		}
		return clip("[" + strings.Join(parts, ", ") + "]")
	case map[string]any:
		return "a table"
	default:
		return clip(fmt.Sprint(v))
	}
}

func clip(s string) string {
	if len(s) <= 80 {
		return s
	}
	return strings.ToValidUTF8(s[:77], "") + "..."
}
