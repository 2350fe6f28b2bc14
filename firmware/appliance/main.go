// Appliance is every program of the appliance but subnetd: one file on the flash, called
// by several names.
//
//	init      PID 1: see firmware/init for what it does, services below for what it keeps
//	lan       the home: bridge, DHCP, router advertisements, names, firewall
//	uplink    the internet: DHCP and DHCPv6 with a delegated prefix, clock
//
// They meet in files below /run/appliance, each with one writer, and reload one another
// by init. What the owner asks goes to init, too: log, status, reload, reboot, reset.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"subnetd/firmware/disk"
	pid1 "subnetd/firmware/init"
	"subnetd/firmware/lan"
	"subnetd/firmware/modules"
	"subnetd/firmware/update"
	"subnetd/firmware/uplink"
)

const self = "/usr/bin/appliance"

// usage is what the owner may ask. init, lan and uplink are for init.
const usage = `usage: appliance COMMAND
  status            what runs, since when
  log SERVICE       the last lines of lan, uplink or subnetd
  reload SERVICE    reads its files again
  update SHA256 <IMAGE   another version, tried at the next boot
  system            which version runs, and whether another is tried next: as JSON, for subnetd
  reboot | poweroff | halt
  reset             back to how it was made: settings, keys and leases are lost; reboots
`

func main() { os.Exit(run(command(os.Args), os.Stdout, os.Stderr)) }

// command is what was called: by the name of a link to this file, or by the first
// argument.
func command(argv []string) []string {
	if len(argv) == 0 {
		return nil
	}
	if name := filepath.Base(argv[0]); slices.Contains([]string{"init", "modprobe", "reboot", "poweroff", "halt"}, name) {
		return append([]string{name}, argv[1:]...)
	}
	return argv[1:]
}

func run(args []string, out, errs io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(errs, usage)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	switch args[0] {
	case "init":
		if os.Getpid() != 1 {
			fmt.Fprintln(errs, "appliance: init is PID 1, or nothing")
			return 2
		}
		stop() // these signals mean something else to init
		fmt.Fprintln(errs, "appliance:", pid1.Run(config()))
		return 1
	case "update":
		return update.Run(ctx, args[1:], os.Stdin, errs)
	case "system":
		return update.Tell(out, errs)
	case "modprobe":
		if err := modprobe(args[1:]); err != nil {
			return 1 // the kernel asks for many that are not there
		}
		return 0
	case "lan":
		return lan.Main(ctx, args[1:], errs)
	case "uplink":
		return uplink.Main(ctx, args[1:], errs, reloadHome, built())
	case "status", "log", "reload", "reboot", "poweroff", "halt", "reset":
		text, err := pid1.Ask(args...)
		if err != nil {
			fmt.Fprintln(errs, "appliance:", err)
			return 1
		}
		fmt.Fprint(out, text)
		return 0
	}
	fmt.Fprint(errs, usage)
	return 2
}

// reloadHome has the home's side read what the uplink has written. Before it runs, it
// needs no telling.
func reloadHome() { _, _ = pid1.Ask("reload", "lan") }

// config is what init keeps running.
func config() pid1.Config {
	line, _ := os.ReadFile("/proc/cmdline") // stage1 has mounted it; without, all is as found
	wan, lans, shell := wishes(string(line))
	c := pid1.Config{
		Built:    built(),
		Limit:    3 * time.Minute,
		Before:   [][]string{{"/usr/bin/subnetd", "guard", "--state", pid1.DataDir + "/subnetd"}},
		Services: services(wan, lans),
		Defaults: map[string]string{subnetdConfig: subnetdDefaults},
		Shell:    shell,
	}
	onDisk(&c)
	return c
}

// onDisk is what stage1 has found: without it, as in a namespace, there is neither a disk nor a slot.
func onDisk(c *pid1.Config) {
	c.Modules = loadModules
	b, err := disk.ReadBoot()
	if err != nil {
		return
	}
	c.MountData = func(ctx context.Context) error { return b.MountData(ctx, pid1.DataDir, slog.Default()) }
	c.Confirm, c.Note, c.Trial = b.Confirm, b.Note, b.Trial
}

// needed are the modules that no device asks for: of the data's file system, of the daemon's tunnels, of the home's bridge, and of
// both firewalls. The kernel would ask for most of them itself, one after the other, and each time begin the firewall's
// transaction anew: that takes a router longer than the rest of its boot.
func needed() []string {
	return []string{"ext4", "crc32c_generic", "wireguard", "tun", "bridge", "nf_tables", "nft_ct", "nft_limit", "nft_chain_nat",
		"nft_masq", "nft_redir"}
}

func loadModules() error {
	all, err := modules.Running()
	if err != nil {
		return err
	}
	errs := []error{all.Coldplug()}
	for _, name := range needed() {
		errs = append(errs, all.Load(name))
	}
	return errors.Join(errs...)
}

// modprobe is what the kernel calls for a module: its words end in the module's name or an alias.
func modprobe(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: modprobe MODULE")
	}
	all, err := modules.Running()
	if err != nil {
		return err
	}
	return all.Load(args[len(args)-1])
}

const (
	subnetdConfig   = pid1.DataDir + "/etc/subnetd/subnetd.toml"
	subnetdDefaults = `# The wishes of the owner; the page writes here, too. Every key may be left out: see subnetd's own example.

[lan]
interfaces = ["` + lan.Bridge + `"]

[dns]
# The appliance's own resolver reads these files as dnsmasq does.
dnsmasq_dir = "` + lan.NamesDir + `"
dnsmasq_restart = ["` + self + `", "reload", "lan"]
`
)

// services: nothing talks to the internet before the home's side has shut the firewall.
func services(wan, lans string) []pid1.Service {
	return []pid1.Service{
		{Name: "lan", Command: []string{self, "lan", "--wan", wan, "--lan", lans}},
		{Name: "uplink", After: "lan", Command: []string{self, "uplink", "--wan", wan}},
		{
			Name:    "subnetd",
			After:   "lan",
			Command: []string{"/usr/bin/subnetd", "run", "--state", pid1.DataDir + "/subnetd", "--config", subnetdConfig, "--system", self},
			Up:      answers,
			Tells:   "lan", // which opens the ports for it
		},
	}
}

// answers asks subnetd how it is, at the socket of its API.
func answers(ctx context.Context) error {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", lan.SubnetdSocket)
	}}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://subnetd/v1/status", nil)
	if err != nil {
		return err
	}
	res, err := c.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("subnetd: %s", res.Status)
	}
	return nil
}

// wishes are what the kernel's command line says: "appliance.wan=eth0",
// "appliance.lan=eth1,eth2", "appliance.shell".
func wishes(line string) (wan, lans string, shell bool) {
	for word := range strings.FieldsSeq(line) {
		switch name, value, _ := strings.Cut(word, "="); name {
		case "appliance.wan":
			wan = value
		case "appliance.lan":
			lans = value
		case "appliance.shell":
			shell = true
		}
	}
	return wan, lans, shell
}

// built is the time of the commit that this program was built of; zero: not known.
func built() time.Time {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return time.Time{}
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			t, _ := time.Parse(time.RFC3339, s.Value) // zero, if it is none
			return t
		}
	}
	return time.Time{}
}
