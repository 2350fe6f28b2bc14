package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/config"
	"subnetd/subnetd/drop"
	"subnetd/subnetd/front"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"
)

// newDrop gives the store of files. What it remembers of the owner's folder is lost with
// a damaged file only, and then it is remembered anew.
func (d *daemon) newDrop() *drop.Store {
	var memory drop.Memory
	if _, err := d.dir.Load("drop", &memory); err != nil {
		d.log.Error("where the disk for files was mounted is not known any more", "err", err)
	}
	dialer := &net.Dialer{KeepAlive: 15 * time.Second}
	return drop.New(drop.Config{
		Inbox: filepath.Join(d.opts.State, "inbox"), Memory: memory, Save: func(m drop.Memory) error { return d.dir.Save("drop", m) },
		Netmap: d.engine.Netmap, Dial: dialer.DialContext, Now: d.clock.now, Log: d.logger("drop"),
		Changed: func() {
			d.dropNews.Add(1)
			d.page.Look()
		},
	})
}

// dropSettings is what the owner wants of files.
func dropSettings(c config.Drop) drop.Settings {
	return drop.Settings{Folder: c.Folder, Quota: c.Limit(), KeepFree: c.KeepFree}
}

func (d *daemon) dropCalls() api.Drop {
	return api.Drop{
		Show: d.dropShow, Send: d.dropSend, Folder: d.dropFolder, Allow: d.dropAllow,
		Open:   func(name string) (io.ReadCloser, int64, error) { return d.drop.Open(name) },
		Remove: func(_ context.Context, name string) error { return d.drop.Remove(name) },
	}
}

func (d *daemon) dropShow() status.Drop {
	s := d.drop.Show()
	s.From = append(s.From, d.config().Drop.From...)
	if nm := d.engine.Netmap(); nm != nil && nm.Self.Name != "" {
		s.Address = "http://drop." + strings.ToLower(plainName(nm.Self.Name))
	}
	return s
}

func (d *daemon) dropSend(ctx context.Context, to, name string, size int64, file io.Reader) (status.DropSent, error) {
	n := d.dropTo(to)
	if n == nil {
		return status.DropSent{}, fmt.Errorf("%w: %q; `subnetd status` lists them", api.ErrUnknownPeer, to)
	}
	return d.drop.Send(ctx, n, name, size, file)
}

// dropTo is the member of that name or address, not what stands behind it; nil: there is
// none.
func (d *daemon) dropTo(name string) *mesh.Node {
	nm := d.engine.Netmap()
	if nm == nil {
		return nil
	}
	n := find(nm, name)
	if a, err := netip.ParseAddr(name); n != nil && err == nil && !n.Own(a) {
		return nil
	}
	return n
}

// dropGateway is what things at home send to.
func (d *daemon) dropGateway() http.Handler {
	return &drop.Gateway{
		Store: d.drop, From: d.dropFrom,
		To: func(name string) *mesh.Node {
			nm := d.engine.Netmap()
			full := ""
			if nm != nil {
				full = plainName(nm.Self.Name)
			}
			if first, _, _ := strings.Cut(full, "."); full != "" && (strings.EqualFold(name, full) || strings.EqualFold(name, first)) {
				return &nm.Self
			}
			return d.dropTo(name)
		},
		Asker: func(r *http.Request) netip.Addr {
			from, _, _ := front.From(r)
			return from
		},
	}
}

// dropFrom is what is at an address of the LAN, as the kernel knows it, and whether that
// may send. The MAC address is what it goes by: whoever is at home can take another's.
func (d *daemon) dropFrom(a netip.Addr) (name string, may bool) {
	n, err := neighbourAt([]netip.Addr{a})
	if err != nil || n == nil || !slices.Contains(d.engine.Plan().LANs, n.Interface) {
		return "", false
	}
	s := d.devices.shown()
	dev, err := s.find(n.MAC)
	if err != nil {
		dev = status.Device{MAC: n.MAC}
	}
	for _, who := range s.config.Drop.From {
		may = may || who == "lan" || who == n.MAC || known(dev, who, netip.Addr{})
	}
	if name = dev.Name; name == "" {
		name = n.MAC
	}
	return name, may
}

// dropFolder has files land elsewhere. The owner says that the folder is the right one as
// it is, wherever its disk was mounted before.
func (d *daemon) dropFolder(ctx context.Context, folder string) (status.Drop, error) {
	if folder != "" {
		if !filepath.IsAbs(folder) {
			return status.Drop{}, api.BadRequest(fmt.Errorf("%q is no absolute path", folder))
		}
		folder = filepath.Clean(folder)
		if err := d.drop.Choose(folder); err != nil {
			return status.Drop{}, api.BadRequest(fmt.Errorf("that folder cannot be had: %w", err))
		}
	}
	return d.changeDrop(func(c config.Drop) config.Drop {
		c.Folder = folder
		return c
	})
}

// dropAllow lets something at home send, or ends that.
func (d *daemon) dropAllow(_ context.Context, r status.DropAllow) (status.Drop, error) {
	who := strings.ToLower(r.Device)
	if who != "lan" && (r.Allow || !slices.Contains(d.config().Drop.From, who)) {
		dev, err := d.devices.shown().find(r.Device)
		if err != nil {
			return status.Drop{}, err
		}
		if dev.MAC == "" {
			return status.Drop{}, api.BadRequest(errors.New("the MAC address of that device is not known, by which it is told from others: turn it on first"))
		}
		who = dev.MAC
	}
	if !r.Allow && who != "lan" && slices.Contains(d.config().Drop.From, "lan") {
		return status.Drop{}, api.BadRequest(errors.New("all of the LAN may send: forbid lan first, then allow those that may"))
	}
	return d.changeDrop(func(c config.Drop) config.Drop { return c.Allowing(who, r.Allow) })
}

// changeDrop changes the section [drop] of the file, and puts it in force.
func (d *daemon) changeDrop(change func(config.Drop) config.Drop) (status.Drop, error) {
	if err := d.writeDrop(change); err != nil {
		return status.Drop{}, err
	}
	return d.dropShow(), nil
}

func (d *daemon) writeDrop(change func(config.Drop) config.Drop) error {
	d.wishes.Lock()
	defer d.wishes.Unlock()
	file, err := config.Load(d.opts.Config) // its owner may be editing it
	if err != nil {
		return err
	}
	next := change(file.Drop)
	edits := map[string]any{}
	if next.Folder != file.Drop.Folder {
		edits["folder"] = next.Folder
	}
	if !slices.Equal(next.From, file.Drop.From) {
		edits["from"] = append([]string{}, next.From...)
	}
	if err := d.editConfig("drop", edits); err != nil {
		return err
	}
	c := d.config()
	c.Drop = next
	d.adopt(c)
	return nil
}
