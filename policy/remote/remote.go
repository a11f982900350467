// Package remote fetches policy bundles from an OPA bundle server: GET over https with ETag, a tar archive under gzip
// with .signatures.json in it.
//
// It does not poll, and what it returns is not verified: who calls it decides when, and checks the signature with
// package policy. OPA's own downloader is not used, since it brings the modules of container registries and tracing
// with it, and bounds neither what it downloads nor what that unpacks to; the bundle is read and its signature checked
// by the same code as that of every other source.
package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/bulla-project/bulla/policy"
)

const (
	fetchTime = 30 * time.Second
	maxSecret = 4 << 10 // bytes of a file with a bearer token
	maxETag   = 256
)

// ErrConfig says that a source can't be made of a configuration, ErrFetch that the server gave no bundle.
var (
	ErrConfig = errors.New("bundle server not configured")
	ErrFetch  = errors.New("no bundle from the bundle server")
)

// Config says where bundles are.
type Config struct {
	URL    string // https
	CAFile string // PEM; "": the system's
	// BearerFile holds a token that is shown to the server; it is read each time. "": none.
	BearerFile string
}

// Source is one address. It is for one goroutine.
type Source struct {
	cfg    Config
	client *http.Client
	etag   string // of what was fetched last
}

// CheckURL says whether an address may be that of a bundle: only https, without a user in it.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return fmt.Errorf("%w: %q is not the https address of a bundle", ErrConfig, text)
	}
	return nil
}

// New makes a source. It asks nobody yet.
func New(cfg Config) (*Source, error) {
	if err := CheckURL(cfg.URL); err != nil {
		return nil, err
	}
	var roots *x509.CertPool
	if cfg.CAFile != "" {
		text, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrConfig, err)
		}
		if roots = x509.NewCertPool(); !roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%w: %s holds no certificate in PEM", ErrConfig, cfg.CAFile)
		}
	}
	return &Source{cfg: cfg, client: &http.Client{
		Timeout:       fetchTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DialContext: (&net.Dialer{Timeout: fetchTime}).DialContext,
			MaxResponseHeaderBytes: 16 << 10, DisableKeepAlives: true, DisableCompression: true, TLSHandshakeTimeout: fetchTime,
		},
	}}, nil
}

// Fetch returns the bundle and the content of its signature file, nil if it has none. Without an error and an archive,
// the bundle is the one that was fetched before.
func (s *Source) Fetch(ctx context.Context) (archive, signature []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.cfg.URL, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrFetch, err)
	}
	req.Header.Set("Accept", "application/gzip, application/octet-stream, application/vnd.openpolicyagent.bundles")
	req.Header.Set("Prefer", "modes=snapshot") // as OPA asks; no deltas, which can't be signed
	if s.etag != "" {
		req.Header.Set("If-None-Match", s.etag)
	}
	if s.cfg.BearerFile != "" {
		token, err := os.ReadFile(s.cfg.BearerFile)
		if text := strings.TrimSpace(string(token)); err != nil || text == "" || len(token) > maxSecret || strings.ContainsAny(text, "\r\n") {
			return nil, nil, fmt.Errorf("%w: %s holds no token", ErrFetch, s.cfg.BearerFile)
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrFetch, err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusNotModified:
		return nil, nil, nil
	case http.StatusOK:
	default:
		return nil, nil, fmt.Errorf("%w: it answered %d, and is not followed elsewhere", ErrFetch, resp.StatusCode)
	}
	tarball, err := io.ReadAll(io.LimitReader(resp.Body, policy.MaxArchiveSize+1))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrFetch, err)
	}
	if archive, signature, err = policy.FromTarball(tarball); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrFetch, err)
	}
	if s.etag = resp.Header.Get("ETag"); len(s.etag) > maxETag {
		s.etag = ""
	}
	return archive, signature, nil
}

// Forget makes the next Fetch return the bundle even if it is the same.
func (s *Source) Forget() { s.etag = "" }
