package control

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// plain says in one sentence what went wrong with the coordinator called host,
// and what can be done.
func plain(err error, host string) string {
	for _, f := range []func(error, string) string{plainCert, plainNet, plainServer} {
		if s := f(err, host); s != "" {
			return s
		}
	}
	return fmt.Sprintf("The connection to the coordinator %s failed (%v); it is tried again.", host, err)
}

func plainCert(err error, host string) string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return fmt.Sprintf("The TLS certificate of %s is signed by nobody this router trusts; give the coordinator a public certificate or use its http:// address.", host)
	case errors.As(err, &name):
		return fmt.Sprintf("The TLS certificate of %s was made for another name; check the coordinator's address.", host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf("The TLS certificate of %s is expired or not yet valid; renew it, or check this router's clock.", host)
	case errors.As(err, &invalid):
		return fmt.Sprintf("The TLS certificate of %s is not valid (%v); check the coordinator's certificate.", host, invalid)
	}
	return ""
}

func plainNet(err error, host string) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Sprintf("The host %s is unknown; check the coordinator's address and this router's DNS.", host)
	case errors.As(err, &dns):
		return fmt.Sprintf("The name %s could not be looked up (%v); check this router's DNS.", host, dns.Err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("The coordinator %s refused the connection; check that it runs and that the port is right.", host)
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return fmt.Sprintf("The coordinator %s cannot be reached from here; check this router's internet connection.", host)
	case errors.Is(err, errSilence):
		return fmt.Sprintf("The coordinator %s has been silent for two minutes; the connection is opened anew.", host)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		return fmt.Sprintf("The coordinator %s did not answer in time; check this router's internet connection.", host)
	}
	return ""
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func plainServer(err error, host string) string {
	var refused *refusedError
	var changed *keyChangedError
	var status *statusError
	switch {
	case errors.As(err, &refused):
		return fmt.Sprintf("The coordinator %s refuses this node (%s); give a valid key with `subnetd up --auth-key`, or log in.", host, refused.text)
	case errors.As(err, &changed):
		return fmt.Sprintf("The coordinator %s shows another key (%v) than before (%v): it was set up anew, or somebody stands in between; if it was set up anew, run `subnetd logout` and `subnetd up`.", host, changed.got, changed.want)
	case errors.Is(err, errSave):
		return fmt.Sprintf("The identity of this node could not be saved (%v), so nothing is sent to %s; make room on the disk.", err, host)
	case errors.Is(err, errNoCoordinator):
		return fmt.Sprintf("At %s something answers, but no coordinator of this kind; check the address.", host)
	case errors.Is(err, errClosedEarly):
		return fmt.Sprintf("The coordinator %s closed the connection before its first answer; it may be too new or too old for this program (capability version %d).", host, capVersion)
	case errors.Is(err, errHandshake):
		return fmt.Sprintf("The encrypted handshake with the coordinator %s failed; if this stays, its key has changed or something stands in between.", host)
	case errors.As(err, &status):
		return fmt.Sprintf("At %s: %v; check the address and the coordinator's log.", host, status)
	case errors.Is(err, errLocked):
		return fmt.Sprintf("The network of %s has tailnet lock on, which this program cannot sign for; switch it off or use another network.", host)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Sprintf("The coordinator %s ended the connection; it is opened anew.", host)
	}
	return ""
}
