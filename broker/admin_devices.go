package broker

import (
	"context"
	"errors"
	"slices"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
)

// devices is the service that enrols, shows and revokes devices.
type devices struct {
	bullav1.UnimplementedDevicesServer
	*Broker
}

// maxDevicePrincipals is how many principals one device may be enrolled for.
const maxDevicePrincipals = 64

// BeginEnrolment checks what the device says of itself, and challenges it to prove that it is that device.
func (s devices) BeginEnrolment(ctx context.Context, in *bullav1.BeginEnrolmentRequest) (*bullav1.BeginEnrolmentReply, error) {
	if len(in.GetRequest()) > maxEvidence || len(in.GetPrincipals()) > maxDevicePrincipals {
		return nil, wrong("the enrolment request is too large")
	}
	for _, p := range in.GetPrincipals() {
		if _, err := certs.ParseID(p); err != nil {
			return nil, wrong("%v", err)
		}
	}
	kind := in.GetKind()
	if !attest.Kind(kind).Valid() {
		kind = "" // what is no kind is no fact either, and could hold anything
	}
	op, err := s.read(ctx, policy.ActionDeviceEnroll, policy.Resource{Kind: policy.KindDevice, Device: &policy.Device{Kind: kind}})
	if err != nil {
		return nil, err
	}
	enroller := s.enrollers[attest.Kind(in.GetKind())]
	if enroller == nil {
		return nil, wrong("devices of kind %q are not accepted by this broker", clip(in.GetKind()))
	}
	active, err := s.current(ctx)
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	var challenge []byte
	var finish func(answer []byte) (attest.Device, error)
	err = s.gate.Do(ctx, func() (err error) {
		challenge, finish, err = enroller(in.GetRequest(), active.references, op.id.String(), op.now)
		return err
	})
	switch {
	case errors.Is(err, attest.ErrBusy):
		return nil, refuse(codes.ResourceExhausted, checkAttestation, "too many attestations at once: try again")
	case err != nil:
		return nil, wrong("the device can't be enrolled: %v", err)
	}
	id, err := s.pending.add(op, attest.Kind(in.GetKind()), slices.Compact(slices.Sorted(slices.Values(in.GetPrincipals()))), finish)
	if err != nil {
		return nil, err
	}
	return &bullav1.BeginEnrolmentReply{Enrolment: id, Challenge: challenge}, nil
}

// FinishEnrolment takes the device's answer; only whoever began may finish, once.
func (s devices) FinishEnrolment(ctx context.Context, in *bullav1.FinishEnrolmentRequest) (*bullav1.Device, error) {
	facts := policy.Resource{Kind: policy.KindDevice, Device: &policy.Device{Kind: s.pending.kind(in.GetEnrolment())}}
	op, err := s.authorise(ctx, policy.ActionDeviceEnroll, facts)
	if err != nil {
		return nil, err
	}
	begun, ok := s.pending.take(in.GetEnrolment(), op)
	if !ok {
		return nil, missing("there is no such enrolment: begin again")
	}
	record, err := begun.finish(in.GetAnswer())
	if err != nil {
		return nil, wrong("the device did not prove that it holds its endorsement key: %v", err)
	}
	record.Principals, record.EnrolledAt = begun.principals, event.NewTime(op.now).Time()
	encoded, err := record.Encode()
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	commit := ledgerCommit(event.New(op.now, op.id.String(), event.DeviceEnrolled{Device: record.ID.String(), Record: encoded, By: op.by()}))
	commit.Require = []ledger.Precondition{op.permit.active.unchanged()}
	if _, err := s.ledger.Commit(ctx, commit); err != nil {
		if errors.Is(err, ledger.ErrTransition) {
			return nil, wrong("device %s is enrolled already, or was revoked: a revoked device never comes back", record.ID)
		}
		return nil, s.answer(ctx, op.caller, err)
	}
	row, _, err := s.ledger.Device(ctx, record.ID.String())
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	return deviceReply(row), nil
}

