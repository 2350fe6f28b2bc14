package config

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestDropQuota(t *testing.T) {
	for text, want := range map[string]string{
		``:                                       "256000000",
		`quota = "auto"`:                         "256000000",
		`folder = "/mnt/usb"`:                    "0",
		`quota = 0`:                              "0",
		`quota = "0"`:                            "0",
		`quota = 12345`:                          "12345",
		`quota = "12345"`:                        "12345",
		`quota = "64kB"`:                         "64000",
		`quota = "500MB"`:                        "500000000",
		`quota = "2GB"`:                          "2000000000",
		`quota = "9000000TB"`:                    "9000000000000000000",
		`quota = "10000000TB"`:                   "no",
		`quota = "-1"`:                           "no",
		`quota = -1`:                             "no",
		`quota = "MB"`:                           "no",
		`quota = "1.5GB"`:                        "no",
		`quota = "64MiB"`:                        "no",
		`quota = "64mb"`:                         "no",
		`quota = "GB2"`:                          "no",
		`quota = "2GBGB"`:                        "no",
		`quota = true`:                           "no",
		`keep_free = "auto"`:                     "no",
		`folder = "usb"`:                         "no",
		`from = ["100.64.0.1"]`:                  "no",
		`from = ["ff:ff:ff:ff:ff:ff"]`:           "no",
		"folder = \"/mnt/usb\"\nquota = \"1GB\"": "1000000000",
	} {
		got := "no"
		if c, err := Parse(strings.NewReader("[drop]\n"+text), "f"); err == nil {
			got = fmt.Sprint(c.Drop.Limit())
		}
		if got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func TestDropAllowing(t *testing.T) {
	d := Drop{From: []string{"lan", "nas"}}
	if got := d.Allowing("nas", false).From; !slices.Equal(got, []string{"lan"}) {
		t.Errorf("forbidden: %q", got)
	}
	if got := d.Allowing("nas", true).Allowing("tv", true).From; !slices.Equal(got, []string{"lan", "nas", "tv"}) {
		t.Errorf("allowed: %q", got)
	}
	if !slices.Equal(d.From, []string{"lan", "nas"}) {
		t.Errorf("it changed what was there: %q", d.From)
	}
}
