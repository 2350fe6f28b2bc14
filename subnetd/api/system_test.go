package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"subnetd/subnetd/status"
)

var imageSum = strings.Repeat("0a", 32)

// machine is Funcs whose system update decides.
func machine(update func(ctx context.Context, sum string, image io.Reader, size int64) (status.Updated, error)) Funcs {
	f := (&daemon{asked: make(chan string, 8)}).funcs()
	f.System = System{Update: update, Restart: func(context.Context) error { return ErrNoSystem }}
	return f
}

func TestSystem(t *testing.T) {
	refusal := BadRequest(errors.New("this image is for another board"))
	f := machine(func(_ context.Context, sum string, image io.Reader, size int64) (status.Updated, error) {
		h := sha256.New()
		n, err := io.Copy(h, io.LimitReader(image, 1<<20)) // of a larger one it has seen enough
		switch {
		case err != nil:
			return status.Updated{}, err
		case n != size:
			return status.Updated{}, refusal
		case hex.EncodeToString(h.Sum(nil)) != sum:
			return status.Updated{}, ErrUpdating // stands for whatever
		}
		return status.Updated{Text: "it is tried"}, nil
	})
	c := dial(t, serving(t, f))
	small, big := bytes.Repeat([]byte("x"), 300_000), bytes.Repeat([]byte("y"), 8<<20)
	digest := func(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }
	for _, tt := range []struct {
		what  string
		sum   string
		image io.Reader
		size  int64
		says  string // of the error
	}{
		{"good", digest(small), bytes.NewReader(small), 300_000, ""},
		{"another", digest(nil), bytes.NewReader(small), 300_000, ErrUpdating.Error()},
		{"refused in the middle", digest(big), bytes.NewReader(big), 8 << 20, "this image is for another board"},
		{"no sum", "x", bytes.NewReader(small), 300_000, "64 hexadecimal digits"},
		{"a short sum", digest(small)[2:], bytes.NewReader(small), 300_000, "64 hexadecimal digits"},
		{"nothing", digest(nil), http.NoBody, 0, "with a known size"},
		{"size not told", digest(small), io.MultiReader(bytes.NewReader(small)), -1, "with a known size"},
	} {
		done, err := c.Update(t.Context(), tt.sum, tt.image, tt.size)
		if tt.says == "" && (err != nil || done.Text != "it is tried") {
			t.Errorf("%s: %v %v", tt.what, done, err)
		}
		if tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%s: %v, want %q", tt.what, err, tt.says)
		}
	}
	large := httptest.NewRequest(http.MethodPut, SystemPath+"image/"+imageSum, iotest.ErrReader(errors.New("it is read")))
	large.ContentLength = MaxImage + 1
	w := httptest.NewRecorder()
	Handler(f, func(*http.Request) Asker { return Owner }).ServeHTTP(w, large)
	if w.Code != http.StatusRequestEntityTooLarge || !strings.Contains(w.Body.String(), "no image is that large") {
		t.Errorf("too large: %d %s", w.Code, w.Body)
	}
	if err := c.Restart(t.Context()); err == nil || err.Error() != ErrNoSystem.Error() {
		t.Error("restart:", err)
	}
	for err, want := range map[error]int{refusal: 400, ErrNoSystem: 404, ErrUpdating: 409, fmt.Errorf("x: %w", &http.MaxBytesError{}): 413} {
		if got := code(err); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
}

// TestSlowUpload: an image may come, and be looked at, for longer than a server waits for other requests; not when nothing
// comes of it any more, nor when its sender is gone.
func TestSlowUpload(t *testing.T) {
	const limit = 50 * time.Millisecond
	begun, ended := make(chan struct{}, 1), make(chan error, 1)
	f := machine(func(ctx context.Context, _ string, image io.Reader, _ int64) (status.Updated, error) {
		if _, err := io.ReadFull(image, make([]byte, 1)); err != nil {
			return status.Updated{}, err
		}
		begun <- struct{}{}
		_, err := io.Copy(io.Discard, image)
		if err == nil {
			select { // this is the time that it takes; there is no event to wait for
			case <-ctx.Done():
				err = ctx.Err()
			case <-time.After(3 * limit):
			}
		}
		ended <- err
		return status.Updated{}, err
	})
	srv := httptest.NewUnstartedServer(Handler(f, func(*http.Request) Asker { return Owner }))
	srv.Config.ReadTimeout, srv.Config.ReadHeaderTimeout = limit, time.Minute // on a busy machine a request takes longer to begin
	srv.Start()
	defer srv.Close()
	put := func(body io.Reader) (int, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, srv.URL+SystemPath+"image/"+imageSum, body)
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = 2000
		res, err := srv.Client().Do(req)
		if err != nil {
			return 0, err
		}
		return res.StatusCode, res.Body.Close()
	}
	half := strings.NewReader(strings.Repeat("x", 1000))
	pause := readerFunc(func([]byte) (int, error) {
		<-begun
		time.Sleep(3 * limit) // as above
		return 0, io.EOF
	})
	if code, err := put(io.MultiReader(half, pause, strings.NewReader(strings.Repeat("x", 1000)))); code != http.StatusOK || err != nil {
		t.Error(code, err)
	}
	if err := <-ended; err != nil {
		t.Error("a slow one:", err)
	}
	gone := readerFunc(func([]byte) (int, error) {
		<-begun
		return 0, errors.New("gone")
	})
	if _, err := put(io.MultiReader(strings.NewReader("x"), gone)); err == nil {
		t.Error("who is gone has an answer")
	}
	if err := <-ended; err == nil {
		t.Error("half an image is a whole one")
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }
