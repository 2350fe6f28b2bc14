package main

import (
	"strings"
	"testing"
)

func TestCommand(t *testing.T) {
	for called, want := range map[string]string{
		"/sbin/init": "init", "/sbin/init splash": "init splash", "/usr/bin/appliance log lan": "log lan", "/sbin/reboot": "reboot", "/sbin/poweroff -f": "poweroff -f",
		"/usr/bin/appliance": "", "": "",
	} {
		if got := strings.Join(command(strings.Fields(called)), " "); got != want {
			t.Errorf("%q is %q", called, got)
		}
	}
}

func TestWishes(t *testing.T) {
	wan, lans, shell := wishes("console=ttyS0 appliance.wan=eth1 appliance.lan=eth0,eth2 appliance.shell quiet\n")
	if wan != "eth1" || lans != "eth0,eth2" || !shell {
		t.Errorf("%q, %q, %v", wan, lans, shell)
	}
	if wan, lans, shell := wishes(""); wan+lans != "" || shell {
		t.Error("wishes of nobody")
	}
}

func TestUsage(t *testing.T) {
	var out, errs strings.Builder
	for _, args := range [][]string{nil, {"dance"}, {"init"}} {
		if code := run(args, &out, &errs); code != 2 || out.Len() != 0 || errs.Len() == 0 {
			t.Errorf("%v: %d, %q, %q", args, code, &out, &errs)
		}
		errs.Reset()
	}
}
