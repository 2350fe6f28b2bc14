package lan

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"subnetd/firmware/durable"
	"subnetd/firmware/lan/leases"

	"github.com/pelletier/go-toml/v2"
)

// Config is the owner's wishes for the home's network.
type Config struct {
	Router      netip.Prefix // the router's address and the size of the network
	First, Last netip.Addr   // of what DHCP gives
	Static      map[leases.MAC]netip.Addr
	Domain      string // that devices are told; "": none
}

// file is lan.toml as it is written:
//
//	address = "192.168.77.1/24"
//	pool    = "192.168.77.100-192.168.77.249"
//	leases  = ["02:00:00:00:00:01=192.168.77.10"]
//	domain  = "mesh.internal"
type file struct {
	Address string   `toml:"address"`
	Pool    string   `toml:"pool"`
	Leases  []string `toml:"leases"`
	Domain  string   `toml:"domain"`
}

const (
	// usual is a network that few providers' boxes have: theirs may be in front of this one.
	usual      = "192.168.77.1/24"
	mostPool   = 1000
	mostStatic = 1000
)

// Default is what is done where the owner wishes nothing.
func Default() Config {
	c, err := parseConfig(file{})
	if err != nil {
		panic("lan: the default network is not possible: " + err.Error())
	}
	return c
}

// ReadConfig reads the owner's wishes. What is wrong there costs all of them: the default
// is given beside the error.
func ReadConfig(path string) (Config, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return Default(), nil
	}
	var f file
	if err == nil {
		err = toml.NewDecoder(strings.NewReader(string(text))).DisallowUnknownFields().Decode(&f)
	}
	var c Config
	if err == nil {
		c, err = parseConfig(f)
	}
	if err != nil {
		return Default(), fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func parseConfig(f file) (Config, error) {
	if f.Address == "" {
		f.Address = usual
	}
	c := Config{Static: map[leases.MAC]netip.Addr{}, Domain: f.Domain}
	var err error
	if c.Router, err = netip.ParsePrefix(f.Address); err != nil {
		return c, fmt.Errorf("address: %w", err)
	}
	if !c.Router.Addr().Is4() || c.Router.Bits() < 16 || c.Router.Bits() > 29 || !c.Router.Addr().IsPrivate() {
		return c, fmt.Errorf("address: %v is no network of a home: private, and /16 to /29", c.Router)
	}
	low := number(c.Router.Masked().Addr())
	size := uint32(1) << (32 - c.Router.Bits())
	if own := number(c.Router.Addr()); own == low || own == low+size-1 {
		return c, fmt.Errorf("address: %v is no address of a host", c.Router)
	}
	c.First, c.Last = address(low+max(2, size*4/10)), address(low+min(size-2, size*4/10+149))
	if f.Pool != "" {
		from, to, _ := strings.Cut(f.Pool, "-")
		var bad error
		c.First, err = netip.ParseAddr(strings.TrimSpace(from))
		c.Last, bad = netip.ParseAddr(strings.TrimSpace(to))
		if err := errors.Join(err, bad); err != nil {
			return c, fmt.Errorf("pool: %w", err)
		}
	}
	if !hosts(c.Router, c.First) || !hosts(c.Router, c.Last) || c.Last.Less(c.First) || number(c.Last)-number(c.First) >= mostPool {
		return c, fmt.Errorf("pool: %v-%v is not inside of %v, or has more than %d addresses", c.First, c.Last, c.Router, mostPool)
	}
	return c, c.static(f.Leases)
}

// static reads the devices that have an address for good.
func (c *Config) static(lines []string) error {
	taken := map[netip.Addr]bool{c.Router.Addr(): true}
	if len(lines) > mostStatic {
		return fmt.Errorf("leases: more than %d", mostStatic)
	}
	for _, line := range lines {
		left, right, _ := strings.Cut(line, "=")
		mac, noMAC := leases.ParseMAC(strings.TrimSpace(left))
		addr, noAddr := netip.ParseAddr(strings.TrimSpace(right))
		if err := errors.Join(noMAC, noAddr); err != nil {
			return fmt.Errorf("leases: %q: %w", line, err)
		}
		if !hosts(c.Router, addr) || taken[addr] || c.Static[mac].IsValid() {
			return fmt.Errorf("leases: %q: %v is outside of %v, or given twice", line, addr, c.Router)
		}
		taken[addr] = true
		c.Static[mac] = addr
	}
	return nil
}

// hosts reports whether a device may have an address of the network.
func hosts(network netip.Prefix, a netip.Addr) bool {
	low := number(network.Masked().Addr())
	size := uint32(1) << (32 - network.Bits())
	return network.Contains(a) && number(a) != low && number(a) != low+size-1
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}

// ownNetwork is the home's network of IPv6 that no provider takes away: made by chance
// once, and kept (RFC 4193, 3.2). One that could not be kept is given beside the error.
func ownNetwork(path string) (netip.Prefix, error) {
	text, err := os.ReadFile(path)
	if err == nil {
		p, err := netip.ParsePrefix(strings.TrimSpace(string(text)))
		if err == nil && p.Bits() == 64 && p.Addr().Is6() && p.Addr().As16()[0] == 0xfd {
			return p.Masked(), nil
		}
	}
	a := [16]byte{0: 0xfd}
	_, _ = rand.Read(a[1:6]) // never fails
	p := netip.PrefixFrom(netip.AddrFrom16(a), 64)
	return p, durable.Write(path, []byte(p.String()+"\n"), 0o644)
}
