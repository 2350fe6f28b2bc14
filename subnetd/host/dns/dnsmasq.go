package dns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"subnetd/subnetd/host"
)

// unread is the last line of a file that dnsmasq may not have read: whoever finds it
// restarts dnsmasq.
const unread = "# not read by dnsmasq yet\n"

// masqText is the file: queries for a domain go to the answerer, whose answers may be
// private addresses (dnsmasq(8): server, rebind-domain-ok).
func masqText(d host.DNS) string {
	var b strings.Builder
	b.WriteString("# Written by subnetd, which removes it when it goes (`subnetd down`).\n")
	for _, domain := range d.Domains {
		fmt.Fprintf(&b, "server=/%s/%s#%d\n", domain, d.Server.Addr(), d.Server.Port())
		if !reverse(domain) {
			fmt.Fprintf(&b, "rebind-domain-ok=/%s/\n", domain)
		}
	}
	return b.String()
}

// joinDnsmasq writes our files and has dnsmasq read them, if they are not as they
// shall be. A dnsmasq that does not start with them is started without, and never
// again with these: the house's DNS matters more.
func (h *Hand) joinDnsmasq(ctx context.Context, d host.DNS, r record) error {
	text := masqText(d)
	if text == h.refused {
		return errors.New("dnsmasq did not start with the names of the mesh, and runs without")
	}
	same := true
	for _, f := range r.Files {
		same = same && h.m.read(f) == text
	}
	if same {
		return nil
	}
	if err := h.writeAll(r.Files, text+unread); err != nil {
		return err
	}
	if err := h.cfg.Run(ctx, r.Restart...); err != nil {
		if ctx.Err() != nil {
			return err
		}
		h.refused = text
		return errors.Join(failed(r.Restart, err), h.leaveDnsmasq(ctx, r.Files, r.Restart))
	}
	h.refused = ""
	return h.writeAll(r.Files, text)
}

func (h *Hand) writeAll(files []string, text string) error {
	for _, f := range files {
		if err := replace(h.m.path(f), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// leaveDnsmasq removes our files; dnsmasq forgets them. When that fails it asks us in
// vain for the names of the mesh, and does all else as before.
func (h *Hand) leaveDnsmasq(ctx context.Context, files, restart []string) error {
	for _, f := range files {
		for _, f := range []string{h.m.path(f), temporary(h.m.path(f))} {
			if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	if err := h.cfg.Run(ctx, restart...); err != nil {
		if ctx.Err() != nil {
			return err
		}
		h.cfg.Log.Warn("dnsmasq was not restarted: it still asks for the names of the mesh", "err", failed(restart, err))
	}
	return nil
}

// temporary is beside a file; no resolver reads it (dnsmasq(8), conf-dir).
func temporary(file string) string {
	return filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+".subnetd")
}

// replace gives a file new content, whole or not at all. A file that is there keeps
// its owner and permissions; another gets mode.
func replace(file, text string, mode fs.FileMode) error {
	temp := temporary(file)
	err := write(temp, file, text, mode)
	if err == nil {
		err = os.Rename(temp, file)
	}
	if err != nil {
		_ = os.Remove(temp)
		return err
	}
	return syncDir(filepath.Dir(file))
}

func write(temp, like, text string, mode fs.FileMode) error {
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, asIn(f, like, mode), f.Sync(), f.Close())
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
