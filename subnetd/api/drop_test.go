package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"subnetd/subnetd/status"
)

// full is an error that says its code.
type full struct{}

func (full) Error() string   { return "there is no room" }
func (full) HTTPStatus() int { return http.StatusInsufficientStorage }

func TestDrop(t *testing.T) {
	var asked string
	f := (&daemon{asked: make(chan string, 8)}).funcs()
	f.Drop = Drop{
		Show: func() status.Drop { return status.Drop{Quota: 7} },
		Send: func(_ context.Context, to, name string, size int64, file io.Reader) (status.DropSent, error) {
			n, err := io.Copy(io.Discard, io.LimitReader(file, 1<<20)) // of a larger one it has seen enough
			asked = fmt.Sprint("send ", to, " ", name, " ", size, " ", n)
			if n == 1<<20 {
				err = fmt.Errorf("%s: %w", to, full{})
			}
			return status.DropSent{To: to, Name: name, Size: n}, err
		},
		Open: func(name string) (io.ReadCloser, int64, error) {
			if name != "Zoë \".txt" {
				return nil, 0, full{}
			}
			return io.NopCloser(strings.NewReader("data")), 4, nil
		},
		Remove: func(_ context.Context, name string) error { asked = "remove " + name; return nil },
		Folder: func(_ context.Context, folder string) (status.Drop, error) {
			asked = "folder " + folder
			return status.Drop{}, nil
		},
		Allow: func(_ context.Context, r status.DropAllow) (status.Drop, error) {
			asked = fmt.Sprint(r)
			return status.Drop{}, nil
		},
	}
	c := dial(t, serving(t, f))
	send := func(name string, size int64, file io.Reader) func() error {
		return func() error { _, err := c.DropSend(t.Context(), "phone", name, size, file); return err }
	}
	big := make([]byte, 8<<20)
	for _, tt := range []struct {
		do    func() error
		asked string
		says  string
	}{
		{send("a & b", 3, strings.NewReader("abc")), "send phone a & b 3 3", ""},
		{send("a", -1, io.MultiReader(strings.NewReader("abc"))), "send phone a -1 3", ""},
		{send("a", 0, strings.NewReader("")), "send phone a 0 0", ""},
		{send("a", 8<<20, bytes.NewReader(big)), "send phone a 8388608 1048576", "phone: there is no room"},
		{send("", 3, strings.NewReader("abc")), "", "the name of a file is wanted"},
		{func() error { return c.DropRemove(t.Context(), "x") }, "remove x", ""},
		{func() error { return c.DropRemove(t.Context(), "") }, "", "the name of a file is wanted"},
		{func() error { _, err := c.DropFolder(t.Context(), "/x"); return err }, "folder /x", ""},
		{func() error { _, err := c.DropFolder(t.Context(), strings.Repeat("x", 5000)); return err }, "", "at most 4095"},
		{func() error {
			_, err := c.DropAllow(t.Context(), status.DropAllow{Device: "nas", Allow: true})
			return err
		}, "{nas true}", ""},
		{func() error { _, err := c.DropAllow(t.Context(), status.DropAllow{}); return err }, "", "is wanted"},
		{func() error { return c.DropGet(t.Context(), "y", io.Discard) }, "", "there is no room"},
	} {
		asked = ""
		err := tt.do()
		if asked != tt.asked || tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("asked %q, want %q; %v, want %q", asked, tt.asked, err, tt.says)
		}
	}
	if d, err := c.Drop(t.Context()); err != nil || d.Quota != 7 {
		t.Errorf("%+v, %v", d, err)
	}
	var b bytes.Buffer
	if err := c.DropGet(t.Context(), "Zoë \".txt", &b); err != nil || b.String() != "data" {
		t.Errorf("%q, %v", b.String(), err)
	}
	res, err := c.http.Get("http://subnetd/v1/drop/file?name=Zo%C3%AB%20%22.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if h := res.Header; h.Get("Content-Disposition") != `attachment; filename*=utf-8''Zo%C3%AB%20%22.txt` || h.Get("Content-Type") != "application/octet-stream" || res.ContentLength != 4 {
		t.Errorf("%v", h)
	}
	if code(fmt.Errorf("x: %w", full{})) != 507 || code(errors.New("x")) != 500 {
		t.Error("an error's own code is not taken")
	}
}
