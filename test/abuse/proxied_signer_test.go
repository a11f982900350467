package abuse

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/test/rig"
)

// A server whose TLS key never leaves the broker: certificate and handshake are signed there.
func TestSignerServesTLS(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	c := r.Client("workload")
	for _, kind := range []string{"ecdsa-p256", "ed25519"} {
		r.Generate("demo/"+kind, "standard", kind)
		s, err := c.Get(t.Context(), "demo/"+kind)
		if err != nil {
			t.Fatal(err)
		}
		signer, err := s.Signer(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"shop.example"}, IsCA: true, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(leaf)
		left, right := net.Pipe()
		server := tls.Server(left, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: signer}}, MinVersion: tls.VersionTLS13})
		served := make(chan error, 1)
		go func() { served <- server.HandshakeContext(t.Context()) }()
		peer := tls.Client(right, &tls.Config{RootCAs: roots, ServerName: "shop.example", MinVersion: tls.VersionTLS13})
		if err := peer.HandshakeContext(t.Context()); err != nil {
			t.Errorf("%s: the client: %v", kind, err)
		}
		if err := <-served; err != nil {
			t.Errorf("%s: the server: %v", kind, err)
		}
		_, _ = left.Close(), right.Close()

		digest := sha256.Sum256([]byte("message"))
		_, isEd := signer.Public().(ed25519.PublicKey)
		if _, err := signer.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, client.ErrInvalid) {
			t.Errorf("%s signs a digest: %v", kind, err)
		}
		if sig, err := signer.Sign(nil, digest[:], crypto.Hash(0)); (err == nil) != isEd || isEd && !ed25519.Verify(signer.Public().(ed25519.PublicKey), digest[:], sig) {
			t.Errorf("%s: %v", kind, err)
		}
		if _, err := signer.SignMessage(nil, []byte("m"), crypto.SHA512); !errors.Is(err, client.ErrInvalid) {
			t.Errorf("%s signs with SHA-512: %v", kind, err)
		}
	}
	r.Check()
}
