package apply

import (
	"context"
	"errors"
	"testing"

	"subnetd/subnetd/host"

	"github.com/google/go-cmp/cmp"
)

// hand records its calls in a shared diary and fails when told to.
type hand[T any] struct {
	name  string
	diary *[]string
	err   error
}

func (h *hand[T]) Set(_ context.Context, v T) error {
	*h.diary = append(*h.diary, h.name)
	return h.err
}

var (
	errG = errors.New("no maps")
	errT = errors.New("no tun")
	errF = errors.New("no nft")
	errR = errors.New("no netlink")
	errD = errors.New("no disk")
)

func TestSet(t *testing.T) {
	up := host.Config{
		Tunnel: host.Tunnel{Name: "mesh0"}, Firewall: host.Firewall{Interface: "mesh0"}, Route: host.Route{Interface: "mesh0"},
	}
	waiting := host.Config{Firewall: host.Firewall{Sources: []host.ExitSource{{LAN: true, Block: true}}}}
	blocked := up
	blocked.Firewall.Sources = waiting.Firewall.Sources
	for _, tc := range []struct {
		name                                string
		config                              host.Config
		guarded                             string
		guard, tunnel, firewall, route, dns error
		want                                []string
		errs                                []error
	}{
		{name: "up", config: up, want: []string{"tunnel", "firewall", "route", "dns", "guard"}},
		{name: "down", guarded: "mesh0", want: []string{"dns", "route", "firewall", "tunnel", "guard"}},
		{name: "up, tunnel fails", config: up, tunnel: errT, want: []string{"tunnel", "firewall", "route", "dns", "guard"}, errs: []error{errT}},
		{name: "up, route fails", config: up, route: errR, dns: errD, want: []string{"tunnel", "firewall", "route", "dns", "guard"}, errs: []error{errR, errD}},
		{name: "never guarded", config: up, firewall: errF, want: []string{"tunnel", "firewall", "dns", "guard"}, errs: []error{errF, ErrUnguarded}},
		{name: "guarded before", config: up, guarded: "mesh0", firewall: errF, want: []string{"tunnel", "firewall", "route", "dns", "guard"}, errs: []error{errF}},
		{name: "another guarded", config: up, guarded: "mesh1", firewall: errF, want: []string{"tunnel", "firewall", "dns", "guard"}, errs: []error{errF, ErrUnguarded}},
		{name: "blocked", config: blocked, want: []string{"guard", "tunnel", "firewall", "route", "dns"}},
		{name: "blocked, no guard", config: blocked, guard: errG, want: []string{"guard", "tunnel", "firewall", "route", "dns"}, errs: []error{errG}},
		{name: "blocked, not joined", config: waiting, want: []string{"guard", "dns", "route", "firewall", "tunnel"}},
		{name: "down, no guard", guard: errG, want: []string{"dns", "route", "firewall", "tunnel", "guard"}, errs: []error{errG}},
		{name: "down, all fail", tunnel: errT, firewall: errF, route: errR, dns: errD, want: []string{"dns", "route", "firewall", "tunnel", "guard"}, errs: []error{errT, errF, errR, errD}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var diary []string
			a := New(&hand[host.Guard]{"guard", &diary, tc.guard}, &hand[host.Tunnel]{"tunnel", &diary, tc.tunnel}, &hand[host.Firewall]{"firewall", &diary, tc.firewall}, &hand[host.Route]{"route", &diary, tc.route}, &hand[host.DNS]{"dns", &diary, tc.dns})
			a.guarded = tc.guarded
			err := a.Set(t.Context(), tc.config)
			if d := cmp.Diff(tc.want, diary); d != "" {
				t.Error(d)
			}
			if (err == nil) != (len(tc.errs) == 0) {
				t.Errorf("error %v, want %v", err, tc.errs)
			}
			for _, want := range tc.errs {
				if !errors.Is(err, want) {
					t.Errorf("error %v does not say %v", err, want)
				}
			}
		})
	}
}
