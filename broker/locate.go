package broker

import (
	"context"
	"errors"
	"time"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
)

// candidates are the devices that evidence is said to be about: the one that the caller names, or where it names
// none those that the evidence itself could be of. Nothing is believed yet: whichever it is, it has to verify.
func (b *Broker) candidates(ctx context.Context, asked *bullav1.AttestRequest) (ids []attest.DeviceID, err error) {
	verifier := b.verifiers[attest.Kind(asked.GetKind())]
	locator, ok := verifier.(attest.Locator)
	if asked.GetDevice() != "" || !ok {
		id, err := attest.ParseDeviceID(asked.GetDevice())
		if err != nil || string(id.Kind()) != asked.GetKind() || verifier == nil {
			return nil, errNoKind
		}
		return []attest.DeviceID{id}, nil
	}
	err = b.gate.Do(ctx, func() (err error) {
		ids, err = locator.Locate(asked.GetEvidence())
		return err
	})
	return ids, err
}

var errNoKind = errors.New("no such kind of device")

// find returns the first of ids that is enrolled; where none is, ledger.ErrNotFound.
func (b *Broker) find(ctx context.Context, ids []attest.DeviceID) (row ledger.Device, seq int64, err error) {
	err = ledger.ErrNotFound
	for _, id := range ids {
		row, seq, err = b.ledger.Device(ctx, id.String())
		if !errors.Is(err, ledger.ErrNotFound) {
			return row, seq, err
		}
	}
	return row, seq, err
}

// endInstance revokes the live sessions of one instance that relied on a device which other machines are as well:
// that this one failed says nothing about them.
func (b *Broker) endInstance(ctx context.Context, now time.Time, who request, device, reason string) error {
	ctx = context.WithoutCancel(ctx)
	before := ""
	for {
		live, err := b.ledger.Sessions(ctx, ledger.SessionQuery{
			Principal: who.caller.id.String(), Device: device, Before: before, Max: 256,
			States: []string{string(session.Issued), string(session.Confirmed), string(session.Unconfirmed)},
		})
		if err != nil || len(live) == 0 {
			return err
		}
		for _, s := range live {
			before = s.ID.String()
			if s.Instance != who.instance.thumbprint {
				continue
			}
			err := b.record(ctx, event.New(now, s.Principal, event.SessionRevoked{Session: s.ID, Reason: reason}))
			if err != nil && !errors.Is(err, ledger.ErrTransition) {
				return err
			}
		}
	}
}