// GetDevice shows one device.
func (s devices) GetDevice(ctx context.Context, in *bullav1.GetDeviceRequest) (*bullav1.Device, error) {
	row, facts, err := s.find(ctx, in.GetId())
	if err != nil {
		return nil, err
	}
	if _, err := s.read(ctx, policy.ActionDeviceShow, facts); err != nil {
		return nil, err
	}
	if row.ID == "" {
		return nil, missing("there is no device %s", in.GetId())
	}
	return deviceReply(row), nil
}

func (s devices) find(ctx context.Context, text string) (ledger.Device, policy.Resource, error) {
	id, err := attest.ParseDeviceID(text)
	if err != nil {
		return ledger.Device{}, policy.Resource{}, wrong("%v", err)
	}
	facts := policy.Resource{Kind: policy.KindDevice, Device: &policy.Device{ID: id.String(), Kind: string(id.Kind())}}
	row, _, err := s.ledger.Device(ctx, id.String())
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return ledger.Device{}, facts, s.unavailable(err)
	}
	return row, facts, nil
}

// ListDevices lists devices by id.
func (s devices) ListDevices(ctx context.Context, in *bullav1.ListDevicesRequest) (*bullav1.ListDevicesReply, error) {
	op, err := s.read(ctx, policy.ActionDeviceList, policy.Resource{Kind: policy.KindDevice})
	if err != nil {
		return nil, err
	}
	limit := page(in.GetLimit())
	rows, err := s.ledger.Devices(ctx, in.GetAfter(), limit)
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	out := new(bullav1.ListDevicesReply)
	for _, row := range rows {
		reply := deviceReply(row)
		facts := policy.Resource{Kind: policy.KindDevice, Device: &policy.Device{ID: row.ID, Kind: reply.GetKind()}}
		if s.shows(ctx, op, policy.ActionDeviceShow, facts) {
			out.Devices = append(out.Devices, reply)
		}
	}
	if len(rows) == limit {
		out.Next = rows[limit-1].ID
	}
	return out, nil
}

// RevokeDevice ends a device for good, and with it the sessions that were delivered on its word.
func (s devices) RevokeDevice(ctx context.Context, in *bullav1.RevokeDeviceRequest) (*bullav1.Device, error) {
	if in.GetReason() == "" || len(in.GetReason()) > maxReason {
		return nil, wrong("a revocation needs a reason of 1 to %d bytes", maxReason)
	}
	return twice(func() (*bullav1.Device, error) { return s.revoke(ctx, in) })
}

func (s devices) revoke(ctx context.Context, in *bullav1.RevokeDeviceRequest) (*bullav1.Device, error) {
	row, facts, err := s.find(ctx, in.GetId())
	if err != nil {
		return nil, err
	}
	op, err := s.authorise(ctx, policy.ActionDeviceRevoke, facts)
	if err != nil {
		return nil, err
	}
	if row.ID == "" {
		if err := s.permitted(ctx, op); err != nil {
			return nil, err
		}
		return nil, missing("there is no device %s", in.GetId())
	}
	commit := ledgerCommit(event.New(op.now, op.id.String(), event.DeviceRevoked{Device: row.ID, Reason: in.GetReason(), By: op.by()}))
	commit.Require = []ledger.Precondition{op.permit.active.unchanged()}
	_, err = s.ledger.Commit(ctx, commit)
	switch {
	case errors.Is(err, ledger.ErrTransition): // it was revoked before
		if err := s.permitted(ctx, op); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, s.answer(ctx, op.caller, err)
	}
	if err := s.endDevice(ctx, row.ID, "its device was revoked: "+in.GetReason()); err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	row, _, err = s.ledger.Device(ctx, row.ID)
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	return deviceReply(row), nil
}

func deviceReply(d ledger.Device) *bullav1.Device {
	id, _ := attest.ParseDeviceID(d.ID)
	return &bullav1.Device{Id: d.ID, Kind: string(id.Kind()), Record: d.Record, EnrolledAt: stamp(d.Enrolled), RevokedAt: stamp(d.Revoked), Reason: d.Reason}
}
