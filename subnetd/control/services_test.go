package control

import (
	"reflect"
	"testing"

	"subnetd/subnetd/mesh"

	"tailscale.com/tailcfg"
)

func TestServices(t *testing.T) {
	router := tailcfg.Service{Proto: mesh.RouterService, Port: 1}
	dns := tailcfg.Service{Proto: tailcfg.PeerAPIDNS, Port: 1}
	for _, c := range []struct {
		host Host
		want []tailcfg.Service
	}{
		{Host{}, []tailcfg.Service{router}},
		{Host{PeerAPI4: 23456}, []tailcfg.Service{router, {Proto: tailcfg.PeerAPI4, Port: 23456}, dns}},
		{Host{PeerAPI4: 1, PeerAPI6: 2}, []tailcfg.Service{router, {Proto: tailcfg.PeerAPI4, Port: 1}, {Proto: tailcfg.PeerAPI6, Port: 2}, dns}},
	} {
		if got := services(c.host); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%+v: got %v, want %v", c.host, got, c.want)
		}
		if len(c.want) > 1 && equalHosts(c.host, Host{}) {
			t.Errorf("%+v counts as nothing new", c.host)
		}
	}
}

// TestPeerServices: what a peer answers is known by what it tells of itself.
func TestPeerServices(t *testing.T) {
	n := nodeOf(&tailcfg.Node{UnsignedPeerAPIOnly: true, Hostinfo: (&tailcfg.Hostinfo{Services: []tailcfg.Service{
		{Proto: tailcfg.PeerAPI4, Port: 1}, {Proto: tailcfg.PeerAPIDNS, Port: 9}, {Proto: tailcfg.PeerAPI6, Port: 2}, {Proto: mesh.RouterService, Port: 1},
	}}).View()})
	if n.PeerAPI4 != 1 || n.PeerAPI6 != 2 || !n.Router || !n.Unsigned {
		t.Errorf("got %+v", n)
	}
}
