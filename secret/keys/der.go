package keys

import (
	"bytes"
	"encoding/asn1"
	"fmt"
	"math/big"
)

// EncodeDER turns an ECDSA signature r‖s into the ASN.1 of RFC 3279, which X.509 and OpenSSL use.
func EncodeDER(signature []byte) ([]byte, error) {
	if len(signature) != SignatureSize {
		return nil, fmt.Errorf("%w: an ECDSA signature has %d bytes, and this one %d", ErrInvalid, SignatureSize, len(signature))
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])})
}

// DecodeDER reverses [EncodeDER], and refuses every other encoding.
func DecodeDER(der []byte) ([]byte, error) {
	var sig struct{ R, S *big.Int }
	if len(der) > SignatureSize+8 {
		return nil, fmt.Errorf("%w: no ASN.1 signature of P-256", ErrInvalid)
	}
	if _, err := asn1.Unmarshal(der, &sig); err != nil || sig.R.Sign() <= 0 || sig.S.Sign() <= 0 || sig.R.BitLen() > 256 || sig.S.BitLen() > 256 {
		return nil, fmt.Errorf("%w: no ASN.1 signature of P-256", ErrInvalid)
	}
	raw := make([]byte, SignatureSize)
	sig.R.FillBytes(raw[:32])
	sig.S.FillBytes(raw[32:])
	if again, err := EncodeDER(raw); err != nil || !bytes.Equal(again, der) {
		return nil, fmt.Errorf("%w: no ASN.1 signature of P-256", ErrInvalid)
	}
	return raw, nil
}
