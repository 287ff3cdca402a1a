package redistest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// certificates are the files that a server with TLS reads and what its clients need. They are
// made for one server and last for a day, so no key is kept in the repository.
type certificates struct {
	caFile, serverCertFile, serverKeyFile string

	pool   *x509.CertPool
	client tls.Certificate
}

// newCertificates makes an authority and one certificate each for the server and a client,
// and writes what the server reads into dir.
func newCertificates(dir string) (*certificates, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := certificate(1, "redistest authority")
	ca.IsCA = true
	ca.BasicConstraintsValid = true
	ca.KeyUsage = x509.KeyUsageCertSign
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return nil, fmt.Errorf("certificate of the authority: %w", err)
	}
	if ca, err = x509.ParseCertificate(caDER); err != nil {
		return nil, err
	}
	// issue returns the certificate and its key in PEM.
	issue := func(serial int64, name string) (cert, key []byte, err error) {
		leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		leaf := certificate(serial, name)
		leaf.DNSNames = []string{"localhost"}
		leaf.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
		leaf.KeyUsage = x509.KeyUsageDigitalSignature
		leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &leafKey.PublicKey, caKey)
		if err != nil {
			return nil, nil, fmt.Errorf("certificate of the %s: %w", name, err)
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
		if err != nil {
			return nil, nil, err
		}
		return pemBlock("CERTIFICATE", leafDER), pemBlock("PRIVATE KEY", keyDER), nil
	}
	serverCert, serverKey, err := issue(2, "redistest server")
	if err != nil {
		return nil, err
	}
	clientCert, clientKey, err := issue(3, "redistest client")
	if err != nil {
		return nil, err
	}

	c := &certificates{
		caFile:         filepath.Join(dir, "ca.crt"),
		serverCertFile: filepath.Join(dir, "server.crt"),
		serverKeyFile:  filepath.Join(dir, "server.key"),
		pool:           x509.NewCertPool(),
	}
	c.pool.AddCert(ca)
	if c.client, err = tls.X509KeyPair(clientCert, clientKey); err != nil {
		return nil, err
	}
	for file, text := range map[string][]byte{
		c.caFile:         pemBlock("CERTIFICATE", caDER),
		c.serverCertFile: serverCert,
		c.serverKeyFile:  serverKey,
	} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func certificate(serial int64, name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(24 * time.Hour),
	}
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// clientConfig trusts the authority and shows the client's certificate. The server's
// certificate is valid for localhost and the loopback addresses.
func (c *certificates) clientConfig() *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		RootCAs:      c.pool,
		Certificates: []tls.Certificate{c.client},
	}
}
