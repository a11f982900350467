package certs

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	maxFileSize     = 1 << 20 // bytes of a PEM file
	maxCertificates = 256     // in a PEM file
)

// pemFiles is where the three files are and what was read from them last. It belongs to one goroutine at a time.
type pemFiles struct {
	cert, key, bundle string
	seen              [3][sha256.Size]byte
	verdict           error // on what was seen
}

// openFiles reads the files once, strictly, and then keeps looking at them.
func (s *Source) openFiles(background context.Context, cfg Config) error {
	files := &pemFiles{cert: cfg.CertFile, key: cfg.KeyFile, bundle: cfg.BundleFile}
	data, err := files.read()
	if err != nil {
		return err
	}
	svid, err := parsePair(files, data)
	if err != nil {
		return err
	}
	for td := range s.further {
		if !svid.ID.MemberOf(td) {
			return fmt.Errorf("%w: trust_domains names %q, whose bundle only a Workload API could deliver: %s holds that of %q", ErrConfig, td.Name(), files.bundle, svid.ID.TrustDomain().Name())
		}
	}
	s.own = svid.ID.TrustDomain()
	bundle, err := parseBundle(files, data.bundle, s.own)
	if err != nil {
		return err
	}
	if _, err := Verify(svid.Certificates, bundle, s.now()); err != nil {
		return fmt.Errorf("%s with %s: %w", files.cert, files.bundle, err)
	}
	s.warnOfOpenKey(files.key)
	s.adoptFiles(svid, bundle)
	files.seen = data.digests()

	interval := cfg.PollInterval
	if interval == 0 {
		interval = defaultPollInterval
	}
	s.tasks.Go(func() { s.poll(background, files, interval) })
	return nil
}

func (s *Source) warnOfOpenKey(path string) {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		s.log.Warn("private key file is open to other users: chmod 0600", "path", path, "mode", info.Mode().Perm().String())
	}
}

// poll compares contents, not times: a time can stand still over a change, and three small files cost nothing to read.
func (s *Source) poll(background context.Context, files *pemFiles, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.setFault(s.refreshFiles(files))
		case <-background.Done():
			return
		}
	}
}

// refreshFiles adopts what changed. Bundle and pair stand alone: a bundle that drops an authority counts at once, even
// while the new pair is still being written; a key and a certificate count together or not at all.
func (s *Source) refreshFiles(files *pemFiles) error {
	data, err := files.read()
	if err != nil {
		return err
	}
	if data.digests() == files.seen {
		return files.verdict
	}
	bundle, bundleErr := parseBundle(files, data.bundle, s.own)
	svid, err := parsePair(files, data)
	if err == nil {
		err = s.adoptable(svid)
	}
	if err != nil {
		svid = nil
	}
	s.adoptFiles(svid, bundle)
	if err == nil {
		err = bundleErr
	}
	if err == nil {
		_, err = Verify(svid.Certificates, bundle, s.now())
	}
	files.seen, files.verdict = data.digests(), err
	return err
}

// adoptFiles puts the non-nil parts in force.
func (s *Source) adoptFiles(svid *x509svid.SVID, bundle *x509bundle.Bundle) {
	if svid == nil && bundle == nil {
		return
	}
	s.update(func(st *state) {
		if svid != nil {
			st.svid, st.certificate = svid, tlsCertificate(svid)
		}
		if bundle != nil {
			st.x509 = map[spiffeid.TrustDomain]*x509bundle.Bundle{s.own: bundle}
		}
	})
}

// contents are the bytes of the three files.
type contents struct{ cert, key, bundle []byte }

func (c contents) digests() [3][sha256.Size]byte {
	return [3][sha256.Size]byte{sha256.Sum256(c.cert), sha256.Sum256(c.key), sha256.Sum256(c.bundle)}
}

func (f *pemFiles) read() (contents, error) {
	var c contents
	for _, file := range []struct {
		path string
		into *[]byte
	}{{f.cert, &c.cert}, {f.key, &c.key}, {f.bundle, &c.bundle}} {
		data, err := readFile(file.path)
		if err != nil {
			return contents{}, err
		}
		*file.into = data
	}
	return c, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	defer func() { _ = f.Close() }() // opened for reading: nothing to lose
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	case len(data) > maxFileSize:
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", ErrConfig, path, maxFileSize)
	}
	return data, nil
}

// parsePair reads an SVID and its key, and makes sure that they belong together.
func parsePair(files *pemFiles, data contents) (*x509svid.SVID, error) {
	chain, err := parseCertificates(data.cert)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %s", ErrConfig, files.cert, err.Error())
	}
	key, err := parsePrivateKey(data.key)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %s", ErrConfig, files.key, err.Error())
	}
	id, err := leafID(chain)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %s", ErrConfig, files.cert, err.Error())
	}
	public, ok := chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(key.Public()) {
		return nil, fmt.Errorf("%w: the key in %s is not that of the certificate in %s", ErrConfig, files.key, files.cert)
	}
	return &x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key}, nil
}

func parseBundle(files *pemFiles, data []byte, td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	authorities, err := parseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %s", ErrConfig, files.bundle, err.Error())
	}
	for i, c := range authorities {
		if !c.BasicConstraintsValid || !c.IsCA {
			return nil, fmt.Errorf("%w: %s: certificate %d is not that of an authority", ErrConfig, files.bundle, i+1)
		}
	}
	return x509bundle.FromX509Authorities(td, authorities), nil
}

// pemBlocks reads blocks one after the other. Text between them is allowed (tools write comments there), but a block
// that can't be decoded is an error: skipping it could lose an authority in silence.
func pemBlocks(data []byte) ([]*pem.Block, error) {
	if len(data) > maxFileSize {
		return nil, fmt.Errorf("larger than %d bytes", maxFileSize)
	}
	begun := bytes.Count(data, []byte("-----BEGIN"))
	var blocks []*pem.Block
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		blocks, data = append(blocks, block), rest
	}
	if begun != len(blocks) {
		return nil, fmt.Errorf("damaged PEM: %d blocks begin, %d can be read", begun, len(blocks))
	}
	return blocks, nil
}

func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	blocks, err := pemBlocks(data)
	switch {
	case err != nil:
		return nil, err
	case len(blocks) == 0:
		return nil, fmt.Errorf("no PEM certificate in it")
	case len(blocks) > maxCertificates:
		return nil, fmt.Errorf("%d certificates, the most is %d", len(blocks), maxCertificates)
	}
	var list []*x509.Certificate
	for i, block := range blocks {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %d is a %q, expected a CERTIFICATE", i+1, block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", i+1, err)
		}
		list = append(list, c)
	}
	return list, nil
}

func parsePrivateKey(data []byte) (crypto.Signer, error) {
	blocks, err := pemBlocks(data)
	switch {
	case err != nil:
		return nil, err
	case len(blocks) != 1:
		return nil, fmt.Errorf("%d PEM blocks, expected one private key", len(blocks))
	}
	var key any
	switch blocks[0].Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(blocks[0].Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(blocks[0].Bytes)
	default:
		return nil, fmt.Errorf("PEM block is a %q, expected an unencrypted PRIVATE KEY (PKCS #8)", blocks[0].Type)
	}
	if err != nil {
		return nil, fmt.Errorf("private key can't be read")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("private key of type %T can't sign", key)
	}
	return signer, nil
}
