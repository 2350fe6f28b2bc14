package coord

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// The bounds of what one node may say of itself.
const (
	maxEndpoints = 64
	maxOffers    = 256
	maxServices  = 16
	maxBehind    = 256 // devices behind a member that is not the router itself
	maxText      = 255 // bytes of a host's name, system or version
	maxRegion    = 1<<16 - 1
)

// Members that are a subnetd tell of the devices behind them among their services, and
// hear of what those have by a capability of their own.
const (
	devicesService = "subnetd-devices"     // all devices are told of
	deviceService  = "subnetd-device"      // one; Description is "NAME ID" or "NAME", Port 1 that it has IPv6
	devicesCap     = "subnetd/cap/devices" // each of its values is a given
)

// given is what a device has, for the member before it.
type given struct {
	Name string       `json:"name"`          // as it was asked for
	ID   string       `json:"mac,omitempty"` // the same
	Full string       `json:"full"`
	Mesh []netip.Addr `json:"mesh"`
}

var errGone = errors.New("this node is no member any more")

// member gives the node of a request for changes, if it still has that key.
func (d *draft) member(id tailcfg.NodeID, k key.NodePublic) (*node, error) {
	if n := d.nodes[id]; n == nil || n.Key != k {
		return nil, errGone
	}
	return d.nodes[id], nil
}

// tell takes over where a node says it is, and reports whether it says something
// else too, for note. Nothing new costs nothing: not a write, not a word to its
// peers.
func (d *draft) tell(old *node, req *tailcfg.MapRequest) (more bool) {
	next := old.live
	if !req.DiscoKey.IsZero() {
		next.Disco = req.DiscoKey
	}
	// A long poll may be overtaken by an update; what it lacks is not news.
	if len(req.Endpoints) > 0 || !req.Stream {
		next.Endpoints = endpointsOf(req)
	}
	if h := req.Hostinfo; h != nil {
		if h.NetInfo != nil {
			next.Home = max(0, min(h.NetInfo.PreferredDERP, maxRegion))
		}
		next.Services = servicesOf(h.Services)
	}
	if !sameLive(&old.live, &next) {
		d.edit(old.ID).live = next
	}
	said := d.said(old, req)
	return !sameRecord(&old.record, &said)
}

// note takes over what a node says that must last. It is a change of its own, so
// that a full disk keeps nobody from saying where he is.
func (d *draft) note(old *node, req *tailcfg.MapRequest) {
	if said := d.said(old, req); !sameRecord(&old.record, &said) {
		d.spendDevices(old.Devices, said.Devices)
		d.edit(old.ID).record = said
		d.lasting = true
	}
}

func (d *draft) said(old *node, req *tailcfg.MapRequest) record {
	next := *old
	if req.Hostinfo != nil {
		d.introduce(&next, req.Hostinfo)
	}
	if req.Version >= minVersion {
		next.Cap = req.Version
	}
	return next.record
}

// pace is how often one node may say something new: each is a word to all its
// peers, and some a write to the flash. Who says more waits; nothing is lost.
type pace struct{ tell, note *rate.Limiter }

func newPace() *pace {
	return &pace{tell: rate.NewLimiter(rate.Every(200*time.Millisecond), 50), note: rate.NewLimiter(rate.Every(30*time.Second), 10)}
}

// introduce takes what a host says that must last.
func (d *draft) introduce(n *node, h *tailcfg.Hostinfo) {
	n.OS, n.Client = clip(h.OS), clip(h.IPNVersion)
	n.Offers = routesOf(h.RoutableIPs)
	if name := clip(h.Hostname); name != n.Hostname || n.Name == "" {
		n.Hostname = name
		if !n.Named {
			n.Name = free(label(name), d.taken(n.ID))
		}
	}
	if want, all := devicesBehind(h.Services); all && !n.Self {
		if next, err := d.devicesOf(n, want); err == nil { // else they stay as they are
			n.Devices = next
		}
	}
}

// devicesBehind is the devices that a member tells of among its services, and whether
// it does at all.
func devicesBehind(ss []tailcfg.Service) (want []Device, all bool) {
	for _, s := range ss {
		switch s.Proto {
		case devicesService:
			all = true
		case deviceService:
			name, id, _ := strings.Cut(clip(s.Description), " ")
			if len(want) < maxBehind {
				want = append(want, Device{Name: name, V6: s.Port == 1, ID: id})
			}
		}
	}
	return want, all
}

// arrived marks a node that has begun its long poll.
func (d *draft) arrived(n *node) {
	if n = d.nodes[n.ID]; n.Online && n.left.IsZero() {
		return
	}
	n = d.edit(n.ID)
	n.Online, n.left, n.Seen = true, time.Time{}, d.now
}

func clip(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxText)], "") // no half character, which the disk would not give back
}

func endpointsOf(req *tailcfg.MapRequest) []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range req.Endpoints[:min(len(req.Endpoints), maxEndpoints)] {
		if e.IsValid() && e.Port() != 0 && e.Addr().Zone() == "" && !slices.Contains(out, e) {
			out = append(out, e)
		}
	}
	return out
}

// routesOf leaves out what nobody may offer: parts of the mesh's own pools.
func routesOf(ps []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps[:min(len(ps), maxOffers)] {
		ours := p.Bits() > 0 && (p.Overlaps(pool4) || p.Overlaps(pool6))
		if p.IsValid() && p == p.Masked() && !p.Addr().Is4In6() && !ours && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// servicesOf is what the members hear of.
func servicesOf(ss []tailcfg.Service) []tailcfg.Service {
	ss = slices.DeleteFunc(slices.Clone(ss), func(s tailcfg.Service) bool { return s.Proto == devicesService || s.Proto == deviceService })
	ss = ss[:min(len(ss), maxServices)]
	for i := range ss {
		ss[i].Proto = tailcfg.ServiceProto(clip(string(ss[i].Proto)))
		ss[i].Description = clip(ss[i].Description)
	}
	return ss
}

// sameRecord compares what a node can change of its record.
func sameRecord(a, b *record) bool {
	return a.Name == b.Name && a.Hostname == b.Hostname && a.OS == b.OS && a.Client == b.Client && a.Cap == b.Cap &&
		slices.Equal(a.Offers, b.Offers) && slices.Equal(a.Devices, b.Devices)
}

func sameService(a, b tailcfg.Service) bool {
	return a.Proto == b.Proto && a.Port == b.Port && a.Description == b.Description
}

func sameLive(a, b *live) bool {
	return a.Disco == b.Disco && a.Home == b.Home && slices.Equal(a.Endpoints, b.Endpoints) && slices.EqualFunc(a.Services, b.Services, sameService)
}
