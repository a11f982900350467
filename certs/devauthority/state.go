package devauthority

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/bulla-project/bulla/internal/durable"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	stateFile    = "authority.json"
	lockFile     = "lock"
	stateVersion = 1
	stateWarning = "DEVELOPMENT KEYS, NOT FOR PRODUCTION: whoever reads this file is everybody in this trust domain"

	maxStateSize    = 1 << 20 // bytes
	maxGenerations  = 64
	caLifetime      = 10 * 365 * 24 * time.Hour
	backdate        = 10 * time.Second // of SVIDs, for clocks that differ a little; the same as SPIRE's
	caBackdate      = time.Hour
	authorityIDSize = 10 // bytes of the SHA-256 of the CA's public key
)

// generation is one authority: a CA and a JWT key under one name. Its fields never change; a changed one is another value.
type generation struct {
	id        string // also the kid of jwtKey
	ca        *x509.Certificate
	caKey     *ecdsa.PrivateKey
	jwtKey    *ecdsa.PrivateKey
	signsFrom time.Time // published before, not used for signing before
	tainted   bool      // no longer used for signing
}

// keys is what is kept on disk.
type keys struct {
	trustDomain spiffeid.TrustDomain
	generations []*generation // the newest last, never empty
	device      *ecdsa.PrivateKey
}

// storedKeys is the file's form: JSON in exactly the bytes that encodeKeys writes, keys as PKCS #8.
type storedKeys struct {
	Warning     string             `json:"warning"`
	Version     int                `json:"version"`
	TrustDomain string             `json:"trust_domain"`
	Generations []storedGeneration `json:"generations"`
	DeviceKey   []byte             `json:"device_key"`
}

type storedGeneration struct {
	ID            string    `json:"id"`
	CACertificate []byte    `json:"ca_certificate"`
	CAKey         []byte    `json:"ca_key"`
	JWTKey        []byte    `json:"jwt_key"`
	SignsFrom     time.Time `json:"signs_from"`
	Tainted       bool      `json:"tainted"`
}

// lockDir makes the directory if needed and takes it for this process; the lock goes with the returned file.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%w: %s is in use by another process", ErrState, dir)
	}
	return f, nil
}

// loadKeys reads the keys in dir, or makes and stores new ones when there are none yet.
func loadKeys(dir string, td spiffeid.TrustDomain, now time.Time) (*keys, error) {
	path := filepath.Join(dir, stateFile)
	if err := durable.RemoveTemps(path); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	data, err := readState(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newKeys(dir, td, now)
	}
	if err != nil {
		return nil, err
	}
	k, err := decodeKeys(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrState, path, err)
	}
	if k.trustDomain != td {
		return nil, fmt.Errorf("%w: %s belongs to the trust domain %q, not to %q: use another directory", ErrState, dir, k.trustDomain.Name(), td.Name())
	}
	if newest := k.generations[len(k.generations)-1]; !now.Before(newest.ca.NotAfter) {
		return nil, fmt.Errorf("%w: the authority in %s ended at %s: remove the directory to begin anew", ErrState, path, newest.ca.NotAfter.UTC().Format(time.RFC3339))
	}
	return k, nil
}

func readState(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	defer func() { _ = f.Close() }() // opened for reading: nothing to lose
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s holds private keys and is open to other users: chmod 0600", ErrState, path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxStateSize+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	return data, nil
}

func newKeys(dir string, td spiffeid.TrustDomain, now time.Time) (*keys, error) {
	device, err := newKey()
	if err != nil {
		return nil, err
	}
	first, err := newGeneration(td, now, now)
	if err != nil {
		return nil, err
	}
	k := &keys{trustDomain: td, generations: []*generation{first}, device: device}
	return k, k.store(dir)
}

// store writes the keys durably: once it returned nil, a restart finds them.
func (k *keys) store(dir string) error {
	data, err := encodeKeys(k)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(dir, stateFile), data, 0o600); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return nil
}

