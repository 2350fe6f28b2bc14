package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"

	"subnetd/subnetd/web"
)

// loginProgram knows the passwords of the system; OpenWrt's package brings it.
const loginProgram = "/usr/libexec/subnetd/login"

const (
	mostPassword = 512 // bytes
	noneIsSet    = 3   // exit code: the user has no password, and any would do
)

// systemLogin asks that program, as a web.Config wants it; nil if there is none. It is
// told by its standard input, which nobody else sees.
func systemLogin(path string) func(ctx context.Context, user, password string) error {
	if _, err := os.Stat(path); err != nil {
		return nil
	}
	return func(ctx context.Context, user, password string) error {
		if user != "root" || len(password) > mostPassword {
			return errors.New("only root's password counts")
		}
		question, err := json.Marshal(map[string]string{"username": user, "password": password})
		if err != nil {
			return err
		}
		err = tell(ctx, string(question), path)
		var failed *commandError
		if errors.As(err, &failed) && failed.ExitCode() == noneIsSet {
			return web.ErrNoPassword
		}
		return err
	}
}
