// Package xtest is an issuer of tokens for tests: it serves a real key set over real HTTP or HTTPS and signs real
// tokens, those that a good issuer makes and those that none would.
package xtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Audience is what the tokens of this package are for, unless a test says otherwise.
const Audience = "https://bulla.test/broker"

// Issuer is a running issuer.
type Issuer struct {
	URL    string // of the issuer, as in iss
	JWKS   string // address of the key set
	CAFile string // of an https server; "": http
	Kid    string

	mu     sync.Mutex               // guards what follows
	keys   map[string]crypto.Signer // in the set
	gone   map[string]crypto.Signer // not any more, and it goes on to sign with them
	answer http.HandlerFunc         // nil: the key set
	asked  int
}

// New starts an issuer with a P-256 key, over http on loopback.
func New(t testing.TB) *Issuer {
	t.Helper()
	i := newIssuer(t)
	i.serve(t, httptest.NewServer)
	return i
}

// NewTLS is New over https, with a certificate that CAFile vouches for.
func NewTLS(t testing.TB) *Issuer {
	t.Helper()
	i := newIssuer(t)
	server := i.serve(t, httptest.NewTLSServer)
	i.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(i.CAFile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return i
}

func newIssuer(t testing.TB) *Issuer {
	i := &Issuer{keys: map[string]crypto.Signer{}, gone: map[string]crypto.Signer{}}
	i.Kid = i.Add(t, "k1", NewKey(t, "ES256"))
	return i
}

func (i *Issuer) serve(t testing.TB, start func(http.Handler) *httptest.Server) *httptest.Server {
	server := start(http.HandlerFunc(i.handle))
	t.Cleanup(server.Close)
	i.URL, i.JWKS = server.URL, server.URL+"/keys"
	return server
}

// NewKey makes a key for an algorithm.
func NewKey(t testing.TB, alg string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch alg {
	case "ES256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "RS256":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "EdDSA":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil || key == nil {
		t.Fatalf("key for %s: %v", alg, err)
	}
	return key
}

// Add adds a key to the set and returns its id.
func (i *Issuer) Add(t testing.TB, kid string, key crypto.Signer) string {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys[kid] = key
	return kid
}

// Remove takes a key out of the set.
func (i *Issuer) Remove(kid string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.gone[kid] = i.keys[kid]
	delete(i.keys, kid)
}

// Answer makes the issuer answer with h; nil brings the key set back.
func (i *Issuer) Answer(h http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.answer = h
}

// Asked is how often the key set was asked for.
func (i *Issuer) Asked() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

func (i *Issuer) handle(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.asked++
	answer := i.answer
	i.mu.Unlock()
	if answer != nil {
		answer(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(i.KeySet())
}

// KeySet is the key set, as the issuer serves it.
func (i *Issuer) KeySet() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	var set jose.JSONWebKeySet
	for kid, key := range i.keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: key.Public(), KeyID: kid, Use: "sig"})
	}
	text, err := json.Marshal(set)
	if err != nil {
		panic("xtest: internal error: " + err.Error())
	}
	return text
}

// Claims are the claims of a token.
type Claims map[string]any

// Token signs a token for a subject that lives for five minutes, with changes; a nil value takes a claim away.
func (i *Issuer) Token(t testing.TB, subject string, changes Claims) string {
	t.Helper()
	now := time.Now()
	return i.Sign(t, Claims{"alg": "ES256", "kid": i.Kid, "typ": "JWT"}, changed(Claims{
		"iss": i.URL, "sub": subject, "aud": Audience, "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
	}, changes))
}

// Event signs a security event token with one event about a subject, with changes.
func (i *Issuer) Event(t testing.TB, uri string, event, subject, changes Claims) string {
	t.Helper()
	id := make([]byte, 16)
	_, _ = rand.Read(id) // it never fails
	return i.Sign(t, Claims{"alg": "ES256", "kid": i.Kid, "typ": "secevent+jwt"}, changed(Claims{
		"iss": i.URL, "aud": Audience, "iat": time.Now().Unix(), "jti": fmt.Sprintf("%x", id), "sub_id": subject, "events": Claims{uri: event},
	}, changes))
}

func changed(c, changes Claims) Claims {
	for name, value := range changes {
		if value == nil {
			delete(c, name)
			continue
		}
		c[name] = value
	}
	return c
}

// Sign signs whatever header and claims say, with the key of the header's kid.
func (i *Issuer) Sign(t testing.TB, header, claims any) string {
	t.Helper()
	h, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	c, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	var named struct{ Kid string }
	if err := json.Unmarshal(h, &named); err != nil {
		t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	key := i.keys[named.Kid]
	if key == nil {
		key = i.gone[named.Kid]
	}
	if key == nil {
		key = i.keys[i.Kid]
	}
	return SignText(t, key, string(h), string(c))
}

// SignText signs two texts as a compact token, whatever they are.
func SignText(t testing.TB, key crypto.Signer, header, claims string) string {
	t.Helper()
	input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	digest := sha256.Sum256([]byte(input))
	var signature []byte
	var err error
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		r, s, failed := ecdsa.Sign(rand.Reader, k, digest[:])
		if failed != nil {
			t.Fatal(failed)
		}
		signature = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	case *rsa.PrivateKey:
		signature, err = rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, digest[:])
	case ed25519.PrivateKey:
		signature = ed25519.Sign(k, []byte(input))
	}
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// ServerCertificate writes a certificate for 127.0.0.1 and its key into dir, and returns both paths and the pool that
// vouches for it.
func ServerCertificate(t testing.TB, dir string) (certFile, keyFile string, roots *x509.CertPool) {
	t.Helper()
	key := NewKey(t, "ES256")
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile, roots = filepath.Join(dir, "server.pem"), filepath.Join(dir, "server-key.pem"), x509.NewCertPool()
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots.AddCert(certificate)
	return certFile, keyFile, roots
}

// Read returns the claims of a token, unverified.
func Read(t testing.TB, compact string) Claims {
	t.Helper()
	parts := strings.Split(compact, ".")
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var out Claims
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// Key is the key that the issuer signs with.
func (i *Issuer) Key() crypto.Signer {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keys[i.Kid]
}

// Now is the time as a claim.
func Now() string { return strconv.FormatInt(time.Now().Unix(), 10) }
