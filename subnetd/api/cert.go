package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"

	"subnetd/subnetd/status"
)

// Certificates is what can be told of the home's certificates. All must be set, and safe
// for concurrent use. ErrNoCertificates if there are none now, ErrUnknownName if the home
// knows no such name.
type Certificates struct {
	List func() (status.Certificates, error)
	// Issue makes one for the owner.
	Issue func(ctx context.Context, r status.CertificateRequest) (status.CertificatePair, error)
	// Root is the root certificate in a form, and its media type; "": there is no such form.
	Root func(form string) (data []byte, media string, err error)
}

// What a func of Certificates returns, wrapped or not; it arrives at the client as text.
var (
	ErrNoCertificates = errors.New("there are no certificates now")
	ErrUnknownName    = errors.New("no certificate for that name")
)

// RootPEM is the form of the root certificate that most programs read.
const RootPEM = "crt"

func (s *Server) certRoutes() []route {
	c := s.funcs.Certificates
	return []route{
		{"GET", "/v1/cert", checkTimeout, func(http.ResponseWriter, *http.Request) (any, error) { return c.List() }},
		{"POST", "/v1/cert", checkTimeout, asked(func(ctx context.Context, r status.CertificateRequest) (any, error) {
			if err := wanted("the name of a member or a device", r.Name); err != nil {
				return nil, err
			}
			return c.Issue(ctx, r)
		})},
		{"GET", "/v1/cert/root/{form}", checkTimeout, func(w http.ResponseWriter, q *http.Request) (any, error) {
			data, media, err := c.Root(q.PathValue("form"))
			if err != nil {
				return nil, err
			}
			if media == "" {
				return nil, badRequest{errors.New("the root is there as crt, der and mobileconfig")}
			}
			w.Header().Set("Content-Type", media)
			_, _ = w.Write(data) // an asker who left needs no answer
			return nil, errStreamed
		}},
	}
}

// Certificates is what this home has to do with certificates.
func (c *Client) Certificates(ctx context.Context) (x status.Certificates, err error) {
	err = c.json(ctx, http.MethodGet, "/v1/cert", nil, &x)
	return x, err
}

// Issue gets a certificate for a name, and its key.
func (c *Client) Issue(ctx context.Context, r status.CertificateRequest) (x status.CertificatePair, err error) {
	err = c.json(ctx, http.MethodPost, "/v1/cert", r, &x)
	return x, err
}

// Root is the root certificate in a form, such as RootPEM.
func (c *Client) Root(ctx context.Context, form string) ([]byte, error) {
	req, err := request(ctx, http.MethodGet, "/v1/cert/root/"+url.PathEscape(form), nil)
	if err != nil {
		return nil, err
	}
	res, err := c.do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return io.ReadAll(io.LimitReader(res.Body, maxBody))
}
