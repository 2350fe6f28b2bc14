package cli

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"
)

func devicesVerbs() []command {
	return []command{
		{"expose", "DEVICE", "let the mesh reach a device at home, by a name and addresses of its own; said again, with other ports; a device is a MAC, an address or a name",
			"devices expose 02:00:00:00:00:01 --as printer --ports tcp/80,tcp/631 --wake", exposeCommand, nil},
		{"hide", "DEVICE", "end that, and cut what runs", "devices hide printer", hideCommand, nil},
		{"name", "DEVICE [NAME]", "what a device is called; without a name: as it calls itself", "devices name 02:00:00:00:00:02 tv", nameCommand, nil},
		{"mode", "all|chosen|none", "what of the LAN the mesh may reach: all of it, the devices exposed, nothing", "devices mode chosen", modeCommand, nil},
		{"web", "DEVICE PORT|off", "serve an exposed device's web pages by https, with a certificate, and tell it who calls; the port is that of its own web server: 80, http:5000, https:5001",
			"devices web nas http:5000", deviceWebCommand, nil},
		{"wake", "DEVICE", "wake a device by its network card", "devices wake nas", wakeCommand, nil},
		{"log", "", "which member reached what device how often lately, and when", "devices log", deviceLogCommand, nil},
	}
}

func devicesCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	asJSON := fs.Bool("json", false, "for programs")
	return asking(fs, func(ctx context.Context, c *api.Client, _ []string) error {
		d, err := c.Devices(ctx)
		if err != nil {
			return err
		}
		if *asJSON {
			return writeJSON(p.out, d)
		}
		return showDevices(p.out, d, p.now())
	})
}

func exposeCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	as := fs.String("as", "", "its name in the mesh (default: as it is called)")
	ports := fs.String("ports", "", "the only ports that are reached, like tcp/80,udp/5000-5010 (default: all)")
	wake := fs.Bool("wake", false, "wake it when the mesh sends to it")
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		r := status.DeviceExpose{Device: args[0], As: *as, Wake: *wake}
		if *ports != "" {
			r.Ports = strings.Split(*ports, ",")
		}
		d, err := c.DeviceExpose(ctx, r)
		return p.done(err, "%s: %s", called(d), printable(reach(d.Mesh), ""))
	})
}

func hideCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		d, err := c.DeviceHide(ctx, status.DeviceRequest{Device: args[0]})
		if d.Mesh != nil {
			return p.done(err, "%s is reached still: %s", called(d), printable(reach(d.Mesh), ""))
		}
		return p.done(err, "%s is hidden", called(d))
	})
}

func nameCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		r := status.DeviceName{Device: args[0]}
		if len(args) > 1 {
			r.Name = args[1]
		}
		d, err := c.DeviceName(ctx, r)
		return p.done(err, "%s is called %s now", args[0], called(d))
	})
}

func modeCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		d, err := c.DeviceMode(ctx, status.DeviceMode{Expose: args[0]})
		if err != nil {
			return err
		}
		return showDevices(p.out, d, p.now())
	})
}

func deviceWebCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		r := status.DeviceWebRequest{Device: args[0], Target: args[1]}
		if r.Target == "off" {
			r.Target = ""
		}
		d, err := c.DeviceWeb(ctx, r)
		if d.Mesh == nil || d.Mesh.Web == nil {
			return p.done(err, "%s answers for its web pages itself", called(d))
		}
		return p.done(err, "%s: %s", called(d), printable(webOf(d.Mesh.Web), ""))
	})
}

// webOf is where a device's web pages are.
func webOf(w *status.DeviceWeb) string {
	return cmp.Or(w.URL, "not served yet") + because("it is asked at "+w.Target)
}

func wakeCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		d, err := c.DeviceWake(ctx, status.DeviceRequest{Device: args[0]})
		return p.done(err, "a magic packet for %s is sent", called(d))
	})
}

func deviceLogCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	asJSON := fs.Bool("json", false, "for programs")
	return asking(fs, func(ctx context.Context, c *api.Client, _ []string) error {
		l, err := c.DeviceLog(ctx)
		if err != nil {
			return err
		}
		if *asJSON {
			return writeJSON(p.out, l)
		}
		return showLog(p.out, l, p.now())
	})
}

func whoisCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	asJSON := fs.Bool("json", false, "for programs")
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		w, err := c.Whois(ctx, args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			return writeJSON(p.out, w)
		}
		return showWhois(p.out, w)
	})
}

