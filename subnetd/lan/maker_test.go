package lan

import (
	"encoding/binary"
	"strings"
	"testing"
)

func TestMaker(t *testing.T) {
	for mac, want := range map[string]string{
		"00:00:48:01:02:03": "Epson", "00:80:77:01:02:03": "Brother", "00:03:93:00:00:00": "Apple", "00:11:32:ff:ff:ff": "Synology",
		"b8:27:eb:00:00:01": "Raspberry Pi", "00:0e:58:00:00:01": "Sonos", "00:09:bf:00:00:01": "Nintendo", "24:6f:28:00:00:01": "Espressif",
		"02:80:77:01:02:03": "", // made up
		"00:00:5e:00:00:01": "", // nobody's at home
		"":                  "", "x": "", "00:80:77": "",
	} {
		if got := Maker(mac); got != want {
			t.Errorf("%s is by %q, not by %q", mac, got, want)
		}
	}
}

// Each row of the table is found, and what lies between two is not: against a plain map.
func TestWholeTableOfMakers(t *testing.T) {
	names, rest, _ := strings.Cut(makers, "\n\n")
	list := strings.Split(names, "\n")
	rows := []byte(rest)
	var prefixes []uint64
	at := ^uint64(0)
	for {
		step, n := binary.Uvarint(rows)
		if rows = rows[n:]; step == 0 {
			break
		}
		at += step
		prefixes = append(prefixes, at)
	}
	if len(rows) != len(prefixes) || len(prefixes) < 10000 || len(list) > 256 {
		t.Fatalf("%d prefixes, %d numbers, %d makers", len(prefixes), len(rows), len(list))
	}
	plain := map[uint64]string{}
	for i, p := range prefixes {
		plain[p] = list[rows[i]]
	}
	for i := 0; i < len(prefixes); i += 97 {
		for p := prefixes[i] - 1; p <= prefixes[i]+1; p++ {
			if got := lookUp(makers, p); got != plain[p] {
				t.Errorf("%06x is by %q, not by %q", p, got, plain[p])
			}
		}
	}
	if len(makers) > 40000 {
		t.Errorf("the table has %d bytes: what does it cost packed?", len(makers))
	}
	for _, name := range list {
		if text(name) != name {
			t.Errorf("%q", name)
		}
	}
}

func FuzzMaker(f *testing.F) {
	f.Add("A\nB\n\n\x01\x01\x00\x00\x01", uint64(1))
	f.Add("A\n\n\x05\x00\x09", uint64(4))
	f.Fuzz(func(t *testing.T, table string, prefix uint64) {
		if name := lookUp(table, prefix); name != "" && !strings.Contains(table, name) {
			t.Errorf("%q", name)
		}
	})
}

func BenchmarkMaker(b *testing.B) {
	for b.Loop() {
		Maker("fc:ff:aa:00:00:01")
	}
}
