// Package outward makes the HTTP clients by which a broker speaks to others of its own accord. They follow no
// redirects, know no proxy of the environment, send no cookies and read bounded answers: the configured address is the
// only one that is ever asked.
package outward

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"time"
)

// ErrConfig says that an address or a file of authorities can't be used.
var ErrConfig = errors.New("address refused")

// maxHeaders is the largest header of an answer, in bytes.
const maxHeaders = 16 << 10

// CheckURL says whether an address may be asked: https, or http of this machine.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || u.RawQuery != "" {
		return fmt.Errorf("%w: %.200q is not an address: use https://HOST/PATH", ErrConfig, text)
	}
	if u.Scheme == "https" {
		return nil
	}
	ip, err := netip.ParseAddr(u.Hostname())
	if u.Scheme != "http" || err != nil || !ip.IsLoopback() {
		return fmt.Errorf("%w: %.200q is not https, and not http of this machine (a loopback IP address)", ErrConfig, text)
	}
	return nil
}

// Client returns a client whose exchanges take timeout at most. caFile holds the authorities, in PEM, that a server's
// certificate is judged by; "": the system's.
func Client(caFile string, timeout time.Duration) (*http.Client, error) {
	var roots *x509.CertPool
	if caFile != "" {
		text, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrConfig, err)
		}
		if roots = x509.NewCertPool(); !roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%w: %s holds no certificate in PEM", ErrConfig, caFile)
		}
	}
	return &http.Client{
		Timeout:       timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DialContext: (&net.Dialer{Timeout: timeout}).DialContext,
			MaxResponseHeaderBytes: maxHeaders, DisableCompression: true, TLSHandshakeTimeout: timeout, MaxIdleConns: 2, IdleConnTimeout: time.Minute,
			ForceAttemptHTTP2: true,
		},
	}, nil
}

// ReadAll reads an answer of at most limit bytes.
func ReadAll(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("the answer is longer than %d bytes", limit)
	}
	return data, err
}

// Backoff is how long to wait after so many failures in a row: from a second, doubled each time, to most.
func Backoff(failures int, most time.Duration) time.Duration {
	return min(time.Second<<min(max(failures-1, 0), 16), most)
}
