package lan

import (
	"slices"
	"strings"
	"testing"
)

func TestKind(t *testing.T) {
	for _, c := range []struct {
		what, mac string
		h         Heard
		want      string
	}{
		{"a printer by its maker", printer, Heard{}, KindPrinter},
		{"a printer by what it offers", phone, Heard{Services: []string{"_http._tcp", "_ipp._tcp"}}, KindPrinter},
		{"a Mac that shares a printer", phone, Heard{Services: []string{"_companion-link._tcp", "_ipp._tcp", "_rfb._tcp", "_smb._tcp"}}, KindComputer},
		{"a Mac by its model", phone, Heard{Model: "MacBookPro18,3", Services: []string{"_airplay._tcp", "_smb._tcp"}}, KindComputer},
		{"an Apple TV", phone, Heard{Model: "AppleTV14,1", Services: []string{"_airplay._tcp", "_raop._tcp"}}, KindTV},
		{"a HomePod", phone, Heard{Model: "AudioAccessory5,1", Services: []string{"_airplay._tcp", "_raop._tcp"}}, KindSpeaker},
		{"a Chromecast", phone, Heard{Services: []string{"_googlecast._tcp"}}, KindTV},
		{"a speaker by Google", phone, Heard{Model: "Google Home Mini", Services: []string{"_googlecast._tcp"}}, KindSpeaker},
		{"a NAS", phone, Heard{Services: []string{"_adisk._tcp", "_afpovertcp._tcp", "_smb._tcp", "_http._tcp"}}, KindNAS},
		{"an iPhone by how it asks", phone, Heard{Params: []byte{1, 121, 3, 6, 15, 108, 114, 119, 252}}, KindPhone},
		{"a Mac by how it asks", phone, Heard{Params: []byte{1, 121, 3, 6, 15, 108, 114, 119, 252, 95, 44, 46}}, KindComputer},
		{"Windows by how it asks", phone, Heard{Params: []byte{1, 3, 6, 15, 31, 33, 43, 44, 46, 47, 119, 121, 249, 252}}, KindComputer},
		{"Android", phone, Heard{VendorClass: "android-dhcp-14"}, KindPhone},
		{"an iPhone by its name", phone, Heard{Name: "Annas-iPhone"}, KindPhone},
		{"an Xbox, which is of Microsoft's", phone, Heard{VendorClass: "MSFT 5.0 XBOX"}, KindConsole},
		{"a camera", "00:40:8c:00:00:01", Heard{}, KindCamera},
		{"a console", "00:09:bf:00:00:01", Heard{}, KindConsole},
		{"a router", phone, Heard{Name: "OpenWrt"}, KindNetwork},
		{"nothing to tell by", phone, Heard{Name: "x", VendorClass: "udhcp 1.36.1", Params: []byte{1, 3, 6, 12, 15, 28, 42}}, ""},
	} {
		b := NewBook()
		c.h.MAC, c.h.Source = c.mac, DHCP
		b.Heard(t0, c.h)
		if got := b.Things(t0)[0].Kind; got != c.want {
			t.Errorf("%s: %q, not %q", c.what, got, c.want)
		}
	}
}

// Words that are looked for are in lower case, and the makers are those of the table.
func TestHints(t *testing.T) {
	for _, hints := range [][]hint{modelKinds[:], classKinds[:], nameKinds[:]} {
		for _, h := range hints {
			if wordKind([]hint{h}, h.word) == "" || h.kind == "" {
				t.Errorf("%q is never found", h.word)
			}
		}
	}
	names, _, _ := strings.Cut(makers, "\n\n")
	list := strings.Split(names, "\n")
	for _, m := range makersOf {
		for _, name := range strings.Split(strings.Trim(m.makers, "|"), "|") {
			if !slices.Contains(list, name) || makerKind(name) != m.kind {
				t.Errorf("%s is no maker of the table, or of two kinds", name)
			}
		}
	}
}
