package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"subnetd/subnetd/status"
)

// Devices is what can be told of the things at home. All must be set, and safe for
// concurrent use. An error made with BadRequest is the asker's mistake, a thing that
// nobody knows is ErrUnknownDevice. Expose, Hide, Name, Mode and Web write the wish into the
// configuration and return when the router is so.
type Devices struct {
	List func() status.Devices
	// Expose lets the mesh reach a thing; r says all about that, also of one that is
	// reached already.
	Expose func(ctx context.Context, r status.DeviceExpose) (status.Device, error)
	// Hide ends that, and cuts what runs.
	Hide func(ctx context.Context, r status.DeviceRequest) (status.Device, error)
	// Name gives a thing the owner's name; no r.Name takes it away.
	Name func(ctx context.Context, r status.DeviceName) (status.Device, error)
	// Mode says what of the LAN the mesh may reach.
	Mode func(ctx context.Context, r status.DeviceMode) (status.Devices, error)
	// Web has this router serve a device's web pages, or not.
	Web func(ctx context.Context, r status.DeviceWebRequest) (status.Device, error)
	// Wake sends a magic packet.
	Wake func(ctx context.Context, r status.DeviceRequest) (status.Device, error)
	// Log is who reached what.
	Log func(ctx context.Context) (status.DeviceLog, error)
	// Whois is whose an address or a name is. ErrUnknownPeer if nobody's.
	Whois func(ctx context.Context, of string) (status.Whois, error)
}

// ErrUnknownDevice is returned by the funcs of Devices, and arrives at the client as text.
var ErrUnknownDevice = errors.New("no device at home has that name, MAC address or address")

// maxPorts bounds the ranges of ports of one request.
const maxPorts = 64

func (s *Server) deviceRoutes() []route {
	d := s.funcs.Devices
	return []route{
		{"GET", "/v1/devices", 0, func(http.ResponseWriter, *http.Request) (any, error) { return d.List(), nil }},
		{"POST", "/v1/devices/expose", checkTimeout, asked(func(ctx context.Context, r status.DeviceExpose) (any, error) {
			if err := wantDevice(r.Device); err != nil {
				return nil, err
			}
			if len(r.Ports) > maxPorts || len(r.As) > maxName {
				return nil, badRequest{fmt.Errorf("at most %d ranges of ports and %d bytes of a name are taken", maxPorts, maxName)}
			}
			return d.Expose(ctx, r)
		})},
		{"POST", "/v1/devices/hide", checkTimeout, ofDevice(d.Hide)},
		{"POST", "/v1/devices/name", checkTimeout, asked(func(ctx context.Context, r status.DeviceName) (any, error) {
			if err := wantDevice(r.Device); err != nil {
				return nil, err
			}
			if len(r.Name) > maxName {
				return nil, badRequest{fmt.Errorf("a name has at most %d bytes", maxName)}
			}
			return d.Name(ctx, r)
		})},
		{"POST", "/v1/devices/mode", checkTimeout, asked(func(ctx context.Context, r status.DeviceMode) (any, error) { return d.Mode(ctx, r) })},
		{"POST", "/v1/devices/web", checkTimeout, asked(func(ctx context.Context, r status.DeviceWebRequest) (any, error) {
			if err := wantDevice(r.Device); err != nil {
				return nil, err
			}
			return d.Web(ctx, r)
		})},
		{"POST", "/v1/devices/wake", checkTimeout, ofDevice(d.Wake)},
		{"GET", "/v1/devices/log", checkTimeout, func(_ http.ResponseWriter, q *http.Request) (any, error) { return d.Log(q.Context()) }},
		{"GET", "/v1/whois", checkTimeout, func(_ http.ResponseWriter, q *http.Request) (any, error) {
			of := q.URL.Query().Get("of")
			if err := wanted("an address or a name", of); err != nil {
				return nil, err
			}
			return d.Whois(q.Context(), of)
		}},
	}
}

// ofDevice does something with the one device that the body names.
func ofDevice(do func(context.Context, status.DeviceRequest) (status.Device, error)) func(http.ResponseWriter, *http.Request) (any, error) {
	return asked(func(ctx context.Context, r status.DeviceRequest) (any, error) {
		if err := wantDevice(r.Device); err != nil {
			return nil, err
		}
		return do(ctx, r)
	})
}

func wantDevice(name string) error {
	return wanted("the name, MAC address or address of a device", name)
}

// Devices is the things at home.
func (c *Client) Devices(ctx context.Context) (d status.Devices, err error) {
	err = c.json(ctx, http.MethodGet, "/v1/devices", nil, &d)
	return d, err
}

// DeviceExpose lets the mesh reach a thing at home.
func (c *Client) DeviceExpose(ctx context.Context, r status.DeviceExpose) (d status.Device, err error) {
	err = c.json(ctx, http.MethodPost, "/v1/devices/expose", r, &d)
	return d, err
}

// DeviceHide ends that.
func (c *Client) DeviceHide(ctx context.Context, r status.DeviceRequest) (d status.Device, err error) {
	err = c.json(ctx, http.MethodPost, "/v1/devices/hide", r, &d)
	return d, err
}

// DeviceName gives a thing the owner's name.
func (c *Client) DeviceName(ctx context.Context, r status.DeviceName) (d status.Device, err error) {
	err = c.json(ctx, http.MethodPost, "/v1/devices/name", r, &d)
	return d, err
}

// DeviceMode says what of the LAN the mesh may reach.
func (c *Client) DeviceMode(ctx context.Context, r status.DeviceMode) (d status.Devices, err error) {
	err = c.json(ctx, http.MethodPost, "/v1/devices/mode", r, &d)
	return d, err
}

// DeviceWeb has this router serve a device's web pages, or not.
func (c *Client) DeviceWeb(ctx context.Context, r status.DeviceWebRequest) (d status.Device, err error) {
	err = c.json(ctx, http.MethodPost, "/v1/devices/web", r, &d)
	return d, err
}

// DeviceWake wakes a thing at home.
func (c *Client) DeviceWake(ctx context.Context, r status.DeviceRequest) (d status.Device, err error) {
	err = c.json(ctx, http.MethodPost, "/v1/devices/wake", r, &d)
	return d, err
}

// DeviceLog is who reached what.
func (c *Client) DeviceLog(ctx context.Context) (l status.DeviceLog, err error) {
	err = c.json(ctx, http.MethodGet, "/v1/devices/log", nil, &l)
	return l, err
}

// Whois is whose an address is.
func (c *Client) Whois(ctx context.Context, of string) (w status.Whois, err error) {
	err = c.json(ctx, http.MethodGet, "/v1/whois?of="+url.QueryEscape(of), nil, &w)
	return w, err
}
