// Package drop moves files: members send them here, and they are sent to members, as
// stock clients do by Taildrop (tailscale.com/feature/taildrop): one PUT to the peer api,
// before which the sender asks by GET how much is there since the last time, in blocks
// with a SHA-256 each.
//
//	a member's PUT -> Receive -> admit: name, room, a turn -> a hidden file -> fsync ->
//	                             rename to the first free name -> Arrivals
//	ours           -> Send    -> GET what is there -> PUT the rest
//
// Nothing in the folder is ever written over, nothing of a file is seen before all of it
// is on disk, and each file under way has one buffer, whatever its size.
package drop

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"
)

// Error is why a file does not go where it should.
type Error struct {
	text string
	code int
}

func (e *Error) Error() string { return e.text }

// HTTPStatus is how that is said by HTTP.
func (e *Error) HTTPStatus() int { return e.code }

// What these functions return, wrapped or not.
var (
	ErrName    error = &Error{"that is no name for a file", http.StatusBadRequest}
	ErrMayNot  error = &Error{"you may not send files to this node: it takes them from nodes of its own user, and from whom the policy grants " + mesh.CapSend, http.StatusForbidden}
	ErrTaken   error = &Error{"there are files of that name already", http.StatusConflict}
	ErrOffset  error = &Error{"there is nothing to go on from", http.StatusRequestedRangeNotSatisfiable}
	ErrBusy    error = &Error{"too many files are under way: try again later", http.StatusServiceUnavailable}
	ErrMoved   error = &Error{"the sender goes on with this file by another connection", http.StatusConflict}
	ErrPlace   error = &Error{"the folder for files is not there", http.StatusServiceUnavailable}
	ErrFull    error = &Error{"there is not enough free space on the disk", http.StatusInsufficientStorage}
	ErrQuota   error = &Error{"this is more than the quota has room for", http.StatusInsufficientStorage}
	ErrUnknown error = &Error{"there is no such file", http.StatusNotFound}
	ErrDisk    error = &Error{"the disk failed", http.StatusInternalServerError}
	ErrNobody  error = &Error{"there is no such node in the mesh", http.StatusNotFound}
	ErrNoFiles error = &Error{"it takes no files", http.StatusForbidden}
	ErrSilent  error = &Error{"it does not answer", http.StatusBadGateway}
)

func code(err error) int {
	var e *Error
	if errors.As(err, &e) {
		return e.code
	}
	return http.StatusInternalServerError
}

// Config is what a Store needs.
type Config struct {
	Inbox  string // absolute: where files land if the owner chose no folder
	Memory Memory // as it was last saved
	Save   func(Memory) error
	Netmap func() *mesh.Netmap // nil: we are in no mesh
	Dial   func(ctx context.Context, network, addr string) (net.Conn, error)
	// Changed is told that what Show gives is another, at most twice a second while files
	// are under way.
	Changed func()
	Now     func() time.Time
	Log     *slog.Logger
}

// Settings is what the owner wants.
type Settings struct {
	Folder   string // absolute; "": the inbox
	Quota    int64  // bytes of all files there; 0: none
	KeepFree int64  // bytes of the file system that stay free
}

// Store has the files that arrived, and knows those under way.
type Store struct {
	cfg    Config
	turns  turns
	naming sync.Mutex // one file gets its name at a time
	// silence is that after which a sender may have gone without a word.
	silence time.Duration

	mu       sync.Mutex // guards all below
	set      Settings
	memory   Memory
	under    []*transfer // the oldest first
	last     uint64      // number of a transfer
	told     time.Time   // when Changed was
	arrivals []status.DropFile
}

// mostArrivals is how many are remembered.
const mostArrivals = 100

// New gives a Store that refuses all before Set.
func New(cfg Config) *Store { return &Store{cfg: cfg, memory: cfg.Memory, silence: stalled} }

// Set replaces what the owner wants. Files under way land where they began.
func (s *Store) Set(set Settings) {
	s.mu.Lock()
	s.set = set
	s.mu.Unlock()
	if p, err := s.open(); err == nil {
		s.tidy(p, stale)
		p.Close()
	}
	s.cfg.Changed()
}

// Choose forgets where the disk of the folder was: the owner says that it is right as it
// is. The error says why it cannot be.
func (s *Store) Choose(folder string) error {
	p, err := openPlace(folder)
	if err != nil {
		return err
	}
	defer p.Close()
	s.mu.Lock()
	s.memory = Memory{}
	s.mu.Unlock()
	return nil
}

func (s *Store) settings() Settings {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.set
}

// May reports whether a member may send files to the node itself: as with stock clients,
// one of the same user where neither is tagged, or one to whom the policy grants it.
func May(nm *mesh.Netmap, from *mesh.Node) bool {
	if nm == nil || from.Unsigned || !slices.Contains(nm.Self.Caps, mesh.CapSharing) {
		return false
	}
	own := from.User == nm.Self.User && len(from.Tags)+len(nm.Self.Tags) == 0
	return own || nm.Granted(from, mesh.CapSend)
}

// target reports whether a member takes files from here, as far as can be told before it
// is asked, and is there to.
func target(nm *mesh.Netmap, to *mesh.Node) bool {
	own := to.User == nm.Self.User && len(to.Tags) == 0
	return to.PeerAPI4+to.PeerAPI6 != 0 && (to.Online == nil || *to.Online) && (own || nm.Granted(to, mesh.CapTarget))
}

// Show is what there is and what is under way. Who may use it sees drop.from and the
// address beside it.
func (s *Store) Show() status.Drop {
	set := s.settings()
	d := status.Drop{
		Folder: set.Folder, Quota: set.Quota, KeepFree: set.KeepFree,
		Files: []status.DropFile{}, Transfers: s.transfers(), Targets: []string{}, From: []string{},
	}
	if nm := s.cfg.Netmap(); nm != nil {
		for i := range nm.Peers {
			if target(nm, &nm.Peers[i]) {
				d.Targets = append(d.Targets, plain(nm.Peers[i].Name))
			}
		}
	}
	p, err := s.open()
	if err != nil {
		d.Missing = err.Error()
		return d
	}
	defer p.Close()
	d.Free, _ = p.free()
	if set.Folder == "" || set.Quota > 0 {
		all, err := p.list()
		if err != nil {
			d.Missing = err.Error()
		}
		for _, f := range all {
			d.Used += f.size
			if !f.part && set.Folder == "" {
				d.Files = append(d.Files, status.DropFile{Name: f.name, Size: f.size, From: p.sender(f.name), At: f.at})
			}
		}
	}
	if set.Folder != "" {
		s.mu.Lock()
		d.Files = append(d.Files, s.arrivals...)
		s.mu.Unlock()
		slices.Reverse(d.Files)
	}
	return d
}

// arrived remembers a file.
func (s *Store) arrived(f status.DropFile) {
	s.mu.Lock()
	s.arrivals = append(s.arrivals, f)
	if over := len(s.arrivals) - mostArrivals; over > 0 {
		s.arrivals = slices.Delete(s.arrivals, 0, over)
	}
	s.mu.Unlock()
}

func plain(name string) string { return strings.TrimSuffix(name, ".") }
