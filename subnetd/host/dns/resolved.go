package dns

import (
	"context"
	"strings"

	"subnetd/subnetd/host"
)

// mostResolved is how many domains systemd-resolved takes for a link
// (LINK_SEARCH_DOMAINS_MAX, systemd/src/resolve/resolved-link.h).
const mostResolved = 256

// joinResolved tells systemd-resolved that the domains, and nothing else ("~": for
// routing, not for searching), are asked by the mesh's link. It forgets that with the
// link, so a link that is another is told anew.
func (h *Hand) joinResolved(ctx context.Context, d host.DNS) error {
	domains := d.Domains[:min(len(d.Domains), mostResolved)]
	routes := []string{"resolvectl", "domain", d.Link}
	for _, domain := range domains {
		routes = append(routes, "~"+domain)
	}
	all := strings.Join(routes, " ") + d.Server.String() + " " + h.m.read("/sys/class/net/"+d.Link+"/ifindex")
	if all == h.linked {
		return nil
	}
	h.linked = ""
	for _, command := range [][]string{
		{"resolvectl", "dns", d.Link, d.Server.String()}, {"resolvectl", "default-route", d.Link, "no"}, routes,
	} {
		if err := h.cfg.Run(ctx, command...); err != nil {
			return failed(command[:3], err)
		}
	}
	h.linked = all
	return nil
}

// leaveResolved has systemd-resolved forget. When there is no such link any more, it
// has done so already.
func (h *Hand) leaveResolved(ctx context.Context, link string) {
	h.linked = ""
	if err := h.cfg.Run(ctx, "resolvectl", "revert", link); err != nil {
		h.cfg.Log.Debug("systemd-resolved knows nothing of the link", "link", link, "err", err)
	}
}
