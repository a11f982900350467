package device

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bulla-project/bulla/attest/tpm/evidence"
)

// Where the TCG EK Credential Profile puts endorsement certificates and keys.
const (
	rsaCertIndex   tpm2.TPMHandle = 0x01c00002
	eccCertIndex   tpm2.TPMHandle = 0x01c0000a
	chainFirst     tpm2.TPMHandle = 0x01c00100
	chainLast      tpm2.TPMHandle = 0x01c00106
	rsaEKHandle    tpm2.TPMHandle = 0x81010001
	nvChunk                       = 768
	maxStoredChain                = evidence.MaxCertificates - 1
)

// EnrolRequest gathers what an enrolment starts with: endorsement key, its certificate where the TPM has one,
// and attestation key. chainPEM holds intermediate certificates that the TPM does not have itself; it may be
// empty.
func (t *TPM) EnrolRequest(ctx context.Context, chainPEM []byte) (evidence.Request, error) {
	var req evidence.Request
	extra, err := certificates(chainPEM)
	if err != nil {
		return req, fmt.Errorf("enrol %s: %w", t.Address(), err)
	}
	err = t.do(ctx, func(c transport.TPM) error {
		ek, cert, err := endorsementKey(c)
		if err != nil {
			return err
		}
		flush(c, ek.Handle)
		ak, err := attestationKey(c)
		if err != nil {
			return err
		}
		flush(c, ak.Handle)
		req.EKPublic, req.AKPublic = tpm2.Marshal(ek.public), tpm2.Marshal(ak.public)
		if cert == nil {
			return nil
		}
		req.Certificates = append([][]byte{cert}, extra...)
		if len(extra) == 0 {
			req.Certificates = append(req.Certificates, storedChain(c)...)
		}
		return nil
	})
	if err != nil {
		return evidence.Request{}, fmt.Errorf("enrol %s: %w", t.Address(), err)
	}
	return req, nil
}

// Activate answers the challenge of an enrolment: it gives the secret that only this TPM can recover.
func (t *TPM) Activate(ctx context.Context, ch evidence.Challenge) ([]byte, error) {
	var secret []byte
	err := t.do(ctx, func(c transport.TPM) error {
		ek, _, err := endorsementKey(c)
		if err != nil {
			return err
		}
		defer flush(c, ek.Handle)
		ak, err := attestationKey(c)
		if err != nil {
			return err
		}
		defer flush(c, ak.Handle)
		session := tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(c transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
			_, err := tpm2.PolicySecret{AuthHandle: tpm2.TPMRHEndorsement, PolicySession: session, NonceTPM: nonce}.Execute(c)
			return err
		})
		r, err := tpm2.ActivateCredential{
			ActivateHandle: ak.auth(),
			KeyHandle:      tpm2.AuthHandle{Handle: ek.Handle, Name: ek.Name, Auth: session},
			CredentialBlob: tpm2.TPM2BIDObject{Buffer: ch.IDObject},
			Secret:         tpm2.TPM2BEncryptedSecret{Buffer: ch.EncryptedSecret},
		}.Execute(c)
		if err != nil {
			return fmt.Errorf("activate credential: %w", err)
		}
		secret = r.CertInfo.Buffer
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("answer the enrolment's challenge with %s: %w", t.Address(), err)
	}
	return secret, nil
}

// endorsementKey picks the endorsement key: the one that the TPM has a certificate for (RSA before elliptic
// curve), else the provisioned one, else one made from the standard template.
func endorsementKey(c transport.TPM) (ek object, cert []byte, err error) {
	if cert, err := readNV(c, rsaCertIndex); err == nil {
		ek, err := rsaEndorsementKey(c, cert)
		return ek, cert, err
	}
	if cert, err := readNV(c, eccCertIndex); err == nil {
		ek, err := primary(c, tpm2.TPMRHEndorsement, tpm2.ECCEKTemplate)
		if err != nil {
			return object{}, nil, fmt.Errorf("endorsement key: %w", err)
		}
		return ek, cert, nil
	}
	if ek, ok := persistent(c, rsaEKHandle); ok {
		return ek, nil, nil
	}
	ek, err = primary(c, tpm2.TPMRHEndorsement, tpm2.ECCEKTemplate)
	if err != nil {
		return object{}, nil, fmt.Errorf("endorsement key: %w", err)
	}
	return ek, nil, nil
}

// rsaEndorsementKey takes the provisioned key if it is the certified one: to make it takes seconds.
func rsaEndorsementKey(c transport.TPM, cert []byte) (object, error) {
	if ek, ok := persistent(c, rsaEKHandle); ok && certifies(cert, ek.public) {
		return ek, nil
	}
	ek, err := primary(c, tpm2.TPMRHEndorsement, tpm2.RSAEKTemplate)
	if err != nil {
		return object{}, fmt.Errorf("endorsement key: %w", err)
	}
	return ek, nil
}

func certifies(padded []byte, public tpm2.TPMTPublic) bool {
	var raw asn1.RawValue
	if _, err := asn1.Unmarshal(padded, &raw); err != nil {
		return false
	}
	cert, err := x509.ParseCertificate(raw.FullBytes)
	if err != nil {
		return false
	}
	key, err := tpm2.Pub(public)
	if err != nil {
		return false
	}
	certified, ok := cert.PublicKey.(*rsa.PublicKey)
	return ok && certified.Equal(key)
}

// storedChain reads the intermediate certificates that some TPMs keep.
func storedChain(c transport.TPM) [][]byte {
	var chain [][]byte
	for h := chainFirst; h <= chainLast && len(chain) < maxStoredChain; h++ {
		rest, err := readNV(c, h)
		if err != nil {
			break
		}
		for len(rest) > 0 && len(chain) < maxStoredChain {
			var raw asn1.RawValue
			after, err := asn1.Unmarshal(rest, &raw)
			if err != nil {
				break
			}
			chain, rest = append(chain, raw.FullBytes), after
		}
	}
	return chain
}

// readNV reads a whole index that anyone may read.
func readNV(c transport.TPM, index tpm2.TPMHandle) ([]byte, error) {
	r, err := tpm2.NVReadPublic{NVIndex: index}.Execute(c)
	if err != nil {
		return nil, err
	}
	public, err := r.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	if public.DataSize > evidence.MaxCertificate {
		return nil, fmt.Errorf("%d bytes at %#x, want at most %d", public.DataSize, uint32(index), evidence.MaxCertificate)
	}
	named := tpm2.NamedHandle{Handle: index, Name: r.NVName}
	var out []byte
	for at := uint16(0); at < public.DataSize; {
		n := min(public.DataSize-at, nvChunk)
		part, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index, Name: r.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    named, Size: n, Offset: at,
		}.Execute(c)
		if err != nil {
			return nil, err
		}
		out = append(out, part.Data.Buffer...)
		at += n
	}
	return out, nil
}

func certificates(chainPEM []byte) ([][]byte, error) {
	var certs [][]byte
	for {
		block, rest := pem.Decode(chainPEM)
		if block == nil {
			return certs, nil
		}
		if block.Type != "CERTIFICATE" || len(certs) == maxStoredChain {
			return nil, errors.New("the chain must be PEM certificates only, seven at most")
		}
		certs, chainPEM = append(certs, block.Bytes), rest
	}
}
