package front

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// life is how long a certificate of ours is good; after two thirds there is another.
const life = 7 * 24 * time.Hour

var errOther = errors.New("nobody here has that name")

// mostCerts bounds the certificates that are kept.
const mostCerts = 512

// certs makes a certificate for what is called, when it is called first, and another when
// it is old.
type certs struct {
	leaf    func([]string, time.Duration) (*tls.Certificate, error)
	now     func() time.Time
	trouble func(string)

	mu   sync.Mutex // guards all below, and has one be made at a time
	have map[string]kept
	told string
}

type kept struct {
	cert *tls.Certificate
	made time.Time
}

// certificate is that of whom a connection is for. Who calls him by a name that is another's
// gets none; who calls him by his address, says no name (RFC 6066, 3).
func (s *Server) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	c := hello.Conn.(*conn)
	names := s.now.Load().Names.all()
	if c.site != nil {
		names = c.site.Names
	}
	name := strings.TrimSuffix(strings.ToLower(hello.ServerName), ".")
	if name != "" && !slices.Contains(names, name) {
		return nil, errOther
	}
	return s.certs.of(names)
}

func (c *certs) of(names []string) (*tls.Certificate, error) {
	key := strings.Join(names, " ")
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if k, ok := c.have[key]; ok && !now.Before(k.made) && now.Sub(k.made) < life*2/3 {
		return k.cert, nil
	}
	cert, err := c.leaf(slices.Clone(names), life)
	c.tell(names, err)
	if err != nil {
		return nil, err
	}
	if len(c.have) >= mostCerts {
		clear(c.have)
	}
	c.have[key] = kept{cert, now}
	return cert, nil
}

// tell says what is wrong, once; c.mu is held.
func (c *certs) tell(names []string, err error) {
	text := ""
	if err != nil {
		text = fmt.Sprintf("There is no certificate for %s: %v.", strings.Join(names, ", "), err)
	}
	if text != c.told {
		c.told = text
		c.trouble(text)
	}
}
