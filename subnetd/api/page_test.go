package api

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"subnetd/subnetd/status"
)

// Who may look changes nothing and sees no secret: what is not said to be for a guest
// is not.
func TestNeeds(t *testing.T) {
	guest := map[string]bool{}
	for _, path := range []string{
		"/v1/status", "/v1/ping", "/v1/netcheck", "/v1/home/nodes", "/v1/exit/test", "/v1/devices", "/v1/whois", "/v1/qr", "/v1/cert", "/v1/cert/root/{form}",
	} {
		guest["GET "+path] = true
	}
	d := &daemon{asked: make(chan string, 8)}
	s := &Server{funcs: d.funcs()}
	for _, r := range s.routes() {
		name := r.method + " " + r.path
		if got := r.needs() == Guest; got != guest[name] {
			t.Errorf("%s is for guests: %v", name, got)
		}
		if got := r.needs() == Local; got != (name == "POST /v1/page/reset" || name == "GET /v1/watch") {
			t.Errorf("%s is for this machine only: %v", name, got)
		}
		delete(guest, name)
	}
	if len(guest) > 0 {
		t.Errorf("there is no %v", guest)
	}
}

func TestAskers(t *testing.T) {
	d := &daemon{asked: make(chan string, 8)}
	f := d.funcs()
	f.Page = Page{
		Settings:    func() status.Settings { return status.Settings{Listen: ":8411"} },
		Backup:      func(context.Context) (any, error) { return json.RawMessage(`{"is":"all"}`), nil },
		Restore:     func(_ context.Context, b []byte) error { d.asked <- string(b); return nil },
		SetPassword: func(_ context.Context, p string) error { d.asked <- p; return nil },
		Confirm:     func(context.Context, string) error { return ErrNoTrial },
	}
	who := Guest
	h := Handler(f, func(*http.Request) Asker { return who })
	ask := func(as Asker, method, path, body string) *httptest.ResponseRecorder {
		who = as
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
		return w
	}
	tests := []struct {
		as           Asker
		method, path string
		body         string
		want         int
	}{
		{Guest, "GET", "/v1/status", "", 200},
		{Owner, "GET", "/v1/watch", "", 403},
		{Guest, "GET", "/v1/settings", "", 403},
		{Owner, "GET", "/v1/settings", "", 200},
		{Owner, "PUT", "/v1/settings", "", 405},
		{Guest, "POST", "/v1/down", "", 403},
		{Owner, "POST", "/v1/down", "", 200},
		{Owner, "POST", "/v1/page/reset", `{"password":"x"}`, 403},
		{Local, "POST", "/v1/page/reset", `{"password":"x"}`, 200},
		{Owner, "POST", "/v1/settings/confirm", `{"id":"x"}`, 409},
		{Owner, "POST", "/v1/settings/confirm", `{"id":7}`, 400},
		{Owner, "POST", "/v1/restore", `{"is":"all"}`, 200},
		{Owner, "POST", "/v1/restore", strings.Repeat("x", MaxBackup+1), 413},
		{Guest, "GET", "/v1/qr?text=x", "", 200},
		{Guest, "GET", "/v1/qr", "", 400},
	}
	for _, tt := range tests {
		if w := ask(tt.as, tt.method, tt.path, tt.body); w.Code != tt.want {
			t.Errorf("%d: %s %s: %d %s, want %d", tt.as, tt.method, tt.path, w.Code, w.Body, tt.want)
		}
	}
	w := ask(Owner, "POST", "/v1/backup", "")
	if w.Body.String() != "{\"is\":\"all\"}\n" || !strings.Contains(w.Header().Get("Content-Disposition"), "subnetd-backup.json") {
		t.Errorf("%s %v", w.Body, w.Header())
	}
	if w := ask(Owner, "PUT", "/v1/settings", ""); w.Header().Get("Allow") != "GET, POST" {
		t.Error(w.Header())
	}
	if w := ask(Guest, "GET", "/v1/qr?text=x", ""); w.Header().Get("Content-Type") != "image/svg+xml" {
		t.Error(w.Header())
	}
}

func TestSetPassword(t *testing.T) {
	d := &daemon{asked: make(chan string, 8)}
	f := d.funcs()
	f.Page.SetPassword = func(_ context.Context, p string) error { d.asked <- p; return nil }
	srv := httptest.NewServer((&Server{funcs: f, log: slog.New(slog.NewTextHandler(io.Discard, nil))}).handler(func(*http.Request) Asker { return Local }))
	defer srv.Close()
	c := &Client{http: &http.Client{Transport: rewritten(srv.URL)}}
	if err := c.SetPassword(t.Context(), "a word"); err != nil || <-d.asked != "a word" {
		t.Error(err)
	}
	if s := (status.PageSecret{Password: "a word"}).String() + (status.PagePassword{Old: "a word", New: "a word"}).String(); strings.Contains(s, "a word") {
		t.Error("a password is printed:", s)
	}
}

// rewritten sends every request to a test's server.
type rewritten string

func (u rewritten) RoundTrip(r *http.Request) (*http.Response, error) {
	r.URL.Host = strings.TrimPrefix(string(u), "http://")
	return http.DefaultTransport.RoundTrip(r)
}
