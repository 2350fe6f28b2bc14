package lan

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// discover is a message of a client with these options, as each makes them.
func discover(options ...[]byte) []byte {
	b := make([]byte, bootpOptions)
	b[0], b[bootpHtype], b[bootpHlen] = 1, 1, 6
	copy(b[bootpChaddr:], []byte{0xa4, 0x83, 0xe7, 1, 2, 3})
	binary.BigEndian.PutUint32(b[bootpCookie:], dhcpCookie)
	return append(append(b, bytes.Join(options, nil)...), optEnd)
}

func option(code byte, value string) []byte {
	return append([]byte{code, byte(len(value))}, value...)
}

func TestParseDHCP(t *testing.T) {
	isDiscover := option(optType, "\x01")
	ios := "\x01\x79\x03\x06\x0f\x6c\x72\x77\xfc"
	overloaded := discover(isDiscover, option(optOverload, "\x03"))
	copy(overloaded[bootpFile:], append(option(optName, "drei"), optEnd))
	copy(overloaded[bootpSname:], append(option(optClass, "sname"), optEnd))
	const mac = "a4:83:e7:01:02:03"
	for _, c := range []struct {
		what string
		msg  []byte
		want Heard
	}{
		{"an iPhone", discover(isDiscover, option(optParams, ios), option(57, "\x05\xdc"), option(61, "\x01\xa4\x83\xe7\x01\x02\x03"), option(51, "\x00\x76\xa7\x00"), option(optName, "Annas-iPhone")),
			Heard{MAC: mac, Name: "Annas-iPhone", Params: []byte(ios)}},
		{"Windows", discover(option(optType, "\x03"), option(61, "\x01\xa4\x83\xe7\x01\x02\x03"), option(50, "\xc0\xa8\x01\x32"), option(optName, "DESKTOP-7Q"), option(optFQDN, "\x00\x00\x00DESKTOP-7Q"), option(optClass, "MSFT 5.0"), option(optParams, "\x01\x03\x06\x0f\x1f\x21\x2b\x2c\x2e\x2f\x77\x79\xf9\xfc")),
			Heard{MAC: mac, Name: "DESKTOP-7Q", VendorClass: "MSFT 5.0", Params: []byte("\x01\x03\x06\x0f\x1f\x21\x2b\x2c\x2e\x2f\x77\x79\xf9\xfc")}},
		{"a full name only, as text", discover(isDiscover, option(optFQDN, "\x01\x00\x00nas.home.arpa")), Heard{MAC: mac, Name: "nas"}},
		{"a full name only, as in DNS", discover(isDiscover, option(optFQDN, "\x05\x00\x00\x03nas\x04home\x00")), Heard{MAC: mac, Name: "nas"}},
		{"a full name that is cut off", discover(isDiscover, option(optFQDN, "\x05\x00\x00\x09nas")), Heard{MAC: mac}},
		{"one in two parts", discover(isDiscover, option(optClass, "ab"), []byte{0, 0}, option(optClass, "cd")), Heard{MAC: mac, VendorClass: "abcd"}},
		{"in the fields of others", overloaded, Heard{MAC: mac, Name: "drei", VendorClass: "sname"}},
		{"a name that is none", discover(isDiscover, option(optName, "a\x00b\n\x1b[31m\xff\u202e"+strings.Repeat("ä", 40))), Heard{MAC: mac, Name: "ab[31m" + strings.Repeat("ä", 28)}},
		{"cut off", append(discover(isDiscover, option(optName, "x"))[:bootpOptions+6], optClass, 200, 'a'), Heard{MAC: mac, Name: "x"}},
	} {
		got, ok := ParseDHCP(c.msg)
		c.want.Source = DHCP
		if !ok || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v\n%+v\n%+v", c.what, ok, got, c.want)
		}
	}
	good := discover(isDiscover)
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for what, msg := range map[string][]byte{
		"short": good[:239], "an answer": change(0, 2), "no Ethernet": change(bootpHtype, 6), "a long MAC": change(bootpHlen, 16),
		"a group's MAC": change(bootpChaddr, 1), "BOOTP": change(bootpCookie, 0), "no kind": discover(), "an offer": discover(option(optType, "\x02")), "a release": discover(option(optType, "\x07")),
	} {
		if got, ok := ParseDHCP(msg); ok {
			t.Errorf("%s: %+v", what, got)
		}
	}
}

// shown fails unless the text can be shown.
func shown(t *testing.T, texts ...string) {
	t.Helper()
	for _, s := range texts {
		if len(s) > maxText || !utf8.ValidString(s) || text(s) != s {
			t.Errorf("%q", s)
		}
	}
}

func FuzzParseDHCP(f *testing.F) {
	f.Add(discover(option(optType, "\x01"), option(optName, "x"), option(optFQDN, "\x05\x00\x00\x03nas\x00")))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, ok := ParseDHCP(b)
		if ok && (!valid(h.MAC) || h.Source != DHCP) {
			t.Errorf("%+v", h)
		}
		shown(t, h.Name, h.VendorClass)
		if NewBook().Heard(t0, h) != ok {
			t.Errorf("the book and the parser differ over %+v", h)
		}
	})
}
