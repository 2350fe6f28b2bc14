// Package dns is the hand that has this machine's own resolver ask the answerer for
// the names of the mesh, so that the whole house knows them with nothing set anywhere.
//
// Set looks what answers here (look.go) and hooks into that: dnsmasq reads one file
// of ours (dnsmasq.go), systemd-resolved is told of the mesh interface (resolved.go),
// and only where nothing else runs, and never on OpenWrt, resolv.conf is replaced
// (resolvconf.go). What is done is on disk before it is done, so that it is undone to
// the byte whenever this process died, and whatever the machine is by then.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"sync"
	"sync/atomic"

	"subnetd/subnetd/host"
	"subnetd/subnetd/state"
)

// stateFile is in the state directory while something is hooked in.
const stateFile = "resolver"

// Config is what a Hand needs.
type Config struct {
	Root string     // "/"; where another machine's files are, in tests
	Dir  *state.Dir // keeps what was done
	// Run runs a command of this machine to its end.
	Run func(ctx context.Context, command ...string) error
	// Tell is told of a trouble and what to do; "": it is over.
	Tell func(text, fix string)
	Log  *slog.Logger
}

// record is what was done, and how to undo it.
type record struct {
	Files    []string `json:"files,omitempty"`    // ours, which dnsmasq reads
	Restart  []string `json:"restart,omitempty"`  // has it read them
	Link     string   `json:"link,omitempty"`     // systemd-resolved asks us by it
	Replaced bool     `json:"replaced,omitempty"` // resolv.conf is ours
}

func (r record) empty() bool { return reflect.DeepEqual(r, record{}) }

// Hand hooks the answerer in. Its methods may be called from several goroutines; they
// take turns.
type Hand struct {
	cfg    Config
	m      machine
	chosen atomic.Pointer[string]

	mu      sync.Mutex // guards all below
	linked  string     // what systemd-resolved was told last, and of which link
	refused string     // dnsmasq did not start with this text
}

// New gives a Hand.
func New(cfg Config) *Hand {
	h := &Hand{cfg: cfg, m: machine{cfg.Root}}
	h.chosen.Store(new(string))
	return h
}

// Backup is the file that has the machine's resolv.conf from before us; it is there
// only while that is replaced.
func Backup(stateDir string) string { return filepath.Join(stateDir, "resolv.conf.before") }

// Chosen says in one line where the answerer is hooked in, or why nowhere. It waits
// for nobody.
func (h *Hand) Chosen() string { return *h.chosen.Load() }

// Set has the machine's resolver ask d.Server for d.Domains; the zero DNS leaves
// resolvers as they were before us. The error says what could not be undone; what
// could not be done is told, and tried again with the next change.
func (h *Hand) Set(ctx context.Context, d host.DNS) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	was, err := h.load()
	if err != nil {
		return err
	}
	next := choice{}
	if d.Server.IsValid() {
		d.Domains = askable(d.Domains)
		next = h.m.choose(d, was)
	}
	if err := h.undo(ctx, was, next.record); err != nil {
		return err
	}
	if err := h.keep(next.record); err != nil {
		return err
	}
	if was := h.chosen.Swap(&next.why); *was != next.why {
		h.cfg.Log.Info("who asks for the names of the mesh", "resolver", next.why)
	}
	h.do(ctx, d, next)
	return nil
}

// Stop gives resolv.conf back: nobody else answers when this process has ended. Other
// resolvers lose the names of the mesh only, and keep what they were told.
func (h *Hand) Stop() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	was, err := h.load()
	if err != nil || !was.Replaced {
		return err
	}
	if err := h.restoreResolvConf(); err != nil {
		return err
	}
	was.Replaced = false
	return h.keep(was)
}

func (h *Hand) load() (record, error) {
	var r record
	_, err := h.cfg.Dir.Load(stateFile, &r)
	return r, err
}

func (h *Hand) keep(r record) error {
	if r.empty() {
		return h.cfg.Dir.Remove(stateFile)
	}
	return h.cfg.Dir.Save(stateFile, r)
}

// undo takes back what next has no use for.
func (h *Hand) undo(ctx context.Context, was, next record) error {
	var errs error
	if gone := without(was.Files, next.Files); len(gone) > 0 {
		errs = h.leaveDnsmasq(ctx, gone, was.Restart)
	}
	if was.Link != "" && was.Link != next.Link {
		h.leaveResolved(ctx, was.Link)
	}
	if was.Replaced && !next.Replaced {
		errs = errors.Join(errs, h.restoreResolvConf())
	}
	return errs
}

// do hooks in; troubles of several resolvers are told together.
func (h *Hand) do(ctx context.Context, d host.DNS, next choice) {
	text, fix := next.trouble, next.fix
	tell := func(err error, what string) {
		if err != nil {
			text, fix = strings.TrimSpace(text+" This machine does not know the names of the mesh: "+err.Error()+"."), what
		}
	}
	if len(next.Files) > 0 {
		tell(h.joinDnsmasq(ctx, d, next.record), "Look why dnsmasq does not take them, then restart subnetd; or set dns.hook = false.")
	}
	if next.Link != "" {
		tell(h.joinResolved(ctx, d), "Start systemd-resolved, then restart subnetd; or set dns.hook = false.")
	}
	if next.Replaced {
		tell(h.replaceResolvConf(), "Name 100.100.100.100 as the resolver of this machine by its own means, or set dns.hook = false.")
	}
	h.cfg.Tell(text, fix)
}

func without(all, less []string) []string {
	var out []string
	for _, a := range all {
		if !contains(less, a) {
			out = append(out, a)
		}
	}
	return out
}

func contains(all []string, s string) bool {
	for _, a := range all {
		if a == s {
			return true
		}
	}
	return false
}

// askable is the domains that are names (letters, digits, hyphens and underscores:
// RFC 1123, 2.1, RFC 8552), forward ones first: a coordinator writes no lines of its
// own into files of this machine.
func askable(domains []string) []string {
	var out []string
	for _, d := range domains {
		if isDomain(d) {
			out = append(out, d)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return !reverse(out[i]) && reverse(out[j]) })
	return out
}

func isDomain(d string) bool {
	if len(d) > 253 {
		return false
	}
	for label := range strings.SplitSeq(d, ".") {
		bad := func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
		}
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, bad) {
			return false
		}
	}
	return true
}

// reverse reports whether a domain is of addresses, not of names.
func reverse(d string) bool {
	return strings.HasSuffix(d, ".in-addr.arpa") || strings.HasSuffix(d, ".ip6.arpa")
}

// failed names a command that failed.
func failed(command []string, err error) error {
	return fmt.Errorf("%q failed: %w", strings.Join(command, " "), err)
}
