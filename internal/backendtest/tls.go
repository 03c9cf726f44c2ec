package backendtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Certificates are an authority's, for 127.0.0.1 and a client, as files in PEM form.
type Certificates struct {
	CA         string // the authority
	Cert, Key  string // of 127.0.0.1
	Client     string // certificate and key in one file
	Other      string // an authority that has signed none of them
	WrongName  string // the certificate of another name, with Key
	serverPair tls.Certificate
	pool       *x509.CertPool
}

// NewCertificates makes them in dir.
func NewCertificates(t testing.TB, dir string) *Certificates {
	t.Helper()
	c := &Certificates{
		CA:        filepath.Join(dir, "ca.pem"),
		Cert:      filepath.Join(dir, "cert.pem"),
		Key:       filepath.Join(dir, "key.pem"),
		Client:    filepath.Join(dir, "client.pem"),
		Other:     filepath.Join(dir, "other.pem"),
		WrongName: filepath.Join(dir, "wrong.pem"),
		pool:      x509.NewCertPool(),
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	check(err)
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	write := func(path string, data ...[]byte) {
		t.Helper()
		var all []byte
		for _, d := range data {
			all = append(all, d...)
		}
		check(os.WriteFile(path, all, 0o600))
	}
	sign := func(name string, parent *x509.Certificate) (*x509.Certificate, []byte) {
		template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()),
			Subject:   pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true}
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = []net.IP{ip}
		} else {
			template.DNSNames = []string{name}
		}
		if parent == nil {
			parent, template.IsCA, template.KeyUsage = template, true, x509.KeyUsageCertSign
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, key)
		check(err)
		cert, err := x509.ParseCertificate(der)
		check(err)
		return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	authority, data := sign("authority.example", nil)
	c.pool.AddCert(authority)
	write(c.CA, data)
	_, data = sign("127.0.0.1", authority)
	write(c.Cert, data)
	write(c.Key, keyPEM)
	c.serverPair, err = tls.X509KeyPair(data, keyPEM)
	check(err)
	_, data = sign("client.example", authority)
	write(c.Client, data, keyPEM)
	_, data = sign("elsewhere.example", authority)
	write(c.WrongName, data)
	_, data = sign("another.example", nil)
	write(c.Other, data)
	return c
}

// Secured is a server that speaks TLS only, as mongod with net.tls.mode
// requireTLS, in front of one that does not: plain words it answers by hanging up.
func (c *Certificates) Secured(t testing.TB, to string, wantClient bool) (addr string) {
	t.Helper()
	config := &tls.Config{Certificates: []tls.Certificate{c.serverPair}, ClientCAs: c.pool}
	if wantClient {
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for conn := range open {
			_ = conn.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	serve := func(conn net.Conn) {
		defer conn.Close()
		mu.Lock()
		open[conn] = true
		mu.Unlock()
		if conn.(*tls.Conn).Handshake() != nil {
			return
		}
		server, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		all.Go(func() { _, _ = io.Copy(server, conn); _ = server.Close() })
		_, _ = io.Copy(conn, server)
	}
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { serve(conn) })
		}
	})
	return l.Addr().String()
}
