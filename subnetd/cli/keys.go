package cli

import (
	"bytes"
	"context"
	"flag"
	"io"
	"strconv"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"
)

func keysCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	asJSON := fs.Bool("json", false, "for programs")
	return asking(fs, func(ctx context.Context, c *api.Client, _ []string) error {
		keys, err := c.Keys(ctx)
		if err != nil {
			return err
		}
		if *asJSON {
			return writeJSON(p.out, append([]status.HomeKey{}, keys...)) // none are [], not null
		}
		return showKeys(p.out, keys)
	})
}

func showKeys(w io.Writer, keys []status.HomeKey) error {
	b := &bytes.Buffer{}
	rows := [][]string{{"ID", "USER/TAGS", "KIND", "USES", "CREATED", "EXPIRES", "STATE"}}
	for _, k := range keys {
		rows = append(rows, []string{k.ID, owner(k.User, k.Tags), kind(k), strconv.Itoa(k.Uses), day(k.Created), day(k.Expires), k.State})
	}
	table(b, rows)
	_, err := w.Write(b.Bytes())
	return err
}

func kind(k status.HomeKey) string {
	text := "one use"
	if k.Reusable {
		text = "reusable"
	}
	if k.Ephemeral {
		text += ", ephemeral"
	}
	return text
}

func revokeCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		return p.done(c.RevokeKey(ctx, args[0]), "key %s lets nobody in any more", printable(args[0], ""))
	})
}
