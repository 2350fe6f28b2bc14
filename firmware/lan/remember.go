package lan

import (
	"net/netip"
	"os"
	"strings"
	"time"

	"subnetd/firmware/durable"
)

// What the devices were told of the provider's prefixes outlives a power cut: they go on
// with addresses of one that the provider has not given again, until this router says that
// it is gone (RFC 9096, 3.5).

// remembered reads the prefixes of the last time, which are gone from now on. A file that is
// missing or damaged has none.
func remembered(path string, now time.Duration) []prefix {
	text, _ := os.ReadFile(path)
	var out []prefix
	for line := range strings.Lines(string(text)) {
		p, err := netip.ParsePrefix(strings.TrimSpace(line))
		if err == nil && p.Bits() == 64 && p.Addr().Is6() && p.Addr().IsGlobalUnicast() && len(out) < mostPrefixes {
			out = append(out, prefix{net: p.Masked(), valid: now + raGone, gone: max(1, now)})
		}
	}
	return out
}

// remember writes those of this time, if they are others.
func remember(path string, given []prefix) error {
	text := ""
	for _, p := range given {
		text += p.net.String() + "\n"
	}
	return durable.Write(path, []byte(text), 0o644)
}
