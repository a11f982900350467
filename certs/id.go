package certs

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	maxIDLength          = 2048 // bytes; SPIFFE-ID, section 2.3
	maxTrustDomainLength = 255  // bytes; SPIFFE-ID, section 2.1
)

// ParseID reads the SPIFFE ID of a workload. There is one way to write an ID: a scheme in lower case, a trust domain of
// [a-z0-9._-] without empty labels, a path of non-empty segments of [A-Za-z0-9._-] that are neither "." nor "..", no
// trailing slash, no percent-encoding, no port, query or fragment, at most 2048 bytes. Everything else is
// [ErrInvalidID]; nothing is normalised. The ID of a trust domain (without a path) is not one of a workload.
func ParseID(s string) (spiffeid.ID, error) {
	if len(s) > maxIDLength {
		return spiffeid.ID{}, fmt.Errorf("%w: %d bytes, the most is %d", ErrInvalidID, len(s), maxIDLength)
	}
	id, err := spiffeid.FromString(s)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w: %q: %s", ErrInvalidID, s, err.Error())
	}
	if _, err := ParseTrustDomain(id.TrustDomain().Name()); err != nil {
		return spiffeid.ID{}, err
	}
	if id.Path() == "" {
		return spiffeid.ID{}, fmt.Errorf("%w: %q names a trust domain, not a workload", ErrInvalidID, s)
	}
	// go-spiffe has a build tag that widens the alphabet; what Bulla takes doesn't depend on how it was built.
	if i := strings.IndexFunc(id.Path(), func(r rune) bool { return r != '/' && !isPathChar(r) }); i >= 0 {
		return spiffeid.ID{}, fmt.Errorf("%w: %q: path has a character outside of [A-Za-z0-9._-]", ErrInvalidID, s)
	}
	return id, nil
}

// ParseTrustDomain reads the name of a trust domain, such as example.org (not its URI form), under the same rules.
func ParseTrustDomain(s string) (spiffeid.TrustDomain, error) {
	switch {
	case s == "":
		return spiffeid.TrustDomain{}, fmt.Errorf("%w: trust domain is empty", ErrInvalidID)
	case len(s) > maxTrustDomainLength:
		return spiffeid.TrustDomain{}, fmt.Errorf("%w: trust domain of %d bytes, the most is %d", ErrInvalidID, len(s), maxTrustDomainLength)
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" {
			return spiffeid.TrustDomain{}, fmt.Errorf("%w: trust domain %q has an empty label", ErrInvalidID, s)
		}
		if strings.IndexFunc(label, func(r rune) bool { return !isTrustDomainChar(r) }) >= 0 {
			return spiffeid.TrustDomain{}, fmt.Errorf("%w: trust domain %q: write its name alone, in [a-z0-9._-]", ErrInvalidID, s)
		}
	}
	td, err := spiffeid.TrustDomainFromString(s)
	if err != nil {
		return spiffeid.TrustDomain{}, fmt.Errorf("%w: trust domain %q: %s", ErrInvalidID, s, err.Error())
	}
	return td, nil
}

func isTrustDomainChar(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_'
}

func isPathChar(r rune) bool {
	return isTrustDomainChar(r) || r >= 'A' && r <= 'Z' || r == '.'
}

// idFromCertificate returns the ID in the only URI SAN of cert. It reads the bytes of the extension: crypto/x509 hands
// out parsed URLs, which have lost an upper-case scheme and an empty fragment already.
func idFromCertificate(cert *x509.Certificate) (spiffeid.ID, error) {
	uris, err := rawURINames(cert)
	switch {
	case err != nil:
		return spiffeid.ID{}, err
	case len(uris) == 0:
		return spiffeid.ID{}, fmt.Errorf("%w: certificate has no URI SAN", ErrUntrusted)
	case len(uris) > 1:
		return spiffeid.ID{}, fmt.Errorf("%w: certificate has %d URI SANs, an X.509-SVID has one", ErrUntrusted, len(uris))
	}
	id, err := ParseID(uris[0])
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w: URI SAN of the certificate: %s", ErrUntrusted, err.Error())
	}
	return id, nil
}

const tagURI = 6 // uniformResourceIdentifier in GeneralName, RFC 5280 section 4.2.1.6

// rawURINames returns the URI names of the subject alternative names as they stand in the certificate.
func rawURINames(cert *x509.Certificate) ([]string, error) {
	oidSubjectAltName := asn1.ObjectIdentifier{2, 5, 29, 17}
	var uris []string
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(oidSubjectAltName) {
			continue
		}
		var names asn1.RawValue
		rest, err := asn1.Unmarshal(ext.Value, &names)
		if err != nil || len(rest) != 0 || names.Tag != asn1.TagSequence || names.Class != asn1.ClassUniversal {
			return nil, fmt.Errorf("%w: subject alternative names can't be read", ErrUntrusted)
		}
		for rest = names.Bytes; len(rest) > 0; {
			var name asn1.RawValue
			if rest, err = asn1.Unmarshal(rest, &name); err != nil {
				return nil, fmt.Errorf("%w: subject alternative names can't be read", ErrUntrusted)
			}
			if name.Class == asn1.ClassContextSpecific && name.Tag == tagURI {
				uris = append(uris, string(name.Bytes))
			}
		}
	}
	return uris, nil
}
