package proof

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// LabelBinding is the first part of what a binding signs.
const LabelBinding = "bulla-instance-binding/v1"

// MaxBinding is the largest encoded binding in bytes: a SPIFFE ID of 2048, an RSA-4096 signature, and room.
const MaxBinding = 3072

const maxSPIFFEID = 2048 // SPIFFE-ID specification, 2.3

// RSA SVID keys: below it is too weak, above it costs too much to check.
const (
	minRSABits = 2048
	maxRSABits = 4096
)

// Outcomes of reading and checking a binding. A signature that fails is [ErrSignature].
var (
	ErrBindingMalformed = errors.New("instance binding is malformed")
	ErrBindingMismatch  = errors.New("instance binding is for another certificate or identity")
	ErrBindingExpired   = errors.New("instance binding has ended")
)

// Binding says: the workload that holds this SVID uses this instance key, until NotAfter.
//
// Its encoding is the signed statement (label "bulla-instance-binding/v1", NUL, then SPIFFE ID, SHA-256 of the
// leaf's DER, instance key SPKI and not-after as 64-bit big-endian unix seconds, each after its 32-bit length),
// followed by the signature after its length.
//
// The kind of signature follows from the leaf's key and is not negotiable: ECDSA P-256 with SHA-256, P-384 with
// SHA-384 (both ASN.1), Ed25519, RSA-PSS with SHA-256 and a salt of 32 bytes (2048 to 4096 bits; TLS 1.3 wants PSS
// of these keys as well).
type Binding struct {
	SPIFFEID    string
	LeafSHA256  [32]byte
	InstanceKey *ecdsa.PublicKey
	NotAfter    time.Time // whole seconds
}

func (b *Binding) statement() ([]byte, error) {
	spki, err := MarshalInstanceKey(b.InstanceKey)
	if err != nil {
		return nil, err
	}
	end := b.NotAfter.Unix()
	if b.SPIFFEID == "" || len(b.SPIFFEID) > maxSPIFFEID || end <= 0 {
		return nil, ErrBindingMalformed
	}
	return Statement(LabelBinding, []byte(b.SPIFFEID), b.LeafSHA256[:], spki,
		binary.BigEndian.AppendUint64(nil, uint64(end))), nil
}

// SignBinding makes the encoded binding of an instance key to an SVID: svid is the private key of leaf.
// notAfter is cut to whole seconds and to the end of the leaf.
func SignBinding(svid crypto.Signer, leaf *x509.Certificate, instance *ecdsa.PublicKey, notAfter time.Time) ([]byte, error) {
	if leaf.NotAfter.Before(notAfter) {
		notAfter = leaf.NotAfter
	}
	b := Binding{LeafSHA256: sha256.Sum256(leaf.Raw), InstanceKey: instance, NotAfter: time.Unix(notAfter.Unix(), 0)}
	if err := distinctKeys(leaf, instance); err != nil {
		return nil, fmt.Errorf("sign instance binding: %w", err)
	}
	var err error
	if b.SPIFFEID, err = leafID(leaf); err != nil {
		return nil, fmt.Errorf("sign instance binding: %w", err)
	}
	if pub, ok := svid.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(leaf.PublicKey) {
		return nil, errors.New("sign instance binding: the private key is not that of the certificate")
	}
	msg, err := b.statement()
	if err != nil {
		return nil, fmt.Errorf("sign instance binding: %w", err)
	}
	sig, err := signSVID(svid, msg)
	if err != nil {
		return nil, fmt.Errorf("sign instance binding: %w", err)
	}
	msg = binary.BigEndian.AppendUint32(msg, uint32(len(sig)))
	return append(msg, sig...), nil
}

// ParseBinding reads an encoded binding without checking its signature. It is for showing and auditing;
// what is to be relied on goes through [VerifyBinding].
func ParseBinding(encoded []byte) (*Binding, error) {
	b, _, _, err := parseBinding(encoded)
	return b, err
}

func parseBinding(encoded []byte) (b *Binding, msg, sig []byte, err error) {
	if len(encoded) > MaxBinding {
		return nil, nil, nil, ErrBindingMalformed
	}
	rest, ok := bytes.CutPrefix(encoded, []byte(LabelBinding+"\x00"))
	if !ok {
		return nil, nil, nil, ErrBindingMalformed
	}
	var fields [5][]byte // SPIFFE ID, leaf digest, instance key, not-after, signature
	for i := range fields {
		if fields[i], rest, ok = cutField(rest); !ok {
			return nil, nil, nil, ErrBindingMalformed
		}
	}
	if len(rest) != 0 || len(fields[1]) != 32 || len(fields[3]) != 8 || len(fields[4]) == 0 {
		return nil, nil, nil, ErrBindingMalformed
	}
	b = &Binding{SPIFFEID: string(fields[0]), LeafSHA256: [32]byte(fields[1])}
	if b.InstanceKey, err = ParseInstanceKey(fields[2]); err != nil {
		return nil, nil, nil, fmt.Errorf("%w: %w", ErrBindingMalformed, err)
	}
	b.NotAfter = time.Unix(int64(binary.BigEndian.Uint64(fields[3])), 0)
	msg, sig = encoded[:len(encoded)-len(fields[4])-4], fields[4]
	if again, err := b.statement(); err != nil || !bytes.Equal(again, msg) {
		return nil, nil, nil, ErrBindingMalformed
	}
	return b, msg, sig, nil
}

