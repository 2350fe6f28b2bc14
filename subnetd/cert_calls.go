package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/cert"
	"subnetd/subnetd/config"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/plan"
	"subnetd/subnetd/status"
)

// caLabel is the service of plan.Services where certificates are had.
const caLabel = "ca"

// issuer is the home's CA, joined with whom this router knows.
type issuer struct {
	d  *daemon
	ca *cert.CA
	// site is what stands at ca.HOME.DOMAIN.
	site http.Handler
}

func newIssuer(d *daemon) *issuer {
	i := &issuer{d: d}
	i.ca = cert.New(cert.Config{
		Home: i.home, Find: i.find, Store: cert.Store{Load: i.load, Save: d.dir.Save},
		Now: d.clock.now, Behind: d.clock.runsBehind, Log: d.logger("cert"),
	})
	dialer := &net.Dialer{}
	i.site = cert.Site{CA: i.ca, ACME: cert.NewACME(cert.ACMEConfig{CA: i.ca, Host: i.host, Dial: dialer.DialContext})}
	return i
}

// home is this router's name and domain in the mesh.
func (i *issuer) home() (cert.Home, bool) {
	nm := i.d.engine.Netmap()
	if nm == nil {
		return cert.Home{}, false
	}
	return homeOf(nm)
}

func homeOf(nm *mesh.Netmap) (cert.Home, bool) {
	name := strings.ToLower(plainName(nm.Self.Name))
	_, domain, ok := strings.Cut(name, ".")
	return cert.Home{Name: name, Domain: domain}, ok
}

// host is where the CA is asked.
func (i *issuer) host() string {
	h, ok := i.home()
	if !ok {
		return ""
	}
	return caLabel + "." + h.Name
}

func (i *issuer) find(name string) (cert.Host, bool) {
	nm := i.d.engine.Netmap()
	if nm == nil {
		return cert.Host{}, false
	}
	var devices []mesh.Device
	if i.d.config().LAN.Expose != config.ExposeNone {
		devices = i.d.devices.current()
	}
	return hostOf(name, nm, devices, i.d.clock.now())
}

// hostOf is who has a name, in lower case, and where he is asked to prove it: a device at
// home by its address of the LAN, a member by its first of each family in the mesh, as
// those behind it may be of things behind the node.
func hostOf(name string, nm *mesh.Netmap, devices []mesh.Device, now time.Time) (cert.Host, bool) {
	home, ok := homeOf(nm)
	label, below := strings.CutSuffix(name, "."+home.Name)
	services := plan.Services()
	if name == home.Name || below && slices.Contains(services[:], label) {
		return cert.Host{Self: true}, ok
	}
	for _, d := range devices {
		if names := deviceNames(d, home); slices.Contains(names, name) {
			return cert.Host{Addrs: d.LAN, Names: names}, true
		}
	}
	for k := range nm.Peers {
		n := &nm.Peers[k]
		if strings.ToLower(plainName(n.Name)) != name || n.ExpiredAt(now) {
			continue
		}
		var h cert.Host
		for _, p := range n.Addresses {
			first := !slices.ContainsFunc(h.Addrs, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() })
			if p.IsSingleIP() && first {
				h.Addrs = append(h.Addrs, p.Addr())
			}
		}
		return h, true
	}
	return cert.Host{}, false
}

// deviceNames is what a device at home is called: here, and by the coordinator.
func deviceNames(d mesh.Device, home cert.Home) (names []string) {
	if d.Name != "" {
		names = append(names, strings.ToLower(d.Name)+"."+home.Name)
	}
	if full := strings.ToLower(d.Full); strings.HasSuffix(full, "."+home.Domain) && !slices.Contains(names, full) {
		names = append(names, full)
	}
	return names
}

// load reads a state file. One that was damaged is not missed in silence: whoever trusts
// this home would have to learn to trust another key.
func (i *issuer) load(name string, v any) (bool, error) {
	found, err := i.d.dir.Load(name, v)
	if aside := i.d.dir.Lost(name); err == nil && !found && aside != "" {
		err = fmt.Errorf("the state file %s was damaged: put a backup of it back, or remove %s to begin anew", name, aside)
	}
	return found, err
}

func (i *issuer) calls() api.Certificates {
	return api.Certificates{List: i.list, Issue: i.issue, Root: i.root}
}

func (i *issuer) list() (status.Certificates, error) {
	root, err := i.ca.Root()
	if err != nil {
		return status.Certificates{}, inWordsOfCert(err)
	}
	host := i.host()
	out := status.Certificates{
		Name: root.Subject.CommonName, Domain: root.PermittedDNSDomains[0], Fingerprint: cert.Fingerprint(root), Until: root.NotAfter,
		URL: "http://" + host + "/", Directory: "https://" + host + cert.DirectoryPath, Issued: []status.Certificate{},
	}
	for _, c := range i.ca.Issued() {
		out.Issued = append(out.Issued, status.Certificate{Names: c.Names, ACME: c.Account != "", Since: c.Since, Until: c.Until, Revoked: c.Revoked})
	}
	return out, nil
}

// issue makes a certificate for all names of whom a name means, which may be the first
// label of one.
func (i *issuer) issue(_ context.Context, r status.CertificateRequest) (status.CertificatePair, error) {
	names := i.names(r.Name)
	pair, err := i.ca.Issue(names)
	if err != nil {
		return status.CertificatePair{}, inWordsOfCert(err)
	}
	return status.CertificatePair{Name: names[0], Key: string(pair.Key), Chain: string(pair.Chain), Until: pair.Until}, nil
}

// names is all names of whom the owner means: of a device at home first, then of a member.
func (i *issuer) names(name string) []string {
	name = strings.ToLower(plainName(name))
	h, _ := i.home()
	for _, full := range []string{name, name + "." + h.Name, name + "." + h.Domain} {
		if who, ok := i.find(full); ok {
			others := slices.DeleteFunc(slices.Clone(who.Names), func(n string) bool { return n == full })
			return append([]string{full}, others...)
		}
	}
	return []string{name}
}

func (i *issuer) root(form string) ([]byte, string, error) {
	root, err := i.ca.Root()
	if err != nil {
		return nil, "", inWordsOfCert(err)
	}
	data, media := cert.File(root, form)
	return data, media, nil
}

// inWordsOfCert sorts the CA's errors for the API.
func inWordsOfCert(err error) error {
	switch {
	case errors.Is(err, cert.ErrNoMesh), errors.Is(err, cert.ErrClock):
		return unknown{err, api.ErrNoCertificates}
	case errors.Is(err, cert.ErrUnknown):
		return unknown{err, api.ErrUnknownName}
	}
	return err
}
