package systemd

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	journalSocket = "/run/systemd/journal/socket"
	fieldPrefix   = "SUBNETD_" // of attributes: other names have a meaning
	mostName      = 64         // bytes that the journal takes
	mostValue     = 32 << 10   // bytes of a field that are kept
)

// Journal gives a handler by which the journal gets each line as a message, with a field
// for each attribute, if it is what f leads to; otherwise plain itself. What it does not
// take goes to plain, too. https://systemd.io/JOURNAL_NATIVE_PROTOCOL
func Journal(plain slog.Handler, f *os.File, getenv func(string) string) slog.Handler {
	if !Built || !leadsTo(f, getenv("JOURNAL_STREAM")) {
		return plain
	}
	return &journal{plain: plain, at: journalSocket}
}

// leadsTo reports whether f is the stream, "DEVICE:INODE".
func leadsTo(f *os.File, stream string) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && stream == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// journal is a slog.Handler.
type journal struct {
	plain slog.Handler
	at    string
	line         // what was bound before
	group string // with a dot at its end
}

// line is a message as it grows.
type line struct {
	text   string // attributes as one reads them, each after a space
	fields []byte // as they are sent
}

func (l *line) add(group string, a slog.Attr) {
	if a.Equal(slog.Attr{}) {
		return
	}
	value := a.Value.Resolve().String()
	l.text += " " + group + a.Key + "=" + readable(value)
	l.fields = field(l.fields, fieldPrefix+fieldName(group+a.Key), value)
}

// readable is a value from which one sees where it ends.
func readable(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '"' || r == '=' || r == 0x7f }) {
		return strconv.Quote(s)
	}
	return s
}

// fieldName has only what the journal takes in a name.
func fieldName(key string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, key)
	return name[:min(len(name), mostName-len(fieldPrefix))]
}

// field appends one in the form that is for every value, lines of several too.
func field(b []byte, name, value string) []byte {
	value = value[:min(len(value), mostValue)]
	b = append(b, name+"\n"...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
	return append(b, value+"\n"...)
}

// priority is syslog(3)'s.
func priority(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "3"
	case l >= slog.LevelWarn:
		return "4"
	case l >= slog.LevelInfo:
		return "6"
	}
	return "7"
}

// Enabled implements slog.Handler.
func (j *journal) Enabled(ctx context.Context, l slog.Level) bool { return j.plain.Enabled(ctx, l) }

// Handle implements slog.Handler.
func (j *journal) Handle(ctx context.Context, rec slog.Record) error {
	l := line{j.text, append([]byte(nil), j.fields...)}
	rec.Attrs(func(a slog.Attr) bool {
		l.add(j.group, a)
		return true
	})
	b := field(l.fields, "MESSAGE", rec.Message+l.text)
	b = field(b, "PRIORITY", priority(rec.Level))
	b = field(b, "SYSLOG_IDENTIFIER", "subnetd")
	if datagram(j.at, b) != nil {
		return j.plain.Handle(ctx, rec)
	}
	return nil
}

// WithAttrs implements slog.Handler.
func (j *journal) WithAttrs(as []slog.Attr) slog.Handler {
	next := *j
	next.plain = j.plain.WithAttrs(as)
	next.fields = append([]byte(nil), j.fields...)
	for _, a := range as {
		next.add(j.group, a)
	}
	return &next
}

// WithGroup implements slog.Handler.
func (j *journal) WithGroup(name string) slog.Handler {
	next := *j
	next.plain = j.plain.WithGroup(name)
	next.group += name + "."
	return &next
}
