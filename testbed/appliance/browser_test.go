package appliance_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// browser is the page of the box, opened from its LAN.
type browser struct {
	t    *testing.T
	http *http.Client
}

const (
	pageAt       = "http://192.168.77.1:8411"
	pagePassword = "correct horse battery"
)

// page opens it and logs in; the first to do so sets the password.
func (b *testBox) page() *browser {
	b.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		b.t.Fatal(err)
	}
	p := &browser{b.t, &http.Client{Jar: jar, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, to string) (net.Conn, error) { return b.lan.Dial(ctx, network, to) }}}}
	netns.Eventually(b.t, 2*time.Minute, "the page opens", func() error {
		var now struct{ State string }
		if err := p.ask(b.t.Context(), http.MethodGet, "/v1/page", nil, 0, &now); err != nil {
			return err
		}
		if now.State == "in" {
			return nil
		}
		secret, err := json.Marshal(map[string]string{"password": pagePassword})
		if err != nil {
			return err
		}
		return p.ask(b.t.Context(), http.MethodPost, "/v1/page/"+now.State, bytes.NewReader(secret), len(secret), nil)
	})
	return p
}

// ask sends a request, and reads the answer into out. An error has the router's words.
func (p *browser) ask(ctx context.Context, method, path string, body io.Reader, size int, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, pageAt+path, body)
	if err != nil {
		return err
	}
	req.ContentLength = int64(size)
	req.Header.Set("Content-Type", map[string]string{http.MethodPost: "application/json", http.MethodPut: "application/octet-stream"}[method])
	res, err := p.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", res.Status, text)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text, out)
}

// put sends an image of that size, and gives what the router says is next.
func (p *browser) put(ctx context.Context, sum string, image io.Reader, size int) (string, error) {
	var done struct{ Text string }
	err := p.ask(ctx, http.MethodPut, "/v1/system/image/"+sum, image, size, &done)
	return done.Text, err
}

// install sends an image that is taken, and restarts the box with it.
func (p *browser) install(image []byte) {
	p.t.Helper()
	said, err := p.put(p.t.Context(), sumOf(image), bytes.NewReader(image), len(image))
	if err != nil || !strings.Contains(said, "is tried at the next boot") {
		p.t.Fatalf("%q %v", said, err)
	}
	if s := p.standing(); !s.System.Waiting || s.System.Update != nil {
		p.t.Errorf("after an update: %+v", s)
	}
	if err := p.ask(p.t.Context(), http.MethodPost, "/v1/system/restart", strings.NewReader("{}"), 2, nil); err != nil {
		p.t.Fatal(err)
	}
}

// refused sends an image that is not taken, and wants to be told why.
func (p *browser) refused(why, sum string, image []byte) {
	p.t.Helper()
	if said, err := p.put(p.t.Context(), sum, bytes.NewReader(image), len(image)); err == nil || !strings.Contains(err.Error(), why) {
		p.t.Errorf("%q %v, want %q", said, err, why)
	}
}

// begin sends a part of an image; the rest is for more. It returns when the router has got that, by what it tells of it.
func (p *browser) begin(image []byte, part int) (answer <-chan error, more *io.PipeWriter) {
	p.t.Helper()
	rest, more := io.Pipe()
	said := make(chan error, 1)
	go func() {
		_, err := p.put(p.t.Context(), sumOf(image), io.MultiReader(bytes.NewReader(image[:part]), rest), len(image))
		said <- err
	}()
	netns.Eventually(p.t, time.Minute, "the image comes in", func() error {
		if s := p.standing(); s.System.Update == nil || s.System.Update.Done < part-len(image)/50 {
			return fmt.Errorf("%+v", s.System.Update)
		}
		return nil
	})
	return said, more
}

// standing is what the page shows of the system.
type standing struct {
	System struct {
		Version, Note string
		Waiting       bool
		Update        *struct{ Done, Size int }
	}
	Problems []struct{ Code, Text string }
}

func (p *browser) standing() (s standing) {
	p.t.Helper()
	if err := p.ask(p.t.Context(), http.MethodGet, "/v1/status", nil, 0, &s); err != nil {
		p.t.Fatal(err)
	}
	return s
}

// told is what the page says as a trouble of the system; "": nothing.
func (s standing) told() string {
	for _, p := range s.Problems {
		if p.Code == "system" {
			return p.Text
		}
	}
	return ""
}

func sumOf(image []byte) string {
	s := sha256.Sum256(image)
	return hex.EncodeToString(s[:])
}

// headed is an image with another line in its head.
func headed(t *testing.T, good []byte, key, value string) []byte {
	t.Helper()
	text, _, _ := bytes.Cut(good[:4096], []byte{0})
	lines := strings.Split(string(text), "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, key+" ") {
			lines[i] = key + " " + value
			head := make([]byte, 4096)
			copy(head, strings.Join(lines, "\n"))
			return append(head, good[4096:]...)
		}
	}
	t.Fatal(errors.New("the head has no " + key))
	return nil
}