// showDevices draws the things at home.
func showDevices(w io.Writer, all status.Devices, now time.Time) error {
	b := &bytes.Buffer{}
	switch all.Expose {
	case "all":
		b.WriteString("! The mesh may reach all of the LAN: `subnetd devices mode chosen` leaves the devices that were exposed.\n\n")
	case "none":
		b.WriteString("The mesh reaches nothing at home: `subnetd devices mode chosen` changes that.\n\n")
	}
	if len(all.Devices) == 0 {
		b.WriteString("Nothing was seen on the LAN yet.\n")
	} else {
		rows := [][]string{{"DEVICE", "WHAT", "MAC", "ADDRESS", "SEEN", "IN THE MESH", "INTERNET"}}
		for _, d := range all.Devices {
			rows = append(rows, []string{cmp.Or(d.Name, "?"), what(d), d.MAC, firstOf(d.Addresses), deviceSeen(d, now), reach(d.Mesh), d.Exit})
		}
		table(b, rows)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// called is the best that a device can be called.
func called(d status.Device) string {
	name := ""
	if d.Mesh != nil {
		name = d.Mesh.Name
	}
	return printable(cmp.Or(name, d.Name, d.MAC, firstOf(d.Addresses)), "")
}

// what kind of thing it is, and who made it.
func what(d status.Device) string {
	maker := d.Maker
	if maker == "" && d.Private {
		maker = "made-up MAC"
	}
	if d.Kind == "" || maker == "" {
		return d.Kind + maker
	}
	return d.Kind + because(maker)
}

func deviceSeen(d status.Device, now time.Time) string {
	switch {
	case d.Online:
		return "online"
	case d.LastSeen.IsZero():
		return "never"
	}
	return ago(now, d.LastSeen) + " ago"
}

// reach is how the mesh reaches a device.
func reach(m *status.DeviceMesh) string {
	if m == nil {
		return "-"
	}
	out := addresses(m.Addresses)
	if m.Missing != "" {
		out = "not yet" + because(strings.TrimSuffix(m.Missing, "."))
	}
	if m.All {
		out += ", as all of the LAN is"
	}
	if len(m.Ports) > 0 {
		out += ", " + strings.Join(m.Ports, " ") + " only"
	}
	if m.Wake {
		out += ", is woken"
	}
	if m.Web != nil {
		out += ", " + cmp.Or(m.Web.URL, "web pages not yet served")
	}
	return out
}

func showLog(w io.Writer, l status.DeviceLog, now time.Time) error {
	b := &bytes.Buffer{}
	if len(l.Reached) == 0 {
		b.WriteString("No member reached a device within a week.\n")
	} else {
		rows := [][]string{{"WHO", "FROM", "REACHED", "FLOWS", "LAST"}}
		for _, r := range l.Reached {
			who := cmp.Or(r.Who, "?")
			if r.User != "" {
				who += because(r.User)
			}
			rows = append(rows, []string{who, r.From.String(), r.Device, strconv.FormatUint(r.Flows, 10), ago(now, r.Last) + " ago"})
		}
		table(b, rows)
	}
	if l.Full {
		b.WriteString("More pairs than are counted reached one another: some are missing.\n")
	}
	_, err := w.Write(b.Bytes())
	return err
}

func showWhois(w io.Writer, x status.Whois) error {
	b := &bytes.Buffer{}
	kind := map[string]string{
		status.WhoisNode: "a member of the mesh", status.WhoisSelf: "this router", status.WhoisDevice: "a device", status.WhoisRoute: "in a network of the mesh",
	}[x.Kind]
	if x.Via != "" {
		kind += " behind " + x.Via
	}
	rows := [][]string{{"address", fmt.Sprint(x.Address)}, {"name", x.Name}, {"is", cmp.Or(kind, x.Kind)}, {"of", owner(x.User, x.Tags)}}
	if d := x.Device; d != nil {
		rows = append(rows, []string{"mac", d.MAC}, []string{"what", what(*d)}, []string{"at home", addresses(d.Addresses)}, []string{"mesh", reach(d.Mesh)})
	}
	var full [][]string
	for _, r := range rows {
		if r[1] != "" {
			full = append(full, r)
		}
	}
	table(b, full)
	_, err := w.Write(b.Bytes())
	return err
}
