package ledger

import (
	"errors"
	"fmt"
	"slices"

	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/session"
)

// keptVersions bounds a secret's row: older retired versions stay in the events only.
const keptVersions = 256

// The names of grades as events spell them, the strongest exposure (the softest grade) last.
var exposures = []string{"proxied", "leased", "gated", "open"}

// ProjectionTx is what Project sees of a store's transaction. Get returns ErrNotFound for a row that is not
// there, and sees what was put before. Other errors are the store's own, and Project returns them as they are.
type ProjectionTx interface {
	Get(key RowKey) (Row, error)
	// Put writes a row; one with a Seq of 0 is removed.
	Put(row Row) error
	// PutSession puts a KindSession row and says what it is indexed by: of an erased session, by nothing.
	PutSession(s session.Session, row Row) error
	// DropBlob takes a blob out of the store that no event to come is about. It need not be there.
	DropBlob(key string) error
}

// Project applies the event with this index to the projections: the only way that they change. It is a pure
// function of tx, index and ev. An event that does not fit is refused with ErrTransition; what was put
// before the refusal has to be dropped.
//
// The sequence number of a row changes with every write, and with it fall the preconditions of decisions
// that relied on it. So nothing is written that does not change, and what changes often lies in rows of its
// own.
func Project(tx ProjectionTx, index int64, ev event.Event) error {
	if _, genesis := ev.Body.(event.Genesis); genesis != (index == 0) {
		return refuse("event %d is %s: the first event of a ledger is its genesis, and no other", index, ev.Body.EventType())
	}
	p := projection{tx, index + 1, ev.Time, ev.Subject}
	switch b := ev.Body.(type) {
	case event.SecretPut:
		return p.secretPut(b)
	case event.SessionIssued:
		return p.sessionIssued(b, ev)
	case event.SessionConfirmed:
		return p.session(b.Session, ev)
	case event.SessionRevoked:
		return p.session(b.Session, ev)
	case event.SessionClosed:
		return p.session(b.Session, ev)
	case event.SessionUsed:
		return p.session(b.Session, ev)
	case event.SessionOperated:
		return p.session(b.Session, ev)
	case event.SessionsExpired:
		return p.sessions(b.Sessions, ev)
	case event.SessionsRevoked:
		return p.sessions(b.Sessions, ev)
	case event.SessionsUnconfirmed:
		return p.sessions(b.Sessions, ev)
	case event.RoundOpened:
		return p.roundOpened(ev)
	case event.ShareIssued:
		return p.round(b.Round, ev)
	case event.RoundApproved:
		return p.round(b.Round, ev)
	case event.RoundRejected:
		return p.round(b.Round, ev)
	case event.RoundClosed:
		return p.round(b.Round, ev)
	case event.RoundExpired:
		return p.round(b.Round, ev)
	case event.DeviceEnrolled:
		return p.deviceEnrolled(b)
	case event.DeviceRevoked:
		return p.deviceRevoked(b)
	case event.AttestationAppraised:
		return p.appraised(b)
	case event.RevisionActivated:
		return p.revisionActivated(b)
	case event.KeyIntroduced:
		return p.keyIntroduced(b)
	case event.KeyRetired:
		return p.keyRetired(b)
	case event.SignalReceived:
		return p.signalReceived(b, ev)
	case event.SignalSettled:
		return p.signalSettled(b)
	case event.RevocationOrdered:
		return p.revocationOrdered(b, ev.ID)
	case event.RevocationCompleted:
		return p.revocationCompleted(b)
	case event.SessionsWiped:
		return p.sessionsWiped(b)
	case event.AttestationDemanded:
		return p.attestationDemanded(b)
	case event.RevisionSwept:
		return p.revisionSwept(b)
	case event.RevisionStaged:
		return p.revisionStaged(b)
	case event.RevisionProposed:
		return p.revisionProposed(b, ev.ID)
	case event.ShadowStarted:
		return p.shadowStarted(b)
	case event.ShadowEnded:
		return p.shadowEnded(b)
	case event.TrustObserved:
		return p.trustObserved(b)
	case event.DecisionDenied:
		return p.denied(b.Principal, b.Decision.Signals)
	case event.AttestationRefused:
		return p.denied(b.Principal, nil)
	case event.RefusalsCounted:
		return p.denied(b.Principal, nil)
	case event.RequestRefused:
		return p.denied(b.Principal, nil)
	case event.SubjectErased:
		return p.subjectErased(b, index)
	case event.HoldPlaced:
		return p.holdPlaced(b)
	case event.HoldReleased:
		return p.holdReleased(b)
	case event.Restored:
		return p.restored(b)
	case event.Genesis, event.ShadowDiffered, event.InstanceBound, event.OperationPermitted, event.SignalRefused:
		return nil // they tell, and change nothing
	}
	return refuse("no projection knows %T", ev.Body)
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrTransition}, args...)...)
}

