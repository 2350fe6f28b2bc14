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
	errT = errors.New("no tun")
	errF = errors.New("no nft")
	errR = errors.New("no netlink")
)

func TestSet(t *testing.T) {
	up := host.Config{
		Tunnel: host.Tunnel{Name: "mesh0"}, Firewall: host.Firewall{Interface: "mesh0"}, Route: host.Route{Interface: "mesh0"},
	}
	for _, tc := range []struct {
		name                    string
		config                  host.Config
		guarded                 string
		tunnel, firewall, route error
		want                    []string
		errs                    []error
	}{
		{name: "up", config: up, want: []string{"tunnel", "firewall", "route"}},
		{name: "down", guarded: "mesh0", want: []string{"route", "firewall", "tunnel"}},
		{name: "up, tunnel fails", config: up, tunnel: errT, want: []string{"tunnel", "firewall", "route"}, errs: []error{errT}},
		{name: "up, route fails", config: up, route: errR, want: []string{"tunnel", "firewall", "route"}, errs: []error{errR}},
		{name: "never guarded", config: up, firewall: errF, want: []string{"tunnel", "firewall"}, errs: []error{errF, ErrUnguarded}},
		{name: "guarded before", config: up, guarded: "mesh0", firewall: errF, want: []string{"tunnel", "firewall", "route"}, errs: []error{errF}},
		{name: "another guarded", config: up, guarded: "mesh1", firewall: errF, want: []string{"tunnel", "firewall"}, errs: []error{errF, ErrUnguarded}},
		{name: "down, all fail", tunnel: errT, firewall: errF, route: errR, want: []string{"route", "firewall", "tunnel"}, errs: []error{errT, errF, errR}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var diary []string
			a := New(&hand[host.Tunnel]{"tunnel", &diary, tc.tunnel}, &hand[host.Firewall]{"firewall", &diary, tc.firewall}, &hand[host.Route]{"route", &diary, tc.route})
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
