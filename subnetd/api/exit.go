package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"subnetd/subnetd/status"
)

// Exit is what can be told of exits. All must be set, and safe for concurrent use.
// An error made with BadRequest is the asker's mistake. Use, Off and Offer write the
// wish into the configuration and return when the router is so.
type Exit struct {
	// Use sends devices through exits; no r.Devices: the whole home.
	Use func(ctx context.Context, r status.ExitUse) (status.Exits, error)
	// Off takes devices off their exits; no r.Devices: all rows are gone then.
	Off func(ctx context.Context, r status.ExitOff) (status.Exits, error)
	// Offer says whether members may use the internet from here.
	Offer func(ctx context.Context, r status.ExitOffer) (status.Exits, error)
	// Test says where the traffic of a MAC, an address or a name goes.
	Test func(ctx context.Context, of string) (status.ExitTest, error)
}

// maxDevices bounds how many devices one request may name.
const maxDevices = 256

func (s *Server) exitRoutes() []route {
	x := s.funcs.Exit
	return []route{
		{"POST", "/v1/exit/use", checkTimeout, asked(func(ctx context.Context, r status.ExitUse) (any, error) {
			if len(r.Exits) == 0 {
				return nil, badRequest{errors.New("use which exit? The name of a node is wanted")}
			}
			if err := few(r.Devices); err != nil {
				return nil, err
			}
			return x.Use(ctx, r)
		})},
		{"POST", "/v1/exit/off", checkTimeout, asked(func(ctx context.Context, r status.ExitOff) (any, error) {
			if err := few(r.Devices); err != nil {
				return nil, err
			}
			return x.Off(ctx, r)
		})},
		{"POST", "/v1/exit/offer", checkTimeout, asked(func(ctx context.Context, r status.ExitOffer) (any, error) { return x.Offer(ctx, r) })},
		{"GET", "/v1/exit/test", checkTimeout, func(_ http.ResponseWriter, q *http.Request) (any, error) {
			of := q.URL.Query().Get("of")
			if err := wanted("a MAC address, an address or a name", of); err != nil {
				return nil, err
			}
			return x.Test(q.Context(), of)
		}},
	}
}

func few(devices []string) error {
	if len(devices) > maxDevices {
		return badRequest{fmt.Errorf("%d devices at once are more than %d", len(devices), maxDevices)}
	}
	return nil
}

// asked reads the body and does what it asks for.
func asked[Body any](do func(context.Context, Body) (any, error)) func(http.ResponseWriter, *http.Request) (any, error) {
	return func(w http.ResponseWriter, q *http.Request) (any, error) {
		var r Body
		if err := body(w, q, maxBody, &r); err != nil {
			return nil, err
		}
		return do(q.Context(), r)
	}
}

// ExitUse sends devices through exits.
func (c *Client) ExitUse(ctx context.Context, r status.ExitUse) (x status.Exits, err error) {
	err = c.json(ctx, http.MethodPost, "/v1/exit/use", r, &x)
	return x, err
}

// ExitOff takes devices off their exits.
func (c *Client) ExitOff(ctx context.Context, r status.ExitOff) (x status.Exits, err error) {
	err = c.json(ctx, http.MethodPost, "/v1/exit/off", r, &x)
	return x, err
}

// ExitOffer says whether members may use the internet from here.
func (c *Client) ExitOffer(ctx context.Context, r status.ExitOffer) (x status.Exits, err error) {
	err = c.json(ctx, http.MethodPost, "/v1/exit/offer", r, &x)
	return x, err
}

// ExitTest says where the traffic of something would go.
func (c *Client) ExitTest(ctx context.Context, of string) (x status.ExitTest, err error) {
	err = c.json(ctx, http.MethodGet, "/v1/exit/test?of="+url.QueryEscape(of), nil, &x)
	return x, err
}