// projection is one event being applied.
type projection struct {
	tx      ProjectionTx
	seq     int64
	time    event.Time
	subject string
}

// get reads a row; ok is false when there is none.
func get[T any](p projection, kind Kind, key string) (v T, ok bool, err error) {
	row, err := p.tx.Get(RowKey{kind, key})
	switch {
	case errors.Is(err, ErrNotFound):
		return v, false, nil
	case err != nil:
		return v, false, err
	}
	v, err = decode[T](row)
	return v, err == nil, err
}

func put[T any](p projection, kind Kind, key string, v T) error {
	value, err := event.Marshal(v)
	if err != nil {
		return refuse("row %s %q: %v", kind, key, err)
	}
	return p.tx.Put(NewRow(RowKey{kind, key}, value, p.seq))
}

func (p projection) secretPut(b event.SecretPut) error {
	if b.Name == "" || b.Class == "" || b.RecordID.IsZero() || b.CiphertextDigest.IsZero() {
		return refuse("secret %q: name, class, record and digest are needed", b.Name)
	}
	s, ok, err := get[Secret](p, KindSecret, b.Name)
	if err != nil {
		return err
	}
	if _, err := secret.ParseRecordedType(b.Type); err != nil {
		return refuse("secret %s: %w", b.Name, err)
	}
	last := uint32(0)
	if ok {
		newest := s.Versions[len(s.Versions)-1]
		if last = newest.Version; b.Type != newest.Type {
			return refuse("secret %s: its type %q can't become %q", b.Name, newest.Type, b.Type)
		}
	}
	if b.Version != last+1 {
		return refuse("secret %s: version %d does not follow version %d", b.Name, b.Version, last)
	}
	s.Name, s.Class = b.Name, b.Class
	s.Versions = slices.Clone(s.Versions)
	for i := range s.Versions {
		switch v := &s.Versions[i]; v.Stage {
		case secret.StageCurrent:
			v.Stage = secret.StagePrevious
		case secret.StagePrevious:
			v.Stage = secret.StageRetired
		}
	}
	s.Versions = append(s.Versions, SecretVersion{
		Version: b.Version, Stage: secret.StageCurrent, RecordID: b.RecordID, Class: b.Class,
		Owner: b.Owner, Policy: b.Policy, CiphertextDigest: b.CiphertextDigest, Created: p.time, Type: b.Type, PublicKey: b.PublicKey,
		Split: splitOf(b),
	})
	if n := len(s.Versions) - keptVersions; n > 0 {
		s.Versions = s.Versions[n:]
	}
	return put(p, KindSecret, b.Name, s)
}

// splitOf is who has to take part before the broker's copy can be read; nil: nobody.
func splitOf(b event.SecretPut) *event.Split {
	if b.Split == nil {
		return nil
	}
	return &b.Split.Split
}

func (p projection) sessionIssued(b event.SessionIssued, ev event.Event) error {
	s, err := session.Open(ev)
	if err != nil {
		return refuse("%w", err)
	}
	if b.Session.IsZero() || !p.time.Time().Before(b.Expires.Time()) {
		return refuse("session %s: it needs an id, and an end after its start", b.Session)
	}
	switch _, err := p.tx.Get(RowKey{KindSession, b.Session.String()}); {
	case err == nil:
		return refuse("session %s exists already", b.Session)
	case !errors.Is(err, ErrNotFound):
		return err
	}
	if err := p.expose(b); err != nil {
		return err
	}
	if err := p.rounds(b, ev); err != nil {
		return err
	}
	return p.putSession(s)
}

// expose records the strongest exposure of the secret, and of the version that was delivered. The first
// delivery of a kind writes it; the others find it so and leave the row.
func (p projection) expose(b event.SessionIssued) error {
	level := slices.Index(exposures, b.Grade)
	if level < 0 {
		return refuse("session %s: unknown grade %q", b.Session, b.Grade)
	}
	s, ok, err := get[Secret](p, KindSecret, b.Secret)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(s.Versions, func(v SecretVersion) bool { return v.Version == b.Version })
	if !ok || at < 0 {
		return refuse("session %s: there is no version %d of secret %q", b.Session, b.Version, b.Secret)
	}
	if level <= slices.Index(exposures, s.Versions[at].Exposure) { // then the secret's is no less
		return nil
	}
	s.Versions = slices.Clone(s.Versions)
	s.Versions[at].Exposure = b.Grade
	s.Exposure = exposures[max(level, slices.Index(exposures, s.Exposure))]
	return put(p, KindSecret, b.Secret, s)
}

func (p projection) putSession(s session.Session) error {
	value, err := event.Marshal(s)
	if err != nil {
		return refuse("session %s: %v", s.ID, err)
	}
	row := NewRow(RowKey{KindSession, s.ID.String()}, value, p.seq)
	row.remember(s)
	return p.tx.PutSession(s, row)
}

