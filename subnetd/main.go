// Subnetd joins a home router to a Tailscale-compatible mesh and opens the
// home's LAN to it.
//
// This file and those beside it alone name every concrete part of the daemon;
// the parts meet through values and the few funcs handed to them here.
package main

import (
	"os"

	"subnetd/subnetd/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr, cli.Build{Version: version, Run: run, Guard: guard}))
}
