package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"github.com/bulla-project/bulla/attest/tpm/evidence"
)

const (
	minRSABits = 2048
	maxRSABits = 4096 // beyond that a verification costs too much for a stranger to ask for
	rsaF4      = 65537
)

// parsePublic reads a TPMT_PUBLIC.
func parsePublic(b []byte) (*tpm2.TPMTPublic, error) {
	return decode[tpm2.TPMTPublic](b, evidence.MaxPublic, "public area")
}

// cryptoKey gives the key of a public area, if it is RSA of 2048 to 4096 bits with exponent 65537 or lies on
// P-256 or P-384.
func cryptoKey(p *tpm2.TPMTPublic) (crypto.PublicKey, error) {
	key, err := tpm2.Pub(*p)
	if err != nil {
		return nil, err
	}
	switch key := key.(type) {
	case *rsa.PublicKey:
		params, err := p.Parameters.RSADetail()
		if err != nil {
			return nil, err
		}
		if int(params.KeyBits) != key.N.BitLen() {
			return nil, fmt.Errorf("RSA modulus of %d bits in a key of %d bits", key.N.BitLen(), params.KeyBits)
		}
		return key, checkRSA(key)
	case *ecdsa.PublicKey:
		if size := key.Curve.Params().BitSize; size != 256 && size != 384 {
			return nil, fmt.Errorf("curve of %d bits, want P-256 or P-384", size)
		}
		if _, err := key.ECDH(); err != nil {
			return nil, fmt.Errorf("not a point on the curve: %w", err)
		}
		return key, nil
	}
	return nil, errors.New("neither an RSA nor an elliptic curve key")
}

// checkRSA bounds an RSA key before anything is computed with it.
func checkRSA(key *rsa.PublicKey) error {
	if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
		return fmt.Errorf("RSA key of %d bits, want %d to %d", bits, minRSABits, maxRSABits)
	}
	if key.E != rsaF4 {
		return fmt.Errorf("RSA exponent %d, want %d", key.E, rsaF4)
	}
	return nil
}

// strongName refuses public areas named by a weak hash.
func strongName(p *tpm2.TPMTPublic) error {
	switch p.NameAlg {
	case tpm2.TPMAlgSHA256, tpm2.TPMAlgSHA384, tpm2.TPMAlgSHA512:
		return nil
	}
	return fmt.Errorf("name algorithm %#x, want SHA-256, SHA-384 or SHA-512", uint16(p.NameAlg))
}

// spki is the PKIX form of a public area's key.
func spki(p *tpm2.TPMTPublic) ([]byte, error) {
	key, err := cryptoKey(p)
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKIXPublicKey(key)
}

// A signer is an attestation key that passed checkAK.
type signer struct {
	name   []byte
	key    crypto.PublicKey
	scheme tpm2.TPMAlgID
	hash   crypto.Hash
}

// checkAK demands what makes a signature mean "a TPM says so": a restricted signing key that was made in the
// TPM and can't leave it, with a fixed scheme of a strong hash.
func checkAK(p *tpm2.TPMTPublic) (*signer, error) {
	a := p.ObjectAttributes
	switch {
	case !a.Restricted:
		return nil, errors.New("attestation key is not restricted: it would sign anything it is given")
	case !a.SignEncrypt || a.Decrypt:
		return nil, errors.New("attestation key is not a signing key only")
	case !a.FixedTPM || !a.FixedParent:
		return nil, errors.New("attestation key may leave its TPM (fixedTPM, fixedParent)")
	case !a.SensitiveDataOrigin:
		return nil, errors.New("attestation key was not made in the TPM (sensitiveDataOrigin)")
	}
	if err := strongName(p); err != nil {
		return nil, err
	}
	key, err := cryptoKey(p)
	if err != nil {
		return nil, err
	}
	scheme, hash, err := signingScheme(p)
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(p)
	if err != nil {
		return nil, fmt.Errorf("name of the attestation key: %w", err)
	}
	return &signer{name.Buffer, key, scheme, hash}, nil
}

