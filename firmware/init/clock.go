package pid1

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// clock sets a clock that is behind what is known of the time: such boards have no
// battery. It never sets it back. NTP does the rest.
func (i *initer) clock() error {
	known := i.cfg.Built
	if st, err := os.Stat(stampFile); err == nil && st.ModTime().After(known) {
		known = st.ModTime()
	}
	if !time.Now().Before(known) {
		return nil
	}
	t := unix.NsecToTimeval(known.UnixNano())
	return unix.Settimeofday(&t)
}

// stamp keeps the time for the next boot: the file's own time says it. It is written when
// the machine goes down in order, not by the hour.
func stamp() error {
	f, err := os.OpenFile(stampFile, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	now := time.Now()
	return os.Chtimes(stampFile, now, now)
}
