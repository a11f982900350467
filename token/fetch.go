package token

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"time"
)

const (
	// fetchTime is how long a key set may take to come.
	fetchTime = 5 * time.Second
	// A set behind an address is kept for urlEvery, asked for at most each urlPause, and holds for staleFor at the most
	// while it can't be had: that is how long a key that its issuer withdrew can live on.
	urlEvery, urlPause = 5 * time.Minute, 10 * time.Second
	// A file is cheap to read, and whoever replaces it wants that to hold soon.
	fileEvery, filePause = 5 * time.Second, time.Second
	staleFor             = time.Hour
)

// FileKeys are the keys in a file.
func FileKeys(path string) *Keys {
	return &Keys{every: fileEvery, pause: filePause, stale: staleFor, read: func(context.Context) ([]byte, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrKeys, err)
		}
		defer f.Close()
		return readAll(f)
	}}
}

// URLConfig says how a key set is fetched.
type URLConfig struct {
	URL string
	// CAFile holds the certificate authorities, in PEM, that the server's certificate is judged by; "": the system's.
	CAFile string
	// AllowLoopback takes an http address of this machine, for development.
	AllowLoopback bool
}

// URLKeys are the keys behind an address. It is the only one that is ever asked: redirects are not followed, and no
// proxy of the environment is used.
func URLKeys(c URLConfig) (*Keys, error) {
	if err := CheckURL(c.URL, c.AllowLoopback); err != nil {
		return nil, err
	}
	roots := (*x509.CertPool)(nil)
	if c.CAFile != "" {
		text, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrConfig, err)
		}
		if roots = x509.NewCertPool(); !roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%w: %s holds no certificate in PEM", ErrConfig, c.CAFile)
		}
	}
	client := &http.Client{
		Timeout:       fetchTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DialContext: (&net.Dialer{Timeout: fetchTime}).DialContext,
			MaxResponseHeaderBytes: 16 << 10, DisableKeepAlives: true, DisableCompression: true, TLSHandshakeTimeout: fetchTime,
		},
	}
	return &Keys{every: urlEvery, pause: urlPause, stale: staleFor, read: func(ctx context.Context) ([]byte, error) { return fetch(ctx, client, c.URL) }}, nil
}

// CheckURL says whether a key set may be fetched from an address: https, or http of this machine where that is allowed.
func CheckURL(text string, allowLoopback bool) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return fmt.Errorf("%w: %q is not an address of a key set", ErrConfig, clip(text))
	}
	if u.Scheme == "https" {
		return nil
	}
	ip, err := netip.ParseAddr(u.Hostname())
	if u.Scheme != "http" || err != nil || !ip.IsLoopback() || !allowLoopback {
		return fmt.Errorf("%w: %q is not https: whoever sits in between could give out keys of their own", ErrConfig, clip(text))
	}
	return nil
}

func fetch(ctx context.Context, client *http.Client, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: the server of the key set answered %d, and is not followed elsewhere", ErrKeys, resp.StatusCode)
	}
	kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" && kind != "application/jwk-set+json" {
		return nil, fmt.Errorf("%w: the server of the key set sent something else than JSON", ErrKeys)
	}
	return readAll(resp.Body)
}

// readAll reads a key set up to its limit.
func readAll(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxKeySet+1))
	if err == nil && len(data) > MaxKeySet {
		err = errors.New("it is too large")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: read the key set: %w", ErrKeys, err)
	}
	return data, nil
}
