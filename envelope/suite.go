package envelope

import (
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/mlkem"
	"fmt"
)

// Suite is a way of sealing: a key encapsulation with its key derivation and AEAD. The zero value is invalid.
type Suite struct{ p *suiteParams }

type suiteParams struct {
	alg       string
	number    uint64
	strength  int
	kem       hpke.KEM
	curve     ecdh.Curve
	kdf       hpke.KDF
	aead      hpke.AEAD
	publicLen int
	encLen    int
	protected string // base64url of the JWE protected header
}

func newSuite(alg string, strength int, kem hpke.KEM, curve ecdh.Curve, kdf hpke.KDF, publicLen, encLen int) Suite {
	aead := hpke.AES256GCM()
	return Suite{&suiteParams{
		alg:       alg,
		number:    uint64(kem.ID())<<32 | uint64(kdf.ID())<<16 | uint64(aead.ID()),
		strength:  strength,
		kem:       kem,
		curve:     curve,
		kdf:       kdf,
		aead:      aead,
		publicLen: publicLen,
		encLen:    encLen,
		protected: b64.EncodeToString([]byte(`{"alg":"` + alg + `","enc":"A256GCM"}`)),
	}}
}

const (
	pointLen = 65 // uncompressed P-256 point
	xLen     = 32 // X25519
)

// The suites. They are values, not variables to be set: nothing assigns to them after start.
var (
	hybridX25519 = newSuite("HPKE-9-KE", 2, hpke.MLKEM768X25519(), ecdh.X25519(), hpke.SHAKE256(), mlkem.EncapsulationKeySize768+xLen, mlkem.CiphertextSize768+xLen)
	hybridP256   = newSuite("HPKE-8-KE", 2, hpke.MLKEM768P256(), ecdh.P256(), hpke.SHAKE256(), mlkem.EncapsulationKeySize768+pointLen, mlkem.CiphertextSize768+pointLen)
	classicP256  = newSuite("HPKE-7-KE", 1, hpke.DHKEM(ecdh.P256()), ecdh.P256(), hpke.HKDFSHA256(), pointLen, pointLen)
)

// SuiteHybridX25519 is HPKE-9-KE: MLKEM768-X25519, SHAKE256, AES-256-GCM. The default.
func SuiteHybridX25519() Suite { return hybridX25519 }

// SuiteHybridP256 is HPKE-8-KE: MLKEM768-P256, SHAKE256, AES-256-GCM. For a P-256 half in hardware, and for FIPS.
func SuiteHybridP256() Suite { return hybridP256 }

// SuiteP256 is HPKE-7-KE: DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. Not post-quantum.
func SuiteP256() Suite { return classicP256 }

// Suites returns all suites, the preferred one first.
func Suites() []Suite { return []Suite{hybridX25519, hybridP256, classicP256} }

// ParseSuite takes the "alg" name of a suite.
func ParseSuite(alg string) (Suite, error) {
	for _, s := range Suites() {
		if s.p.alg == alg {
			return s, nil
		}
	}
	return Suite{}, fmt.Errorf("suite %q: %w: need HPKE-9-KE, HPKE-8-KE or HPKE-7-KE", clip([]byte(alg)), ErrSuite)
}

// SuiteByNumber takes the number of a suite.
func SuiteByNumber(n uint64) (Suite, error) {
	for _, s := range Suites() {
		if s.p.number == n {
			return s, nil
		}
	}
	return Suite{}, fmt.Errorf("suite number %#x: %w", n, ErrSuite)
}

// String returns the "alg" name.
func (s Suite) String() string {
	if s.p == nil {
		return "invalid"
	}
	return s.p.alg
}

// IsZero reports whether s is the invalid zero value.
func (s Suite) IsZero() bool { return s.p == nil }

// Number returns the suite as a number that stays when draft names move: the IANA HPKE registry's ids of KEM, KDF
// and AEAD, 16 bits each. The context carries it as "hs". 0 for the zero value.
func (s Suite) Number() uint64 {
	if s.p == nil {
		return 0
	}
	return s.p.number
}

// PostQuantum reports whether the suite holds against a quantum computer.
func (s Suite) PostQuantum() bool { return s.p != nil && s.p.strength >= 2 }

// AtLeast reports whether s is as strong as minimum: post-quantum hybrids stand above P-256 alone and equal to each
// other. False if either is the zero value.
func (s Suite) AtLeast(minimum Suite) bool {
	return s.p != nil && minimum.p != nil && s.p.strength >= minimum.p.strength
}
