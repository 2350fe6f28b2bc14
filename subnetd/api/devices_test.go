package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"subnetd/subnetd/status"
)

// What is asked of devices arrives as it was asked; what makes no sense is refused in
// words, and the code says whose mistake it was.
func TestDeviceCalls(t *testing.T) {
	var got any
	one := func(_ context.Context, r status.DeviceRequest) (status.Device, error) {
		if got = r; r.Device == "nobody" {
			return status.Device{}, fmt.Errorf("%w: %q", ErrUnknownDevice, r.Device)
		}
		return status.Device{Name: r.Device}, nil
	}
	d := &daemon{devs: Devices{
		List: func() status.Devices { return status.Devices{Expose: "chosen", Devices: []status.Device{{MAC: "m"}}} },
		Expose: func(_ context.Context, r status.DeviceExpose) (status.Device, error) {
			got = r
			return status.Device{}, nil
		},
		Hide: one, Wake: one,
		Web: func(_ context.Context, r status.DeviceWebRequest) (status.Device, error) {
			got = r
			return status.Device{}, nil
		},
		Name: func(_ context.Context, r status.DeviceName) (status.Device, error) {
			got = r
			return status.Device{}, nil
		},
		Mode: func(_ context.Context, r status.DeviceMode) (status.Devices, error) {
			got = r
			return status.Devices{}, nil
		},
		Log: func(context.Context) (status.DeviceLog, error) { return status.DeviceLog{Full: true}, nil },
		Whois: func(_ context.Context, of string) (status.Whois, error) {
			if got = of; of == "nobody" {
				return status.Whois{}, fmt.Errorf("%w: nobody", ErrUnknownPeer)
			}
			return status.Whois{Name: of}, nil
		},
	}}
	c := dial(t, d.start(t))
	long := strings.Repeat("x", maxName+1)
	const who = "the name, MAC address or address of a device is wanted, of at most 255 bytes"
	for _, tt := range []struct {
		do   func() (any, error)
		want any
		err  string
	}{
		{func() (any, error) {
			return c.DeviceExpose(t.Context(), status.DeviceExpose{Device: "a", Ports: []string{"tcp/1"}, Wake: true})
		},
			status.DeviceExpose{Device: "a", Ports: []string{"tcp/1"}, Wake: true}, ""},
		{func() (any, error) { return c.DeviceExpose(t.Context(), status.DeviceExpose{}) }, nil, who},
		{func() (any, error) {
			return c.DeviceExpose(t.Context(), status.DeviceExpose{Device: "a", Ports: make([]string, 65)})
		}, nil,
			"at most 64 ranges of ports and 255 bytes of a name are taken"},
		{func() (any, error) { return c.DeviceExpose(t.Context(), status.DeviceExpose{Device: "a", As: long}) }, nil,
			"at most 64 ranges of ports and 255 bytes of a name are taken"},
		{func() (any, error) {
			return c.DeviceWeb(t.Context(), status.DeviceWebRequest{Device: "a", Target: "80"})
		}, status.DeviceWebRequest{Device: "a", Target: "80"}, ""},
		{func() (any, error) { return c.DeviceWeb(t.Context(), status.DeviceWebRequest{Target: "80"}) }, nil, who},
		{func() (any, error) { return c.DeviceHide(t.Context(), status.DeviceRequest{Device: "a"}) }, status.DeviceRequest{Device: "a"}, ""},
		{func() (any, error) { return c.DeviceHide(t.Context(), status.DeviceRequest{Device: "nobody"}) }, status.DeviceRequest{Device: "nobody"},
			ErrUnknownDevice.Error() + `: "nobody"`},
		{func() (any, error) { return c.DeviceWake(t.Context(), status.DeviceRequest{Device: long}) }, nil, who},
		{func() (any, error) { return c.DeviceName(t.Context(), status.DeviceName{Device: "a"}) }, status.DeviceName{Device: "a"}, ""},
		{func() (any, error) { return c.DeviceName(t.Context(), status.DeviceName{Device: "a", Name: long}) }, nil, "a name has at most 255 bytes"},
		{func() (any, error) { return c.DeviceMode(t.Context(), status.DeviceMode{Expose: "all"}) }, status.DeviceMode{Expose: "all"}, ""},
		{func() (any, error) { return c.Whois(t.Context(), "a & b") }, "a & b", ""},
		{func() (any, error) { return c.Whois(t.Context(), "nobody") }, "nobody", ErrUnknownPeer.Error() + ": nobody"},
		{func() (any, error) { return c.Whois(t.Context(), "") }, nil, "an address or a name is wanted, of at most 255 bytes"},
	} {
		got = nil
		_, err := tt.do()
		if text := fmt.Sprint(err); tt.err == "" && err != nil || tt.err != "" && text != tt.err || fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("asked %v, want %v; %v, want %q", got, tt.want, err, tt.err)
		}
	}
	if l, err := c.Devices(t.Context()); err != nil || l.Expose != "chosen" || len(l.Devices) != 1 {
		t.Errorf("%+v, %v", l, err)
	}
	if l, err := c.DeviceLog(t.Context()); err != nil || !l.Full {
		t.Errorf("%+v, %v", l, err)
	}
	for body, want := range map[string]int{`{"device":"nobody"}`: http.StatusNotFound, `{}`: http.StatusBadRequest, `{"device":"a","x":1}`: http.StatusBadRequest, `{"device":"a"}`: http.StatusOK} {
		res, err := c.http.Post("http://subnetd/v1/devices/hide", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != want {
			t.Errorf("%s: %d, want %d", body, res.StatusCode, want)
		}
		res.Body.Close()
	}
}
