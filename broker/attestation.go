package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// maxEvidence is the largest evidence, in bytes.
const maxEvidence = 768 << 10

// Attest appraises evidence about the device of an instance. Evidence that is not authentic is refused and
// changes nothing; authentic evidence becomes the instance's passport, and ends the device's sessions when
// it is contraindicated.
func (b *Broker) Attest(ctx context.Context, in *bullav1.SignedRequest) (*bullav1.AttestReply, error) {
	now := b.now()
	who, err := b.request(ctx, now, bullav1.Broker_Attest_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	reply, err := twice(func() (*bullav1.AttestReply, error) { return b.appraise(ctx, now, who) })
	if err != nil {
		return nil, b.answer(ctx, who.caller, err)
	}
	reply.NextNonce = who.conn.next()
	return reply, nil
}

func (b *Broker) appraise(ctx context.Context, now time.Time, who request) (*bullav1.AttestReply, error) {
	var asked bullav1.AttestRequest
	if err := strictProto(who.payload, &asked); err != nil || len(asked.GetEvidence()) > maxEvidence {
		return nil, b.invalid(ctx, now, who, fmt.Sprintf("the payload is not an AttestRequest with at most %d bytes of evidence", maxEvidence))
	}
	recipient, err := certified(&asked)
	if err != nil {
		return nil, b.invalid(ctx, now, who, err.Error())
	}
	active, err := b.current(ctx)
	if err != nil {
		return nil, err
	}
	enrolled, unchanged, err := b.enrolled(ctx, now, who, &asked)
	if err != nil {
		return nil, err
	}
	enrolled = active.references.Anchored(enrolled)
	claims, err := b.verify(ctx, asked.GetEvidence(), attest.Binding{
		Nonce: who.nonce, Channel: who.conn.exporter, Principal: who.caller.id.String(), InstanceKey: who.instance.spki, RecipientKey: recipient,
	}, enrolled)
	switch {
	case errors.Is(err, attest.ErrBusy):
		return nil, refuse(codes.ResourceExhausted, checkAttestation, "too many attestations at once: try again")
	case errors.Is(err, attest.ErrUnauthentic):
		return nil, b.unauthentic(ctx, now, who, asked.GetKind(), err)
	case err != nil:
		return nil, err
	}
	result := attest.Appraise(claims, active.references, now)
	encoded, err := result.Encode()
	if err != nil {
		return nil, err
	}
	if err := b.admitResult(ctx, now, who, active, enrolled, unchanged, claims, result, encoded); err != nil {
		return nil, err
	}
	return &bullav1.AttestReply{Result: encoded}, nil
}

// enrolled returns the record of the device that the evidence is said to be about. An unknown device, one
// that was revoked and one that is not for this principal look the same to the caller. The appraisal holds only
// while the row stays as it was read.
func (b *Broker) enrolled(ctx context.Context, now time.Time, who request, asked *bullav1.AttestRequest) (attest.Device, []ledger.Precondition, error) {
	no := func(why string) (attest.Device, []ledger.Precondition, error) {
		return attest.Device{}, nil, b.unauthentic(ctx, now, who, asked.GetKind(), errors.New(why))
	}
	ids, err := b.candidates(ctx, asked)
	switch {
	case errors.Is(err, attest.ErrBusy):
		return attest.Device{}, nil, refuse(codes.ResourceExhausted, checkAttestation, "too many attestations at once: try again")
	case errors.Is(err, attest.ErrUnauthentic), errors.Is(err, errNoKind):
		return no(err.Error())
	case err != nil:
		return attest.Device{}, nil, err
	}
	row, seq, err := b.find(ctx, ids)
	if errors.Is(err, ledger.ErrNotFound) {
		return no("the device is not enrolled")
	}
	if err != nil {
		return attest.Device{}, nil, err
	}
	record, err := b.deviceRecord(ctx, row)
	if err != nil {
		return attest.Device{}, nil, err
	}
	switch {
	case !row.Revoked.IsZero():
		return no("the device was revoked")
	case !record.Allows(who.caller.id.String()):
		return no("the device is not enrolled for this principal")
	}
	return record, []ledger.Precondition{{RowKey: ledger.RowKey{Kind: ledger.KindDevice, Key: row.ID}, Seq: seq}}, nil
}

// deviceRecord is a device's enrolment record, with the highest counters that its evidence has shown since.
func (b *Broker) deviceRecord(ctx context.Context, row ledger.Device) (attest.Device, error) {
	record, err := attest.DecodeDevice(row.Record)
	if err != nil {
		return attest.Device{}, err
	}
	seen, _, err := b.ledger.DeviceCounter(ctx, row.ID)
	if errors.Is(err, ledger.ErrNotFound) {
		return record, nil
	}
	record.Seen = attest.Counters(seen.Counters)
	return record, err
}

// certified is the part of the recipient key that a device can certify: its elliptic-curve half.
func certified(asked *bullav1.AttestRequest) ([]byte, error) {
	if len(asked.GetRecipientKey()) == 0 {
		return nil, nil
	}
	suite, err := envelope.ParseSuite(asked.GetRecipientSuite())
	if err != nil {
		return nil, fmt.Errorf("unknown suite %q of the recipient key", clip(asked.GetRecipientSuite()))
	}
	key, err := envelope.ParseRecipientKey(suite, asked.GetRecipientKey())
	if err != nil {
		return nil, fmt.Errorf("the recipient key does not belong to suite %s", suite)
	}
	half, err := key.HardwareHalf()
	if err != nil {
		return nil, errors.New("the recipient key has no half that a device could certify")
	}
	return half.Bytes(), nil
}

// verify runs the verifier of the device's kind, a bounded number at a time.
func (b *Broker) verify(ctx context.Context, evidence []byte, binding attest.Binding, enrolled attest.Device) (claims attest.Claims, err error) {
	err = b.gate.Do(ctx, func() error {
		claims, err = b.verifiers[enrolled.Kind].Verify(ctx, evidence, binding, enrolled)
		return err
	})
	return claims, err
}

// unauthentic records evidence that proves nothing. The reason goes into the ledger and the log; the caller
// learns only that it was refused.
func (b *Broker) unauthentic(ctx context.Context, now time.Time, who request, kind string, cause error) error {
	b.limits.denied(who.caller.id.String(), now)
	ev := event.New(now, who.caller.id.String(), event.AttestationRefused{
		Principal: who.caller.id.String(), Instance: who.instance.thumbprint, Kind: clip(kind), Reason: clip(cause.Error()),
	})
	if err := b.record(ctx, ev); err != nil {
		return err
	}
	answer := refuse(codes.PermissionDenied, checkAttestation, "the evidence was refused: is the device enrolled for this principal? See `bulla device list` as an operator")
	answer.support, answer.nonce = ev.ID.String(), who.conn.next()
	return answer
}

// admitResult records an appraisal, and ends what relied on a device that fails it.
func (b *Broker) admitResult(ctx context.Context, now time.Time, who request, active *active, enrolled attest.Device, unchanged []ledger.Precondition, claims attest.Claims, result attest.Result, encoded []byte) error {
	counters := event.DeviceCounters(claims.Counters)
	failed, shared := result.Status == attest.Contraindicated, enrolled.Shared()
	commit := ledgerCommit(event.New(now, who.caller.id.String(), event.AttestationAppraised{
		Principal: who.caller.id.String(), Instance: who.instance.thumbprint, Device: enrolled.ID.String(),
		Result: encoded, Counters: &counters, Failed: failed && !shared, Revision: active.digest,
	}))
	commit.Require = unchanged
	if _, err := b.ledger.Commit(ctx, commit); err != nil || !failed {
		return err
	}
	const why = "the device failed its appraisal"
	if shared {
		return b.endInstance(ctx, now, who, enrolled.ID.String(), why)
	}
	return b.endDevice(ctx, enrolled.ID.String(), why)
}

// endDevice revokes the live sessions that were delivered on the word of a device. A caller who goes away does
// not end that: it may be the device.
func (b *Broker) endDevice(ctx context.Context, device, reason string) error {
	ctx = context.WithoutCancel(ctx)
	return b.named(ctx, selection{event.ByDevice, device}, func(page []session.Session) error {
		ids := make([]event.ID, len(page))
		for i, s := range page {
			ids[i] = s.ID
		}
		_, err := b.ledger.RevokeSessions(ctx, b.now(), ids, reason, event.ID{})
		return err
	})
}
