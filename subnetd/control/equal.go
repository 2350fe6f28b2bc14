package control

import (
	"maps"
	"slices"

	"subnetd/subnetd/mesh"
)

// equalNetmaps compares by value, so that frames which say nothing new cost
// the rest of the house nothing.
func equalNetmaps(a, b *mesh.Netmap) bool {
	return equalNodes(&a.Self, &b.Self) &&
		slices.EqualFunc(a.Peers, b.Peers, func(x, y mesh.Node) bool { return equalNodes(&x, &y) }) &&
		slices.EqualFunc(a.Relays, b.Relays, equalRegions) &&
		equalNames(a.Names, b.Names) &&
		equalRules(a.Filter, b.Filter) && slices.EqualFunc(a.Grants, b.Grants, equalGrants) &&
		maps.Equal(a.Users, b.Users) && maps.Equal(a.People, b.People) && a.Domain == b.Domain && slices.Equal(a.Health, b.Health) &&
		a.ClockSkew == b.ClockSkew && a.Locked == b.Locked &&
		(a.Devices == nil) == (b.Devices == nil) && slices.EqualFunc(a.Devices, b.Devices, equalDevices)
}

func equalGrants(a, b mesh.Grant) bool {
	return slices.Equal(a.Srcs, b.Srcs) && slices.Equal(a.Dsts, b.Dsts) && slices.Equal(a.Caps, b.Caps)
}

func equalDevices(a, b mesh.Device) bool {
	return a.Name == b.Name && a.MAC == b.MAC && a.Full == b.Full && slices.Equal(a.LAN, b.LAN) && slices.Equal(a.Mesh, b.Mesh)
}

func equalNodes(a, b *mesh.Node) bool {
	return a.ID == b.ID && a.Name == b.Name && a.User == b.User && a.Key == b.Key && a.Disco == b.Disco &&
		slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.AllowedIPs, b.AllowedIPs) &&
		slices.Equal(a.Endpoints, b.Endpoints) && a.HomeRelay == b.HomeRelay && equalBools(a.Online, b.Online) &&
		a.LastSeen.Equal(b.LastSeen) && a.KeyExpiry.Equal(b.KeyExpiry) && a.Expired == b.Expired &&
		a.Authorized == b.Authorized && a.Cap == b.Cap && slices.Equal(a.Caps, b.Caps) && a.Jailed == b.Jailed &&
		a.OS == b.OS && slices.Equal(a.Tags, b.Tags) && a.Router == b.Router &&
		a.MasqueradeV4 == b.MasqueradeV4 && a.MasqueradeV6 == b.MasqueradeV6 &&
		a.PeerAPI4 == b.PeerAPI4 && a.PeerAPI6 == b.PeerAPI6 && a.Unsigned == b.Unsigned
}

func equalBools(a, b *bool) bool {
	return a == b || a != nil && b != nil && *a == *b
}

func equalRegions(a, b mesh.RelayRegion) bool {
	return a.ID == b.ID && a.Code == b.Code && a.Name == b.Name && a.NoMeasure == b.NoMeasure &&
		slices.Equal(a.Nodes, b.Nodes)
}

func equalNames(a, b mesh.Names) bool {
	return a.MagicDNS == b.MagicDNS && slices.Equal(a.Search, b.Search) && slices.Equal(a.Records, b.Records) &&
		slices.Equal(a.Upstream, b.Upstream) && slices.Equal(a.Hidden, b.Hidden) && maps.EqualFunc(a.Routes, b.Routes, slices.Equal[[]string])
}

func equalRules(a, b []mesh.Rule) bool {
	return slices.EqualFunc(a, b, func(x, y mesh.Rule) bool {
		return slices.Equal(x.Srcs, y.Srcs) && slices.Equal(x.Dsts, y.Dsts) && slices.Equal(x.Protos, y.Protos)
	})
}
