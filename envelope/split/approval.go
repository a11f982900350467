package split

import (
	"crypto"
	"crypto/ecdsa"
	"encoding/binary"
	"fmt"

	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/secret"
)

// LabelApproval is the first part of what an approval signs.
const LabelApproval = "bulla-approval/v1"

const labelReseal = "bulla-share-reseal/v1"

// Approval is what a holder or approver signs with its instance key: yes to this one request, until Expires. Payload
// is the digest of the request as the requester signed it, and with that of the key that it wants the secret sealed to.
type Approval struct {
	Round     string          // id
	Manifest  envelope.Digest // absent where there are no shares
	Secret    string          // name
	Version   uint32          // of the secret
	Requester string          // SPIFFE ID
	Instance  string          // thumbprint of the requester's instance key
	Request   string          // the requester's request id
	Payload   envelope.Digest // of the requester's signed payload
	Holder    string          // SPIFFE ID of the one who approves
	Expires   int64           // of the round, microseconds since 1970
	Share     envelope.Digest // of the re-sealed share; absent where there is none
}

// fields are those that do not depend on the share.
func (a *Approval) fields() [][]byte {
	return [][]byte{
		[]byte(a.Round), a.Manifest[:], []byte(a.Secret), binary.BigEndian.AppendUint32(nil, a.Version), []byte(a.Requester),
		[]byte(a.Instance), []byte(a.Request), a.Payload[:], []byte(a.Holder), binary.BigEndian.AppendUint64(nil, uint64(a.Expires)),
	}
}

// Sign signs the approval with the holder's instance key.
func (a *Approval) Sign(key crypto.Signer) ([]byte, error) {
	return proof.SignES256(key, proof.Statement(LabelApproval, append(a.fields(), a.Share[:])...))
}

// Verify checks a signature of an approval. Each failure is [ErrCrypto].
func (a *Approval) Verify(key *ecdsa.PublicKey, signature []byte) error {
	if err := proof.VerifyES256(key, proof.Statement(LabelApproval, append(a.fields(), a.Share[:])...), signature); err != nil {
		return fmt.Errorf("approval of %s: %w", a.Holder, ErrCrypto)
	}
	return nil
}

// Reseal seals the holder's share to the requester's key, bound to all that the approval says, and puts its digest
// into a copy of the approval.
func (a Approval) Reseal(to envelope.RecipientKey, share secret.Bytes) ([]byte, Approval, error) {
	if share.Len() != ShareSize {
		return nil, a, fmt.Errorf("%w: a share has %d bytes, not %d", ErrInvalid, ShareSize, share.Len())
	}
	sealed, err := to.SealShort(proof.Statement(labelReseal, a.fields()...), share.Expose())
	if err != nil {
		return nil, a, fmt.Errorf("seal the share to the requester: %w", err)
	}
	a.Share = envelope.DigestOf(sealed)
	return sealed, a, nil
}

// OpenShare opens what Reseal sealed, with the requester's key. Whether it is the right share says [Manifest.Check].
func (a *Approval) OpenShare(with *envelope.Recipient, sealed []byte) (secret.Bytes, error) {
	if envelope.DigestOf(sealed) != a.Share {
		return secret.Bytes{}, &ShareError{a.Holder, "it is not the one that the approval was signed for"}
	}
	plain, err := with.OpenShort(proof.Statement(labelReseal, a.fields()...), sealed)
	if err != nil {
		return secret.Bytes{}, &ShareError{a.Holder, "it was not sealed to this request's key"}
	}
	return secret.NewBytes(plain), nil
}
