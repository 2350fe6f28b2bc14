package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"subnetd/subnetd/api"
)

// updateCommand reads the file twice: its SHA-256 goes before it.
func updateCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	sum := fs.String("sha256", "", "of the image, as its maker tells it; otherwise that of the file")
	restart := fs.Bool("restart", false, "restart this machine with it")
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		f, err := os.Open(args[0])
		if err != nil {
			return fmt.Errorf("the image cannot be read: %w", err)
		}
		defer f.Close()
		found, size, err := digest(f)
		if err != nil {
			return fmt.Errorf("the image cannot be read: %w", err)
		}
		if *sum != "" && !strings.EqualFold(*sum, found) {
			return fmt.Errorf("%s has the SHA-256 %s, not %s", args[0], found, *sum)
		}
		done, err := c.Update(ctx, found, f, size)
		if err != nil {
			return err
		}
		fmt.Fprintln(p.out, printable(done.Text, ""))
		if !*restart {
			return nil
		}
		return p.done(c.Restart(ctx), "this machine restarts")
	})
}

// digest gives the SHA-256 of a file in hexadecimal digits, and its size, and winds it back.
func digest(f *os.File) (sum string, size int64, err error) {
	h := sha256.New()
	if size, err = io.Copy(h, f); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	return hex.EncodeToString(h.Sum(nil)), size, err
}
