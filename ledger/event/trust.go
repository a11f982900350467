package event

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

const trustLabel = "bulla-trust-bundle/v1"

// TrustObserved says which authorities a trust domain had, as the broker knew them, before it first judged a
// certificate by them: InstanceBound events name the bundle. It keeps the chains in the log checkable when the
// authorities are long gone.
type TrustObserved struct {
	TrustDomain string   `json:"trust_domain"`
	Bundle      Digest   `json:"bundle"`      // TrustDigest of the other two
	Authorities [][]byte `json:"authorities"` // DER, in ascending order
}

// TypeTrustObserved is the type of TrustObserved.
const TypeTrustObserved Type = "trust.observed"

// EventType implements Body.
func (TrustObserved) EventType() Type { return TypeTrustObserved }

// NewTrustObserved describes the bundle of a trust domain; the order of the authorities and repetitions don't matter.
func NewTrustObserved(domain string, authorities [][]byte) TrustObserved {
	sorted := slices.Clone(authorities)
	slices.SortFunc(sorted, bytes.Compare)
	sorted = slices.CompactFunc(sorted, bytes.Equal)
	return TrustObserved{TrustDomain: domain, Bundle: TrustDigest(domain, sorted), Authorities: sorted}
}

// TrustDigest is SHA-256(label ‖ 0 ‖ domain ‖ authorities), each part after its length (32 bits, big endian).
func TrustDigest(domain string, authorities [][]byte) Digest {
	h := sha256.New()
	h.Write([]byte(trustLabel + "\x00"))
	for _, part := range append([][]byte{[]byte(domain)}, authorities...) {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		h.Write(part)
	}
	return Digest(h.Sum(nil))
}
