// Package secure speaks TLS to backends as StackStorm's clients do, and
// distinguishes a server that cannot be asked with the given settings from one
// that does not work.
package secure

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"
)

// ContextDialer is what connections are made with: a host.Host, or a net.Dialer.
type ContextDialer interface {
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
}

// UnaskableError is a server that answers, but cannot be asked with the given
// settings (TLS on one side only, a certificate that is not trusted). It works,
// and a restart would change nothing.
type UnaskableError struct{ Why string }

// Error is the reason.
func (e *UnaskableError) Error() string { return e.Why }

func unaskable(format string, args ...any) error {
	return &UnaskableError{fmt.Sprintf(format, args...)}
}

// Unaskable says whether an error is an UnaskableError.
func Unaskable(err error) bool {
	var u *UnaskableError
	return errors.As(err, &u)
}

// TLS is how a client speaks TLS. A nil one speaks none. Files are read for
// each connection: a certificate that was renewed counts at once.
type TLS struct {
	Read      func(ctx context.Context, path string) ([]byte, error)
	CA        string // authorities to trust; empty: those of the system
	Cert, Key string // the client's; empty: none. Key may be in the file of Cert
	Encrypted bool   // the key has a password, which is not supported
	Verify    bool   // the server's certificate
	Hostname  bool   // and that it is for the name that is dialed
	Name      string // or for this one
}

// config is that of the library for one server.
func (t *TLS) config(ctx context.Context, name string) (*tls.Config, error) {
	c := &tls.Config{InsecureSkipVerify: !t.Verify || !t.Hostname}
	if t.Hostname {
		c.ServerName = cmp.Or(t.Name, name)
	}
	if t.CA != "" {
		data, err := t.Read(ctx, t.CA)
		if err != nil {
			return nil, unaskable("the file of authorities cannot be read: %v", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(data) {
			return nil, unaskable("%s holds no certificate in PEM form", t.CA)
		}
	}
	if t.Verify && !t.Hostname {
		c.VerifyConnection = func(s tls.ConnectionState) error { return chain(s, c.RootCAs) }
	}
	if t.Cert == "" {
		return c, nil
	}
	if t.Encrypted {
		return nil, unaskable("the key in %s has a password, and only keys without one are read", t.Cert)
	}
	cert, err := t.Read(ctx, t.Cert)
	key := cert
	if err == nil && t.Key != "" {
		key, err = t.Read(ctx, t.Key)
	}
	if err != nil {
		return nil, unaskable("the client's certificate cannot be read: %v", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, unaskable("the client's certificate in %s is of no use: %v", t.Cert, err)
	}
	c.Certificates = []tls.Certificate{pair}
	return c, nil
}

// chain verifies a certificate, whatever name it is for.
func chain(s tls.ConnectionState, roots *x509.CertPool) error {
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between})
	if err != nil {
		err = &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: err}
	}
	return err
}

// Dial connects to host:port, and makes the TLS handshake unless t is nil.
func (t *TLS) Dial(ctx context.Context, d ContextDialer, addr string) (net.Conn, error) {
	var c *tls.Config
	if t != nil {
		name, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		if c, err = t.config(ctx, name); err != nil {
			return nil, err
		}
	}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil || t == nil {
		return conn, err
	}
	secured := tls.Client(conn, c)
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, Explain(err)
	}
	return secured, nil
}

// Dialer dials so, for libraries that have a dialer of their own.
func (t *TLS) Dialer(d ContextDialer) ContextDialer { return &dialer{t, d} }

type dialer struct {
	tls *TLS
	d   ContextDialer
}

func (d *dialer) DialContext(ctx context.Context, _, addr string) (net.Conn, error) {
	return d.tls.Dial(ctx, d.d, addr)
}

// Explain makes an UnaskableError of what the two sides of a connection do not
// agree on. Any other error it returns as it is.
func Explain(err error) error {
	var header tls.RecordHeaderError
	var untrusted *tls.CertificateVerificationError
	var said *net.OpError
	switch {
	case err == nil || Unaskable(err):
	case errors.As(err, &header):
		return unaskable("it speaks no TLS, and the settings ask for it")
	case errors.As(err, &untrusted):
		return unaskable("its certificate is not trusted: %v", untrusted.Err)
	case errors.As(err, &said) && (said.Op == "remote error" || said.Op == "local error"): // an alert (crypto/tls)
		return unaskable("it does not agree on TLS: %v", said.Err)
	case strings.HasPrefix(err.Error(), "tls: "):
		return unaskable("it does not agree on TLS: %v", err)
	}
	return err
}

// ExplainAnswer is Explain for the first bytes of an answer to a question
// without TLS: they may be a record of TLS (RFC 8446, section 5.1).
func ExplainAnswer(answer []byte) error {
	if len(answer) >= 2 && (answer[0] == 21 || answer[0] == 22) && answer[1] == 3 {
		return unaskable("it speaks TLS, and the settings ask without")
	}
	return nil
}

// ExplainEnd is Explain for a server that ended a connection without TLS: it may
// speak TLS. The error of a server that is silent or refuses stays as it is.
func ExplainEnd(ctx context.Context, d ContextDialer, addr string, err error) error {
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.ECONNRESET) &&
		!errors.Is(err, syscall.EPIPE) {
		return err
	}
	if conn, other := (&TLS{}).Dial(ctx, d, addr); other == nil {
		_ = conn.Close()
	} else if u := (*UnaskableError)(nil); !errors.As(other, &u) || u.Why == Explain(tls.RecordHeaderError{}).Error() {
		return err
	}
	return unaskable("it speaks TLS, and the settings ask without")
}

// askTime is what one question may take.
const askTime = 5 * time.Second

// Answers says whether a server answers a question, with TLS or without: one
// that wants another certificate, or a client's, is alive as well. So it needs
// no settings.
func Answers(ctx context.Context, d ContextDialer, addr string, ask func(net.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	asked := func(t *TLS) error {
		conn, err := t.Dial(ctx, d, addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		end, _ := ctx.Deadline()
		if err := conn.SetDeadline(end); err != nil {
			return err
		}
		return Explain(ask(conn))
	}
	err := asked(nil)
	if err = ExplainEnd(ctx, d, addr, err); !Unaskable(err) {
		return err
	}
	if err := asked(&TLS{}); err != nil && !Unaskable(err) {
		return err
	}
	return nil
}
