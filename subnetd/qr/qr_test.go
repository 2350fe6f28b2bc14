package qr

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	oracle "rsc.io/qr"
)

// The picture has exactly the modules that another encoder makes, and a margin.
func TestSVG(t *testing.T) {
	rect := regexp.MustCompile(`M(\d+) (\d+)h(\d+)v1h-(\d+)z`)
	for _, text := range []string{"x", "http://192.168.1.1:8410", "tailscale up --login-server=http://home.example --auth-key=" + strings.Repeat("k", 200)} {
		code, err := Encode(text)
		if err != nil {
			t.Fatal(err)
		}
		want, err := oracle.Encode(text, oracle.M)
		if err != nil || want.Size != code.Size {
			t.Fatalf("%v, %d modules, want %d", err, code.Size, want.Size)
		}
		svg := string(SVG(code))
		if head := fmt.Sprintf(`viewBox="0 0 %d %d"`, want.Size+8, want.Size+8); !strings.Contains(svg, head) {
			t.Fatalf("%s lacks %s", svg, head)
		}
		drawn := map[[2]int]bool{}
		for _, m := range rect.FindAllStringSubmatch(svg, -1) {
			var x, y, n, back int
			if _, err := fmt.Sscan(m[1]+" "+m[2]+" "+m[3]+" "+m[4], &x, &y, &n, &back); err != nil || n != back {
				t.Fatal(m, err)
			}
			for i := range n {
				drawn[[2]int{x + i - 4, y - 4}] = true
			}
		}
		for y := -4; y < want.Size+4; y++ {
			for x := -4; x < want.Size+4; x++ {
				if drawn[[2]int{x, y}] != want.Black(x, y) {
					t.Fatalf("%q: module %d, %d", text, x, y)
				}
			}
		}
	}
	if _, err := Encode(strings.Repeat("x", 3000)); err == nil {
		t.Error("a code of 3,000 bytes")
	}
}
