package certs

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ServerTLS returns the configuration of a server: TLS 1.3, no resumption, and a client certificate from a member of
// an allowed trust domain at every handshake. It authorises nobody beyond that. Use it with credentials.NewTLS, which
// leaves the peer's certificates in credentials.TLSInfo, and judge them at each call with a [PeerVerifier].
func ServerTLS(src *Source) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		MaxVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequireAnyClientCert, // the verification is below, since SPIFFE knows no host names
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return src.tlsCertificate()
		},
		// VerifyConnection runs at every handshake, a resumed one included; VerifyPeerCertificate would not.
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := src.verifyPeer(cs.PeerCertificates)
			return err
		},
	}
}

// ClientTLS returns the configuration of a client that talks to serverID and to nobody else, not even to another member
// of the same trust domain.
func ClientTLS(src *Source, serverID spiffeid.ID) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		MaxVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // replaces the check of host names by that of the SPIFFE ID below, nothing else
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return src.tlsCertificate()
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, err := src.verifyPeer(cs.PeerCertificates)
			if err != nil {
				return err
			}
			if serverID.IsZero() || id != serverID {
				return fmt.Errorf("%w: the server is %s, this client talks to %q only (BULLA_SERVER_ID)", ErrUnexpectedID, id, serverID)
			}
			return nil
		},
	}
}

func (s *Source) tlsCertificate() (*tls.Certificate, error) {
	st, err := s.validState()
	if err != nil {
		return nil, err
	}
	return st.certificate, nil
}

// verifyPeer judges a chain against the current bundles as of now.
func (s *Source) verifyPeer(chain []*x509.Certificate) (spiffeid.ID, error) {
	st, err := s.load()
	if err != nil {
		return spiffeid.ID{}, err
	}
	id, err := leafID(chain)
	if err != nil {
		return spiffeid.ID{}, err
	}
	if _, err := s.verifyAt(st, id, chain, s.now()); err != nil {
		return spiffeid.ID{}, err
	}
	return id, nil
}

// verifyAt verifies a chain whose leaf passed leafID to the bundle in st of its trust domain, if that is allowed.
func (s *Source) verifyAt(st *state, id spiffeid.ID, chain []*x509.Certificate, now time.Time) (window, error) {
	pool, ok := st.pools[id.TrustDomain()] // holds allowed trust domains only
	if !ok {
		return window{}, s.noBundle(id.TrustDomain())
	}
	holds, err := verifyTo(chain, pool, id, now)
	if err != nil {
		return window{}, withHint(err, st.window())
	}
	return holds, nil
}
