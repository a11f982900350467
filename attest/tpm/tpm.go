// Package tpm verifies evidence of TPM 2.0 devices, and enrols them.
//
// Enrolment ([BeginEnrolment], [Pending.Finish]) makes sure that an attestation key lives in the same genuine
// TPM as an endorsement key that a maker in the reference values certified, or that their allow-list names.
// Verification ([Verifier]) takes the attestation key from the enrolment record, never from the evidence, and
// checks, in this order: sizes; the quote's signature, type and qualifying data (attest.Binding.Digest, so
// nonce, channel, principal and keys at once); the PCR values against the quoted digest; the event log, which
// must replay to PCRs 0 to 7; the certification of keys that are said to live in the TPM. What comes out are
// claims; whether they are good enough is for attest.Appraise to say.
//
// It opens no connection: no certificate, revocation list or anything else is fetched from where evidence says
// (missing intermediates are sent by the device). It keeps no state. It never uses event data whose hash is
// not the digest that was measured: the rest of an event log is hearsay.
package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm/evidence"
)

// Verifier verifies TPM evidence. The zero value is ready.
type Verifier struct{}

// Kind implements attest.Verifier.
func (Verifier) Kind() attest.Kind { return attest.KindTPM2 }

// Verify implements attest.Verifier. All its errors, but for the end of ctx, wrap attest.ErrUnauthentic.
func (Verifier) Verify(ctx context.Context, ev []byte, b attest.Binding, dev attest.Device) (attest.Claims, error) {
	if err := ctx.Err(); err != nil {
		return attest.Claims{}, fmt.Errorf("verify TPM evidence: %w", err)
	}
	if err := b.For(attest.KindTPM2, dev); err != nil {
		return attest.Claims{}, unauthentic("%w", err)
	}
	parsed, err := evidence.Parse(ev)
	if err != nil {
		return attest.Claims{}, unauthentic("%w", err)
	}
	digest := b.Digest()
	claims, err := verify(parsed, digest[:], dev)
	if err != nil {
		return attest.Claims{}, err
	}
	claims.Binding, claims.EvidenceDigest = b, sha256.Sum256(ev)
	if err := ctx.Err(); err != nil {
		return attest.Claims{}, fmt.Errorf("verify TPM evidence: %w", err)
	}
	return claims, keys(&claims, parsed, b, digest[:], dev)
}

// verify checks quote, PCRs and event log; extra is what the quote must have been made over.
func verify(ev evidence.Evidence, extra []byte, dev attest.Device) (attest.Claims, error) {
	ak, err := enrolledAK(dev)
	if err != nil {
		return attest.Claims{}, err
	}
	q, err := checkQuote(ak, ev, extra)
	if err != nil {
		return attest.Claims{}, err
	}
	boot, err := replay(ev.EventLog, ev.PCRs)
	if err != nil {
		return attest.Claims{}, err
	}
	counters := attest.Counters{ResetCount: q.ClockInfo.ResetCount, RestartCount: q.ClockInfo.RestartCount, Clock: q.ClockInfo.Clock}
	return attest.Claims{
		Kind: attest.KindTPM2, Device: dev, Firmware: q.FirmwareVersion, BootFirmware: boot.firmware,
		Features: boot.features, PCRs: ev.PCRs, Counters: counters, ClockSafe: bool(q.ClockInfo.Safe),
		RolledBack: dev.Seen.RolledBack(counters),
	}, nil
}

// enrolledAK takes the attestation key from the record and makes sure that it is still one.
func enrolledAK(dev attest.Device) (*signer, error) {
	public, err := parsePublic(dev.AKPublic)
	if err != nil {
		return nil, unauthentic("attestation key of the enrolment: %w", err)
	}
	ak, err := checkAK(public)
	if err != nil {
		return nil, unauthentic("attestation key of the enrolment: %w", err)
	}
	if !bytes.Equal(ak.name, dev.AKName) {
		return nil, unauthentic("the enrolment's attestation key has another name than the enrolment says")
	}
	return ak, nil
}

// keys checks the certification of the instance and recipient keys, where there is one.
func keys(c *attest.Claims, ev evidence.Evidence, b attest.Binding, extra []byte, dev attest.Device) error {
	ak, err := enrolledAK(dev)
	if err != nil {
		return err
	}
	if !ev.Instance.IsZero() {
		if err := checkInstance(ak, ev.Instance, b.InstanceKey, extra); err != nil {
			*c = attest.Claims{}
			return unauthentic("instance key: %w", err)
		}
		c.InstanceInTPM = true
	}
	if !ev.Recipient.IsZero() {
		if err := checkRecipient(ak, ev.Recipient, b.RecipientKey, extra); err != nil {
			*c = attest.Claims{}
			return unauthentic("recipient key: %w", err)
		}
		c.RecipientInTPM = true
	}
	return nil
}

// unauthentic makes an error that wraps attest.ErrUnauthentic.
func unauthentic(format string, args ...any) error {
	return fmt.Errorf("%w: %w", attest.ErrUnauthentic, fmt.Errorf(format, args...))
}

// decode unmarshals one TPM structure that must fill b in its only form: no bytes after it, no second spelling.
// The library works by reflection on bytes from outside, so a panic in it becomes an error.
func decode[T tpm2.Marshallable, P interface {
	*T
	tpm2.Unmarshallable
}](b []byte, limit int, what string,
) (v *T, err error) {
	defer func() {
		if p := recover(); p != nil {
			v, err = nil, fmt.Errorf("%s can't be decoded: %v", what, p)
		}
	}()
	if len(b) == 0 || len(b) > limit {
		return nil, fmt.Errorf("%s of %d bytes, want 1 to %d", what, len(b), limit)
	}
	p, err := tpm2.Unmarshal[T, P](b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if !bytes.Equal(tpm2.Marshal(P(p)), b) {
		return nil, fmt.Errorf("%s is not in canonical form", what)
	}
	return p, nil
}
