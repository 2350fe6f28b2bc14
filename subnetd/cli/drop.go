package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"
)

const (
	stdin     = "-"
	folderOff = "off"
	progress  = 500 * time.Millisecond // between two words about it
)

func inboxVerbs() []command {
	return []command{
		{"get", "[NAME] [DIR]", "copy a file out of the inbox, or with --all every one, into a directory; without one: into this", "inbox get photo.jpg /tmp", inboxGetCommand, nil},
		{"remove", "NAME", "remove a file from the inbox", "inbox remove photo.jpg", inboxRemoveCommand, nil},
		{"folder", "[DIR|off]", "where files land: in a directory, at once, or (off) in the inbox", "inbox folder /mnt/usb/photos", inboxFolderCommand, nil},
		{"allow", "DEVICE", "let a device at home send files into the mesh by `curl -T`; lan: all of them", "inbox allow nas", allowCommand(true), nil},
		{"forbid", "DEVICE", "end that", "inbox forbid nas", allowCommand(false), nil},
	}
}

// sendCommand sends files one after another.
func sendCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	name := fs.String("name", "", "what a single file is called there; needed for -, which is standard input")
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		files, to := args[:len(args)-1], args[len(args)-1]
		switch {
		case *name != "" && len(files) > 1:
			return usagef("send: one --name is no name for %d files", len(files))
		case slices.Contains(files, stdin) && *name == "":
			return usagef("send: standard input needs a --name")
		}
		for _, file := range files {
			if err := p.sendFile(ctx, c, to, file, cmp.Or(*name, filepath.Base(file))); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *program) sendFile(ctx context.Context, c *api.Client, to, file, name string) error {
	in, size := io.Reader(p.in), int64(-1)
	if file != stdin {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		switch {
		case err != nil:
			return err
		case info.IsDir():
			return fmt.Errorf("%s is a directory: send its files, or an archive of it", file)
		case info.Mode().IsRegular():
			size = info.Size()
		}
		in = f
	}
	m := &meter{Reader: in, p: p, name: name, size: size}
	sent, err := c.DropSend(ctx, to, name, size, m)
	m.end()
	if err != nil {
		return fmt.Errorf("%s was not sent: %w", file, err)
	}
	return p.done(nil, "%s has %s, %s", printable(sent.To, ""), printable(sent.Name, ""), amount(sent.Size))
}

// meter shows on a terminal how far a file is.
type meter struct {
	io.Reader
	p     *program
	name  string
	size  int64 // -1: not known
	n     int64
	last  time.Time
	shown bool
}

func (m *meter) Read(b []byte) (int, error) {
	n, err := m.Reader.Read(b)
	m.n += int64(n)
	if now := m.p.now(); m.p.colour && now.Sub(m.last) >= progress {
		m.last, m.shown = now, true
		far := amount(m.n)
		if m.size > 0 {
			far = fmt.Sprintf("%d %% of %s", m.n*100/m.size, amount(m.size))
		}
		fmt.Fprintf(m.p.out, "\r\x1b[K%s: %s", printable(m.name, ""), far)
	}
	return n, err
}

func (m *meter) end() {
	if m.shown {
		fmt.Fprint(m.p.out, "\r\x1b[K")
	}
}

func inboxCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	asJSON := fs.Bool("json", false, "for programs")
	return asking(fs, func(ctx context.Context, c *api.Client, _ []string) error {
		d, err := c.Drop(ctx)
		if err != nil {
			return err
		}
		if *asJSON {
			return writeJSON(p.out, d)
		}
		return showDrop(p.out, d, p.now())
	})
}

func inboxGetCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	all := fs.Bool("all", false, "every file of the inbox")
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		var names []string
		switch {
		case *all && len(args) > 1:
			return usagef("usage: subnetd inbox get --all [DIR]")
		case *all:
			d, err := c.Drop(ctx)
			if err != nil {
				return err
			}
			if d.Folder != "" {
				return fmt.Errorf("files land in %s: they are there", d.Folder)
			}
			for _, f := range d.Files {
				names = append(names, f.Name)
			}
		case len(args) == 0:
			return usagef("usage: subnetd inbox get NAME|--all [DIR]")
		default:
			names, args = args[:1], args[1:]
		}
		dir := "."
		if len(args) > 0 {
			dir = args[0]
		}
		for _, name := range names {
			if err := getFile(ctx, c, name, dir); err != nil {
				return err
			}
			if err := p.done(nil, "%s is in %s", printable(name, ""), printable(dir, "")); err != nil {
				return err
			}
		}
		return nil
	})
}

// getFile never writes over a file, and leaves no half one.
func getFile(ctx context.Context, c *api.Client, name, dir string) error {
	if filepath.Base(name) != name || !filepath.IsLocal(name) {
		return fmt.Errorf("%q is no name for a file", name)
	}
	at := filepath.Join(dir, name)
	f, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	err = errors.Join(c.DropGet(ctx, name, f), f.Close())
	if err != nil {
		err = errors.Join(err, os.Remove(at))
	}
	return err
}

func inboxRemoveCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		return p.done(c.DropRemove(ctx, args[0]), "%s is removed", printable(args[0], ""))
	})
}

func inboxFolderCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		if len(args) == 0 {
			d, err := c.Drop(ctx)
			return p.done(err, "%s", lands(d))
		}
		folder := ""
		if args[0] != folderOff {
			var err error
			if folder, err = filepath.Abs(args[0]); err != nil {
				return err
			}
		}
		d, err := c.DropFolder(ctx, folder)
		return p.done(err, "%s", lands(d))
	})
}

func allowCommand(allow bool) func(*program, *flag.FlagSet) func(context.Context, []string) error {
	return func(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
		return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
			d, err := c.DropAllow(ctx, status.DropAllow{Device: args[0], Allow: allow})
			if !allow {
				return p.done(err, "%s may not send files into the mesh", printable(args[0], ""))
			}
			return p.done(err, "%s may send files into the mesh: curl -T FILE %s/NODE/", printable(args[0], ""), d.Address)
		})
	}
}

// lands is where files do.
func lands(d status.Drop) string {
	where := "files land in the inbox"
	if d.Folder != "" {
		where = "files land in " + printable(d.Folder, "")
	}
	if d.Missing != "" {
		where += ", but none can now: " + printable(d.Missing, "")
	}
	return where
}

// showDrop draws what arrived and what is under way.
func showDrop(w io.Writer, d status.Drop, now time.Time) error {
	b := &bytes.Buffer{}
	room := amount(max(d.Free-d.KeepFree, 0)) + " free"
	if d.Quota > 0 {
		room = amount(d.Used) + " of " + amount(d.Quota) + ", " + room
	}
	fmt.Fprintf(b, "%s (%s)\n", lands(d), room)
	if len(d.Transfers) > 0 {
		rows := [][]string{{"UNDER WAY", "FAR", "WITH"}}
		for _, t := range d.Transfers {
			with := "from " + t.Peer
			if t.Sending {
				with = "to " + t.Peer
			}
			far := amount(t.Done)
			if t.Size >= 0 {
				far += " of " + amount(t.Size)
			}
			if t.Waits {
				far = "waits"
			}
			rows = append(rows, []string{t.Name, far, with})
		}
		b.WriteByte('\n')
		table(b, rows)
	}
	if len(d.Files) > 0 {
		rows := [][]string{{"FILE", "SIZE", "FROM", "CAME"}}
		for _, f := range d.Files {
			rows = append(rows, []string{f.Name, amount(f.Size), cmp.Or(f.From, "?"), ago(now, f.At) + " ago"})
		}
		b.WriteByte('\n')
		table(b, rows)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// amount is so many bytes, in words.
func amount(n int64) string { return size(uint64(max(n, 0))) }