func (p projection) session(id event.ID, ev event.Event) error {
	s, ok, err := get[session.Session](p, KindSession, id.String())
	if errors.Is(err, errGone) {
		return nil // how it ended stands in the event that erased it
	}
	if err != nil {
		return err
	}
	if !ok {
		return refuse("there is no session %s", id)
	}
	if s, err = session.Apply(s, ev); err != nil {
		return refuse("%w", err)
	}
	return p.putSession(s)
}

func (p projection) sessions(ids []event.ID, ev event.Event) error {
	if len(ids) == 0 {
		return refuse("%s names no session", ev.Body.EventType())
	}
	for _, id := range ids {
		if err := p.session(id, ev); err != nil {
			return err
		}
	}
	return nil
}

func (p projection) deviceEnrolled(b event.DeviceEnrolled) error {
	_, ok, err := get[Device](p, KindDevice, b.Device)
	if err != nil {
		return err
	}
	if ok || b.Device == "" {
		return refuse("device %q is enrolled already, or has no id", b.Device)
	}
	return put(p, KindDevice, b.Device, Device{ID: b.Device, Record: b.Record, Enrolled: p.time})
}

func (p projection) deviceRevoked(b event.DeviceRevoked) error {
	d, ok, err := get[Device](p, KindDevice, b.Device)
	if err != nil {
		return err
	}
	if !ok || !d.Revoked.IsZero() {
		return refuse("device %q is not enrolled, or revoked already", b.Device)
	}
	d.Revoked, d.Reason = p.time, b.Reason
	return put(p, KindDevice, b.Device, d)
}

func (p projection) appraised(b event.AttestationAppraised) error {
	if b.Principal == "" || b.Instance == "" || b.Device == "" {
		return refuse("appraisal of instance %q of %q on device %q: all three are needed", b.Instance, b.Principal, b.Device)
	}
	if b.Counters != nil {
		// Two appraisals may come in another order than their quotes were made.
		seen, _, err := get[DeviceCounter](p, KindDeviceCounter, b.Device)
		if err != nil {
			return err
		}
		if err := put(p, KindDeviceCounter, b.Device, DeviceCounter{b.Device, seen.Counters.Later(*b.Counters), p.time}); err != nil {
			return err
		}
	}
	if b.Failed {
		if err := p.deviceFailed(b.Device); err != nil {
			return err
		}
	}
	return put(p, KindPassport, InstanceKey(b.Principal, b.Instance), Passport{b.Principal, b.Instance, b.Device, b.Result, p.time})
}

// deviceFailed marks the device, and with that every decision under way that relies on it falls.
func (p projection) deviceFailed(id string) error {
	d, ok, err := get[Device](p, KindDevice, id)
	if err != nil {
		return err
	}
	if !ok {
		return refuse("device %q is not enrolled", id)
	}
	d.Failed = p.time
	return put(p, KindDevice, id, d)
}

func (p projection) revisionActivated(b event.RevisionActivated) error {
	active, _, err := get[Revision](p, KindRevision, ActiveRevision)
	if err != nil {
		return err
	}
	if b.Digest.IsZero() || b.Sequence != active.Sequence+1 || b.Previous != active.Digest {
		return refuse("revision %d (%s after %q) does not follow the active one, %d (%q)", b.Sequence, b.Digest, b.Previous, active.Sequence, active.Digest)
	}
	proposal, _, err := get[Proposal](p, KindProposal, ActiveRevision)
	if err != nil {
		return err
	}
	first := !b.Proposal.IsZero() && proposal.ID == b.Proposal // whose report stands behind this as well
	r := Revision{
		Digest: b.Digest, Sequence: b.Sequence, Source: b.Source, Note: b.Note, Activated: p.time, By: p.subject, Rollback: b.Rollback, Key: b.Key,
		Report: b.Report, Kept: len(b.Text) > 0 || first && proposal.Kept, NoReport: b.NoReport,
	}
	if err := put(p, KindRevision, b.Digest.String(), r); err != nil {
		return err
	}
	if err := put(p, KindActivation, activationKey(b.Sequence), Activation{b.Sequence, b.Digest, p.seq - 1, p.time}); err != nil {
		return err
	}
	return put(p, KindRevision, ActiveRevision, r)
}

func (p projection) keyIntroduced(b event.KeyIntroduced) error {
	_, ok, err := get[Key](p, KindKey, b.KeyID)
	if err != nil {
		return err
	}
	if ok || b.KeyID == "" {
		return refuse("key %q was introduced before, or has no id", b.KeyID)
	}
	return put(p, KindKey, b.KeyID, Key{ID: b.KeyID, Use: b.Use, Public: b.Public, Introduced: p.time})
}

func (p projection) keyRetired(b event.KeyRetired) error {
	k, ok, err := get[Key](p, KindKey, b.KeyID)
	if err != nil {
		return err
	}
	if !ok || !k.Retired.IsZero() {
		return refuse("key %q was never introduced, or is retired already", b.KeyID)
	}
	k.Retired = p.time
	return put(p, KindKey, b.KeyID, k)
}
