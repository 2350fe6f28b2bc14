package cli

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"subnetd/subnetd/api"
)

func checkCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		name, text, err := p.policyText(args[0])
		if err != nil {
			return err
		}
		v, err := c.CheckPolicy(ctx, text)
		if err == nil && v.Error != "" {
			err = fmt.Errorf("%s: %s", name, v.Error)
		}
		return p.done(err, "%s is good", name)
	})
}

// policyText reads the file, or standard input if it is "-", and gives it a name.
func (p *program) policyText(file string) (name, text string, err error) {
	name, in := "standard input", p.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", "", fmt.Errorf("the policy cannot be read: %w", err)
		}
		defer f.Close()
		name, in = file, f
	}
	data, err := io.ReadAll(io.LimitReader(in, api.MaxPolicy+1))
	switch {
	case err != nil:
		return "", "", fmt.Errorf("the policy cannot be read: %w", err)
	case len(data) > api.MaxPolicy:
		return "", "", fmt.Errorf("%s is too big: a policy may have %d bytes", name, api.MaxPolicy)
	case !utf8.Valid(data):
		return "", "", fmt.Errorf("%s is no policy: it is not text in UTF-8", name)
	}
	return name, string(data), nil
}

// policyCommand prints the text alone, so that it can become a file, and beside
// it if the file is not what is in force.
func policyCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, _ []string) error {
		v, err := c.Policy(ctx)
		if err != nil {
			return err
		}
		if v.Error != "" {
			fmt.Fprintf(p.err, "! %s is not in force: %s\n", v.File, printable(v.Error, "\n\t"))
		}
		_, err = io.WriteString(p.out, strings.TrimSuffix(v.Text, "\n")+"\n")
		return err
	})
}
