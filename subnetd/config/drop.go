package config

import (
	"math"
	"slices"
	"strconv"
	"strings"
)

// Drop is the files that members send here and that leave for them.
type Drop struct {
	Folder   string   // absolute, where files land; "": the inbox
	Quota    int64    // bytes of all files there; 0: none; QuotaAuto
	KeepFree int64    // bytes of the file system that stay free
	From     []string // what at home may send into the mesh: MACs, names, or "lan" for all
}

const (
	// QuotaAuto is InboxQuota for the inbox, and none with a folder.
	QuotaAuto = -1
	// InboxQuota is what the inbox may have unless the owner says otherwise, in bytes.
	InboxQuota = 256_000_000

	wordAuto = "auto"
)

// Limit is how many bytes all files may have; 0: as many as there is room for.
func (d Drop) Limit() int64 {
	switch {
	case d.Quota != QuotaAuto:
		return d.Quota
	case d.Folder == "":
		return InboxQuota
	}
	return 0
}

// Allowing lets a thing at home send, by its MAC, its name or "lan", or ends that.
func (d Drop) Allowing(who string, allow bool) Drop {
	d.From = slices.DeleteFunc(slices.Clone(d.From), func(o string) bool { return o == who })
	if allow {
		d.From = append(d.From, who)
	}
	return d
}

// parseSize reads bytes: 12345, "12345", "64kB", "64MB", "2GB", by powers of 1000.
func parseSize(v any) (int64, bool) {
	if n, is := v.(int64); is {
		return n, n >= 0
	}
	s, is := v.(string)
	if !is {
		return 0, false
	}
	digits := strings.TrimRight(s, "kKMGTB ")
	unit, ok := map[string]int64{"": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[strings.TrimLeft(s[len(digits):], " ")]
	n, err := strconv.ParseUint(digits, 10, 63)
	if !ok || err != nil || n > uint64(math.MaxInt64/unit) {
		return 0, false
	}
	return int64(n) * unit, true
}

// size takes a number of bytes; auto is what the word "auto" means, 0: it means nothing.
func size(auto int64, set func(*Config, int64)) func(*Config, any) bool {
	return func(c *Config, v any) bool {
		n, ok := parseSize(v)
		if v == wordAuto && auto != 0 {
			n, ok = auto, true
		}
		if ok {
			set(c, n)
		}
		return ok
	}
}

// parseSender reads a MAC, a device's name, or "lan".
func parseSender(s string) (string, bool) {
	if mac, ok := parseMAC(s); ok {
		return mac, true
	}
	return strings.ToLower(s), isLabel(s)
}