func cutField(b []byte) (field, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-4) {
		return nil, nil, false
	}
	return b[4 : 4+n], b[4+n:], true
}

// VerifyBinding checks an encoded binding against the leaf certificate of the peer at the time now. The leaf's
// chain must have been verified already; an auditor passes the time of the log entry.
//
// It demands that the binding names this very certificate and its one URI SAN, has not ended, does not outlive
// the certificate, names an instance key other than the certificate's own, and is signed by the certificate's key.
func VerifyBinding(encoded []byte, leaf *x509.Certificate, now time.Time) (*Binding, error) {
	b, msg, sig, err := parseBinding(encoded)
	if err != nil {
		return nil, fmt.Errorf("verify instance binding: %w", err)
	}
	id, err := leafID(leaf)
	if err != nil {
		return nil, fmt.Errorf("verify instance binding: %w", err)
	}
	digest := sha256.Sum256(leaf.Raw)
	if subtle.ConstantTimeCompare(digest[:], b.LeafSHA256[:]) != 1 || id != b.SPIFFEID {
		return nil, fmt.Errorf("verify instance binding: %w", ErrBindingMismatch)
	}
	if err := distinctKeys(leaf, b.InstanceKey); err != nil {
		return nil, fmt.Errorf("verify instance binding: %w", err)
	}
	if b.NotAfter.After(leaf.NotAfter) || !now.Before(b.NotAfter) {
		return nil, fmt.Errorf("verify instance binding: %w", ErrBindingExpired)
	}
	if err := verifySVID(leaf.PublicKey, msg, sig); err != nil {
		return nil, fmt.Errorf("verify instance binding: %w", err)
	}
	return b, nil
}

// leafID returns the one URI SAN of an X.509-SVID (X.509-SVID specification, section 2).
func leafID(leaf *x509.Certificate) (string, error) {
	if len(leaf.URIs) != 1 || leaf.URIs[0].Scheme != "spiffe" {
		return "", fmt.Errorf("certificate has not exactly one spiffe URI: %w", ErrBindingMismatch)
	}
	return leaf.URIs[0].String(), nil
}

// distinctKeys refuses an instance key that is the SVID's own: one key for both would let handshakes and requests
// be signed by the same key, and would end with the SVID.
func distinctKeys(leaf *x509.Certificate, instance *ecdsa.PublicKey) error {
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); ok && instance != nil && pub.Equal(instance) {
		return fmt.Errorf("the instance key is the SVID key itself: %w", ErrBindingMismatch)
	}
	return nil
}

func pssOptions() *rsa.PSSOptions {
	return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
}

// prepare returns what a key of this kind signs (a digest, or the message itself for Ed25519) and the options.
func prepare(pub crypto.PublicKey, msg []byte) ([]byte, crypto.SignerOpts, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			d := sha256.Sum256(msg)
			return d[:], crypto.SHA256, nil
		case elliptic.P384():
			d := sha512.Sum384(msg)
			return d[:], crypto.SHA384, nil
		}
	case ed25519.PublicKey:
		return msg, crypto.Hash(0), nil
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n >= minRSABits && n <= maxRSABits {
			d := sha256.Sum256(msg)
			return d[:], pssOptions(), nil
		}
	}
	return nil, nil, fmt.Errorf("SVID key %T: need ECDSA P-256 or P-384, Ed25519, or RSA of %d to %d bits", pub, minRSABits, maxRSABits)
}

func signSVID(key crypto.Signer, msg []byte) ([]byte, error) {
	in, opts, err := prepare(key.Public(), msg)
	if err != nil {
		return nil, err
	}
	return key.Sign(rand.Reader, in, opts)
}

func verifySVID(pub crypto.PublicKey, msg, sig []byte) error {
	in, _, err := prepare(pub, msg)
	if err != nil {
		return err
	}
	ok := false
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(k, in, sig)
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, in, sig)
	case *rsa.PublicKey:
		ok = rsa.VerifyPSS(k, crypto.SHA256, in, sig, pssOptions()) == nil
	}
	if !ok {
		return ErrSignature
	}
	return nil
}
