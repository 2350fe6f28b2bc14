package notice

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestWarn(t *testing.T) {
	var b bytes.Buffer
	now := time.Unix(0, 0)
	l := New(slog.New(slog.NewTextHandler(&b, nil)), func() time.Time { return now })
	lines := func() int { return strings.Count(b.String(), "\n") }
	for i := range 1000 {
		l.Warn("one", "from", i)
		l.Warn("another")
	}
	if lines() != 2 {
		t.Errorf("%d lines:\n%s", lines(), &b)
	}
	now = now.Add(quiet)
	l.Warn("one", "from", 5)
	if lines() != 3 || !strings.Contains(b.String(), "from=5 more=999") {
		t.Errorf("an hour later:\n%s", &b)
	}
	for i := range 1000 {
		l.Warn(fmt.Sprint("cause ", i))
	}
	if len(l.causes) != most || lines() != 3+most-2 {
		t.Errorf("%d causes, %d lines", len(l.causes), lines())
	}
}
