package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"subnetd/subnetd/status"
)

// What is asked arrives as it was asked; what makes no sense is refused in words.
func TestExitCalls(t *testing.T) {
	var got any
	x := status.Exits{There: []string{"cabin"}, Rows: []status.ExitRow{{Row: 1, Now: status.ExitBlocked}}}
	d := &daemon{exit: Exit{
		Use:   func(_ context.Context, r status.ExitUse) (status.Exits, error) { got = r; return x, nil },
		Off:   func(_ context.Context, r status.ExitOff) (status.Exits, error) { got = r; return x, nil },
		Offer: func(_ context.Context, r status.ExitOffer) (status.Exits, error) { got = r; return x, nil },
		Test: func(_ context.Context, of string) (status.ExitTest, error) {
			if got = of; of == "nobody" {
				return status.ExitTest{}, BadRequest(errors.New("who is that?"))
			}
			return status.ExitTest{What: of}, nil
		},
	}}
	c := dial(t, d.start(t))
	for _, tt := range []struct {
		do   func() (any, error)
		want any
		err  string
	}{
		{func() (any, error) {
			return c.ExitUse(t.Context(), status.ExitUse{Exits: []string{"a", "direct"}, Devices: []string{"tv"}})
		}, status.ExitUse{Exits: []string{"a", "direct"}, Devices: []string{"tv"}}, ""},
		{func() (any, error) { return c.ExitUse(t.Context(), status.ExitUse{}) }, nil, "use which exit? The name of a node is wanted"},
		{func() (any, error) {
			return c.ExitUse(t.Context(), status.ExitUse{Exits: []string{"a"}, Devices: make([]string, 257)})
		}, nil, "257 devices at once are more than 256"},
		{func() (any, error) { return c.ExitOff(t.Context(), status.ExitOff{}) }, status.ExitOff{}, ""},
		{func() (any, error) {
			return c.ExitOff(t.Context(), status.ExitOff{Devices: make([]string, 257)})
		}, nil, "257 devices at once are more than 256"},
		{func() (any, error) { return c.ExitOffer(t.Context(), status.ExitOffer{On: true}) }, status.ExitOffer{On: true}, ""},
		{func() (any, error) { return c.ExitTest(t.Context(), "tv & more") }, "tv & more", ""},
		{func() (any, error) { return c.ExitTest(t.Context(), "nobody") }, "nobody", "who is that?"},
		{func() (any, error) { return c.ExitTest(t.Context(), "") }, nil, "a MAC address, an address or a name is wanted, of at most 255 bytes"},
		{func() (any, error) { return c.ExitTest(t.Context(), strings.Repeat("x", 256)) }, nil, "a MAC address, an address or a name is wanted, of at most 255 bytes"},
	} {
		got = nil
		_, err := tt.do()
		if text := fmt.Sprint(err); tt.err == "" && err != nil || tt.err != "" && text != tt.err || fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("asked %v, want %v; %v, want %q", got, tt.want, err, tt.err)
		}
	}
	res, err := c.http.Get("http://subnetd/v1/exit/use")
	if err != nil || res.StatusCode != http.StatusMethodNotAllowed {
		t.Error(res, err)
	}
	res.Body.Close()
}