// signingScheme reads the scheme that a key is bound to.
func signingScheme(p *tpm2.TPMTPublic) (tpm2.TPMAlgID, crypto.Hash, error) {
	var scheme, hash tpm2.TPMAlgID
	switch p.Type {
	case tpm2.TPMAlgRSA:
		params, err := p.Parameters.RSADetail()
		if err != nil {
			return 0, 0, err
		}
		scheme = params.Scheme.Scheme
		switch scheme {
		case tpm2.TPMAlgRSASSA:
			d, err := params.Scheme.Details.RSASSA()
			if err != nil {
				return 0, 0, err
			}
			hash = d.HashAlg
		case tpm2.TPMAlgRSAPSS:
			d, err := params.Scheme.Details.RSAPSS()
			if err != nil {
				return 0, 0, err
			}
			hash = d.HashAlg
		}
	case tpm2.TPMAlgECC:
		params, err := p.Parameters.ECCDetail()
		if err != nil {
			return 0, 0, err
		}
		scheme = params.Scheme.Scheme
		if scheme == tpm2.TPMAlgECDSA {
			d, err := params.Scheme.Details.ECDSA()
			if err != nil {
				return 0, 0, err
			}
			hash = d.HashAlg
		}
	}
	switch hash {
	case tpm2.TPMAlgSHA256:
		return scheme, crypto.SHA256, nil
	case tpm2.TPMAlgSHA384:
		return scheme, crypto.SHA384, nil
	case tpm2.TPMAlgSHA512:
		return scheme, crypto.SHA512, nil
	}
	return 0, 0, fmt.Errorf("signature scheme %#x with hash %#x, want ECDSA, RSASSA or RSAPSS with SHA-256, SHA-384 or SHA-512", uint16(scheme), uint16(hash))
}

// verify checks a TPMT_SIGNATURE, which must be of the key's own scheme and hash.
func (s *signer) verify(message, signature []byte) error {
	sig, err := decode[tpm2.TPMTSignature](signature, evidence.MaxSignature, "signature")
	if err != nil {
		return err
	}
	if sig.SigAlg != s.scheme {
		return fmt.Errorf("signature of scheme %#x by a key of scheme %#x", uint16(sig.SigAlg), uint16(s.scheme))
	}
	h := s.hash.New()
	h.Write(message)
	digest := h.Sum(nil)
	switch key := s.key.(type) {
	case *ecdsa.PublicKey:
		ec, err := sig.Signature.ECDSA()
		if err != nil {
			return err
		}
		r, t := new(big.Int).SetBytes(ec.SignatureR.Buffer), new(big.Int).SetBytes(ec.SignatureS.Buffer)
		if !s.isHash(ec.Hash) || !ecdsa.Verify(key, digest, r, t) {
			return errors.New("signature does not verify")
		}
		return nil
	case *rsa.PublicKey:
		return s.verifyRSA(key, digest, sig)
	}
	return errors.New("signature by a key of unknown type")
}

func (s *signer) verifyRSA(key *rsa.PublicKey, digest []byte, sig *tpm2.TPMTSignature) error {
	if s.scheme == tpm2.TPMAlgRSASSA {
		v, err := sig.Signature.RSASSA()
		if err != nil {
			return err
		}
		if !s.isHash(v.Hash) || rsa.VerifyPKCS1v15(key, s.hash, digest, v.Sig.Buffer) != nil {
			return errors.New("signature does not verify")
		}
		return nil
	}
	v, err := sig.Signature.RSAPSS()
	if err != nil {
		return err
	}
	options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto}
	if !s.isHash(v.Hash) || rsa.VerifyPSS(key, s.hash, digest, v.Sig.Buffer, options) != nil {
		return errors.New("signature does not verify")
	}
	return nil
}

func (s *signer) isHash(alg tpm2.TPMAlgID) bool {
	h, err := alg.Hash()
	return err == nil && h == s.hash
}

// attested checks that a TPMS_ATTEST was signed by s, made by a TPM, is of type want and was made over extra.
func (s *signer) attested(attested, signature []byte, want tpm2.TPMST, extra []byte) (*tpm2.TPMSAttest, error) {
	if len(attested) == 0 || len(attested) > evidence.MaxAttest {
		return nil, fmt.Errorf("attestation of %d bytes, want 1 to %d", len(attested), evidence.MaxAttest)
	}
	if err := s.verify(attested, signature); err != nil {
		return nil, err
	}
	a, err := decode[tpm2.TPMSAttest](attested, evidence.MaxAttest, "attestation")
	switch {
	case err != nil:
		return nil, err
	case a.Magic != tpm2.TPMGeneratedValue:
		return nil, errors.New("signed, but not made by a TPM")
	case a.Type != want:
		return nil, fmt.Errorf("attestation of type %#x, want %#x", uint16(a.Type), uint16(want))
	case !bytes.Equal(a.ExtraData.Buffer, extra):
		return nil, errors.New("made for another challenge, channel, principal or key")
	}
	return a, nil
}