func encodeKeys(k *keys) ([]byte, error) {
	device, err := x509.MarshalPKCS8PrivateKey(k.device)
	if err != nil {
		return nil, fmt.Errorf("%w: encode the device key: %w", ErrState, err)
	}
	out := storedKeys{Warning: stateWarning, Version: stateVersion, TrustDomain: k.trustDomain.Name(), DeviceKey: device}
	for _, g := range k.generations {
		caKey, caErr := x509.MarshalPKCS8PrivateKey(g.caKey)
		jwtKey, jwtErr := x509.MarshalPKCS8PrivateKey(g.jwtKey)
		if err := errors.Join(caErr, jwtErr); err != nil {
			return nil, fmt.Errorf("%w: encode authority %s: %w", ErrState, g.id, err)
		}
		out.Generations = append(out.Generations, storedGeneration{
			ID: g.id, CACertificate: g.ca.Raw, CAKey: caKey, JWTKey: jwtKey, SignsFrom: g.signsFrom.UTC(), Tainted: g.tainted,
		})
	}
	data, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("%w: encode: %w", ErrState, err)
	}
	return append(data, '\n'), nil
}

// decodeKeys reads what encodeKeys wrote, and nothing else.
func decodeKeys(data []byte) (*keys, error) {
	if len(data) > maxStateSize {
		return nil, fmt.Errorf("larger than %d bytes", maxStateSize)
	}
	var in storedKeys
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		return nil, fmt.Errorf("damaged: %w", err)
	}
	if in.Version != stateVersion {
		return nil, fmt.Errorf("version %d, this program knows %d", in.Version, stateVersion)
	}
	if len(in.Generations) == 0 || len(in.Generations) > maxGenerations {
		return nil, fmt.Errorf("damaged: %d authorities", len(in.Generations))
	}
	td, err := spiffeid.TrustDomainFromString(in.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("damaged: trust domain: %w", err)
	}
	device, err := parseKey(in.DeviceKey)
	if err != nil {
		return nil, fmt.Errorf("damaged: device key: %w", err)
	}
	k := &keys{trustDomain: td, device: device}
	for i, stored := range in.Generations {
		g, err := stored.parse()
		if err != nil {
			return nil, fmt.Errorf("damaged: authority %d: %w", i+1, err)
		}
		k.generations = append(k.generations, g)
	}
	again, err := encodeKeys(k)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, data) {
		return nil, errors.New("damaged: not in the form in which it was written")
	}
	return k, nil
}

func (stored storedGeneration) parse() (*generation, error) {
	ca, err := x509.ParseCertificate(stored.CACertificate)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	caKey, err := parseKey(stored.CAKey)
	if err != nil {
		return nil, fmt.Errorf("CA key: %w", err)
	}
	jwtKey, err := parseKey(stored.JWTKey)
	if err != nil {
		return nil, fmt.Errorf("JWT key: %w", err)
	}
	if public, ok := ca.PublicKey.(*ecdsa.PublicKey); !ok || !public.Equal(caKey.Public()) {
		return nil, errors.New("the CA key is not that of the certificate")
	}
	if id, err := authorityID(caKey); err != nil || id != stored.ID {
		return nil, errors.New("the name is not that of the CA key")
	}
	return &generation{id: stored.ID, ca: ca, caKey: caKey, jwtKey: jwtKey, signsFrom: stored.SignsFrom, tainted: stored.Tainted}, nil
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("devauthority: make a key: %w", err)
	}
	return key, nil
}

func parseKey(der []byte) (*ecdsa.PrivateKey, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("can't be read")
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("is not a P-256 key")
	}
	return key, nil
}

func authorityID(key *ecdsa.PrivateKey) (string, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return "", fmt.Errorf("devauthority: name a key: %w", err)
	}
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:authorityIDSize]), nil
}

// newGeneration makes a self-signed CA and a JWT key.
func newGeneration(td spiffeid.TrustDomain, now, signsFrom time.Time) (*generation, error) {
	caKey, err := newKey()
	if err != nil {
		return nil, err
	}
	jwtKey, err := newKey()
	if err != nil {
		return nil, err
	}
	id, err := authorityID(caKey)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// The name differs by generation, so that path building never mistakes one for another.
		Subject:               pkix.Name{Organization: []string{"DEVELOPMENT ONLY"}, CommonName: "bulla development authority", SerialNumber: id},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: td.Name()}},
		NotBefore:             now.Add(-caBackdate),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, caKey.Public(), caKey)
	if err != nil {
		return nil, fmt.Errorf("devauthority: make a CA: %w", err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("devauthority: make a CA: %w", err)
	}
	return &generation{id: id, ca: ca, caKey: caKey, jwtKey: jwtKey, signsFrom: signsFrom}, nil
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("devauthority: make a serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil // never 0
}
