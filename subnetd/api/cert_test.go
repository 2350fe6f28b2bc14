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

func TestCertificates(t *testing.T) {
	var asked string
	d := &daemon{certs: Certificates{
		List: func() (status.Certificates, error) { return status.Certificates{}, ErrNoCertificates },
		Issue: func(_ context.Context, r status.CertificateRequest) (status.CertificatePair, error) {
			if asked = r.Name; r.Name == "nobody" {
				return status.CertificatePair{}, fmt.Errorf("%w: nobody", ErrUnknownName)
			}
			return status.CertificatePair{Name: "nas.lab", Key: "secret"}, nil
		},
		Root: func(form string) ([]byte, string, error) {
			switch form {
			case RootPEM:
				return []byte("pem"), "text/x", nil
			case "early":
				return nil, "", errors.New("no mesh yet")
			}
			return nil, "", nil
		},
	}}
	c := dial(t, d.start(t))
	p, err := c.Issue(t.Context(), status.CertificateRequest{Name: "nas"})
	if err != nil || asked != "nas" || p.Key != "secret" || strings.Contains(fmt.Sprint(p), "secret") {
		t.Errorf("%q, %v, %v", asked, p, err)
	}
	if data, err := c.Root(t.Context(), RootPEM); err != nil || string(data) != "pem" {
		t.Errorf("%q, %v", data, err)
	}
	for path, want := range map[string]int{"GET /v1/cert": 409, "POST /v1/cert": 400, "GET /v1/cert/root/key": 400, "GET /v1/cert/root/early": 500, "GET /v1/cert/root/": 404} {
		method, path, _ := strings.Cut(path, " ")
		if code := ask(t, c, method, path, `{"name":""}`); code != want {
			t.Errorf("%s %s: %d, want %d", method, path, code, want)
		}
	}
	if code := ask(t, c, "POST", "/v1/cert", `{"name":"nobody"}`); code != 404 {
		t.Errorf("an unknown name: %d", code)
	}
}

// ask is the code of an answer.
func ask(t *testing.T, c *Client, method, path, body string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://subnetd"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	return res.StatusCode
}
