package broker

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/keyring"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/secret/keys"
)

// ask is what a Deliver call asks for.
type ask struct {
	name      secret.Name
	version   secret.Version        // 0: the current one
	recipient envelope.RecipientKey // and the suite
	grade     string
	maxUses   uint32
	ttl       time.Duration  // 0: as policy says
	operation keys.Operation // what a session's key is to do; "" for a delivery
	shown     []*bullav1.Factor
	factors   []policy.Factor // verified, of what was shown
}

// maxAsk is the largest payload of a delivery without the tokens that it shows, in bytes: a name, a hybrid key, a few
// numbers, and room. The format lets a field stand there again and again, and the payload goes on the record with a
// round, and to all who take part in it.
const maxAsk = 4 << 10

// ask parses the payload strictly.
func (b *Broker) ask(ctx context.Context, now time.Time, who request) (ask, error) {
	bad := func(format string, args ...any) (ask, error) {
		return ask{}, b.invalid(ctx, now, who, fmt.Sprintf(format, args...))
	}
	var in bullav1.DeliverRequest
	if err := strictProto(who.payload, &in); err != nil {
		return bad("the payload is not a DeliverRequest")
	}
	size := len(who.payload)
	for _, f := range in.GetFactors() {
		size -= len(f.GetToken())
	}
	if size > maxAsk {
		return bad("the payload is larger than a DeliverRequest can be")
	}
	name, err := secret.ParseName(in.GetName())
	if err != nil {
		return bad("%v", err)
	}
	suite, err := envelope.ParseSuite(in.GetSuite())
	if err != nil {
		return bad("unknown suite %q: use HPKE-9-KE, HPKE-8-KE or HPKE-7-KE", clip(in.GetSuite()))
	}
	recipient, err := envelope.ParseRecipientKey(suite, in.GetRecipientKey())
	if err != nil {
		return bad("the recipient key does not belong to suite %s", suite)
	}
	switch envelope.Grade(in.GetGrade()) {
	case "", envelope.GradeOpen, envelope.GradeGated, envelope.GradeProxied, envelope.GradeLeased:
	default:
		return bad("unknown grade %q: use open, gated, proxied or leased", clip(in.GetGrade()))
	}
	return ask{
		name: name, version: secret.Version(in.GetVersion()), recipient: recipient,
		grade: in.GetGrade(), maxUses: in.GetMaxUses(), ttl: time.Duration(in.GetTtlSeconds()) * time.Second,
		shown: in.GetFactors(),
	}, nil
}

// sideBySide is how far apart calls that run at the same time may have begun.
const sideBySide = 30 * time.Second

// device is the appraised device of an instance; the zero value stands for none.
type device struct {
	id      string
	result  attest.Result
	encoded []byte
	rows    []ledger.Precondition
}

// notBefore is now, or the moment of the appraisal where that is a little later: two calls of an instance run
// side by side, and an appraisal must not look like one from the future to the other. More than a little is a
// clock that went back, and stays as it is.
func (d device) notBefore(now time.Time) time.Time {
	if ahead := d.result.IssuedAt.Sub(now); d.id != "" && ahead > 0 && ahead <= sideBySide {
		return d.result.IssuedAt
	}
	return now
}

// unchanged are the rows that the commit of a delivery that relies on the device demands.
func (d device) unchanged() []ledger.Precondition { return d.rows }

// passport returns the newest appraisal of this very instance, if its device is still enrolled. It is void when
// the device has failed an appraisal since, whoever's, and when it was made with other reference values.
func (b *Broker) passport(ctx context.Context, active *active, who request) (device, error) {
	key := ledger.RowKey{Kind: ledger.KindPassport, Key: ledger.InstanceKey(who.caller.id.String(), who.instance.thumbprint)}
	pass, seq, err := b.ledger.Passport(ctx, key.Key)
	if errors.Is(err, ledger.ErrNotFound) {
		return device{}, nil
	}
	if err != nil {
		return device{}, err
	}
	enrolled, deviceSeq, err := b.ledger.Device(ctx, pass.Device)
	if err != nil {
		return device{}, err
	}
	result, err := attest.DecodeResult(pass.Result)
	if err != nil {
		return device{}, err
	}
	references := active.references.Digest()
	switch {
	case !enrolled.Revoked.IsZero(), !result.For(who.caller.id.String(), who.instance.spki),
		pass.At.Time().Before(enrolled.Failed.Time()), result.ReferenceDigest != hex.EncodeToString(references[:]):
		return device{}, nil
	}
	return device{
		id: pass.Device, result: result, encoded: pass.Result,
		rows: []ledger.Precondition{{RowKey: key, Seq: seq}, {RowKey: ledger.RowKey{Kind: ledger.KindDevice, Key: pass.Device}, Seq: deviceSeq}},
	}, nil
}

// target is the secret that is asked for; exists is false where there is none.
type target struct {
	name    string
	exists  bool
	secret  ledger.Secret
	version ledger.SecretVersion
	seq     int64
	orders  barrier // revocations that touch it and whom it is for
}

func (t target) unchanged() ledger.Precondition {
	return ledger.Precondition{RowKey: ledger.RowKey{Kind: ledger.KindSecret, Key: t.name}, Seq: t.seq}
}

// target looks the secret up. A secret or a version that does not exist is a target too: policy decides
// what its caller is told.
func (b *Broker) target(ctx context.Context, asked ask) (target, error) {
	s, seq, err := b.ledger.Secret(ctx, asked.name.String())
	if errors.Is(err, ledger.ErrNotFound) {
		return target{name: asked.name.String()}, nil
	}
	if err != nil {
		return target{}, err
	}
	for _, v := range s.Versions {
		if asked.version == 0 && v.Stage == secret.StageCurrent || asked.version != 0 && v.Version == uint32(asked.version) {
			return target{name: s.Name, exists: true, secret: s, version: v, seq: seq}, nil
		}
	}
	return target{name: s.Name, seq: seq}, nil
}

// decide asks a revision, the active one. A caller who went away in the meantime gets no verdict: it would count
// against somebody who was denied nothing.
func (b *Broker) decide(ctx context.Context, active *active, s policy.Signals, said external) (verdict, error) {
	v, err := b.judge(ctx, active, s, said)
	if err == nil {
		b.watched(active, s, v.decision)
	}
	return v, err
}

// judge is decide for what is nobody's call: no shadow looks at it.
func (b *Broker) judge(ctx context.Context, active *active, s policy.Signals, said external) (verdict, error) {
	d := b.engine.Decide(ctx, active.revision, s)
	if err := ctx.Err(); err != nil {
		return verdict{}, err
	}
	if d.Fault != "" {
		b.logger.Warn("policy gave no usable answer", "action", s.Action, "revision", active.digest.String(), "fault", d.Fault)
	}
	return verdict{decision: d, signals: s, active: active, said: said}, nil
}

// deny records a DENY or STEP_UP and says as much as the caller may know.
func (b *Broker) deny(ctx context.Context, now time.Time, who request, v *verdict, t target) error {
	if v.decision.Effect == policy.Deny { // a step-up is a question, and no mark against the caller
		b.history.denied(who.caller.id.String(), now)
	}
	answer, err := b.denial(ctx, now, who.caller, who.id, v, "")
	if err != nil {
		return err
	}
	if !t.exists && v.decision.Covered {
		answer.code, answer.text, answer.decision = codes.NotFound, "there is no secret "+t.name+", or not this version of it", ""
		answer.reasons, answer.requires = nil, nil
	}
	return answer
}

// unmet refuses a permit whose obligations this broker can't keep: a limit that is not kept is no limit.
func (b *Broker) unmet(ctx context.Context, now time.Time, who request, p permit, unmet string) error {
	answer, err := b.denial(ctx, now, who.caller, who.id, &p.verdict, unmet)
	if err != nil {
		return err
	}
	answer.check, answer.decision, answer.requires = checkGrade, string(policy.Deny), nil
	if p.decision.Covered {
		answer.reasons = []string{unmet}
	}
	return answer
}

// denial records a verdict that releases nothing and makes the caller's answer of it.
func (b *Broker) denial(ctx context.Context, now time.Time, who caller, requestID string, v *verdict, unmet string) (*refusal, error) {
	b.limits.denied(who.id.String(), now)
	b.metrics.denials.Inc()
	ev := event.New(now, who.id.String(), event.DecisionDenied{Principal: who.id.String(), Unmet: unmet, Decision: v.record(requestID)})
	if err := b.record(ctx, ev); err != nil {
		return nil, err
	}
	answer := refuse(codes.PermissionDenied, checkPolicy, constantDenial)
	answer.support, answer.nonce, answer.decision = ev.ID.String(), who.conn.next(), string(policy.Deny)
	if v.decision.Covered {
		answer.decision, answer.reasons = string(v.decision.Effect), v.decision.Reasons
		answer.requires = encodeRequires(v.decision.Requires)
	}
	return answer, nil
}

// value opens the secret version from rest. What the row says is bound into the ciphertext, so an edited
// row does not open.
//
// The class that policy judged is the secret's, which is always that of its newest version. That one has to open
// under it as well, or else an edited class would let an older version out.
func (b *Broker) value(ctx context.Context, t target) (secret.Bytes, error) {
	newest := t.secret.Versions[len(t.secret.Versions)-1]
	if newest.Class != t.secret.Class {
		return secret.Bytes{}, fmt.Errorf("secret %s: %w: its class is not that of its newest version", t.name, ledger.ErrTampered)
	}
	if newest.Version != t.version.Version {
		vouching, err := b.openVersion(ctx, t.name, newest)
		if err != nil {
			return secret.Bytes{}, err
		}
		vouching.Zero()
	}
	return b.openVersion(ctx, t.name, t.version)
}

func (b *Broker) openVersion(ctx context.Context, name string, v ledger.SecretVersion) (secret.Bytes, error) {
	sealed, err := b.ledger.Blob(ctx, ledger.SecretBlob(v.RecordID), v.CiphertextDigest)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("read secret %s version %d: %w", name, v.Version, err)
	}
	plain, err := b.ring.Open(keyring.PurposeSecret, sealed, secretAAD(name, v).Bytes())
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("open secret %s version %d from rest (its row was changed, or the keyring is another one): %w", name, v.Version, err)
	}
	return secret.NewBytes(plain), nil
}

func secretAAD(name string, v ledger.SecretVersion) keyring.SecretAAD {
	return keyring.SecretAAD{
		RecordID: v.RecordID.String(), Name: name, Version: uint64(v.Version), Class: v.Class, PolicyDigest: v.Policy, Owner: v.Owner,
		Type: v.Type,
	}
}

// seal makes the envelope. It takes terms, which only a permit gives.
func (b *Broker) seal(now time.Time, who request, asked ask, d device, t target, terms terms, value secret.Bytes) (sealed, error) {
	model, err := parseDigest(terms.decision.ModelDigest)
	if err != nil {
		return sealed{}, err
	}
	var attestation envelope.Digest
	if len(d.encoded) > 0 {
		attestation = envelope.DigestOf(d.encoded)
	}
	session := event.NewID(now).String()
	value, dealt, err := b.deal(now, who, session, t, terms, value) // split, where others have to take part
	if err != nil {
		return sealed{}, err
	}
	var manifest envelope.Digest
	if dealt != nil {
		manifest = dealt.manifest
	}
	switch terms.grade {
	case envelope.GradeProxied:
		if value, err = described(t, value); err != nil { // nothing else of it is sealed
			return sealed{}, err
		}
	case envelope.GradeGated:
		shares, err := b.epochs.Shares(now, terms.epoch, session)
		if err != nil {
			return sealed{}, err
		}
		if value, err = envelope.Gate(value, session, terms.uses, func(number uint32) envelope.Share { return shares(number) }); err != nil {
			return sealed{}, err
		}
		defer value.Zero()
	}
	out, err := envelope.Seal(envelope.SealInput{
		Recipient: asked.recipient, Secret: value,
		Context: envelope.Context{
			Session: session, Request: who.id, Issuer: b.id.String(), Subject: who.caller.id.String(),
			Instance: who.instance.thumbprint, Audience: who.caller.id.String(), Secret: b.ring.NameHash(t.name),
			SecretVersion: uint64(t.version.Version), IssuedAt: now.Unix(), NotBefore: now.Unix(), Expires: terms.expires.Unix(),
			Grade: terms.grade, Uses: uint64(terms.uses), UsesEnforcedBy: terms.enforcer(), Offline: uint64(terms.offline), Places: terms.places,
			Revision: envelope.Digest(terms.active.digest), RiskScore: terms.decision.Risk.Score, RiskModel: model,
			Attestation: attestation, Channel: who.conn.exporter, LogOrigin: b.origin, Split: manifest,
		},
	}, b.signer)
	return sealed{out, dealt}, err
}

// strictProto unmarshals a message and refuses fields that it does not know.
func strictProto(data []byte, m proto.Message) error {
	if err := (proto.UnmarshalOptions{RecursionLimit: 16}).Unmarshal(data, m); err != nil {
		return err
	}
	if len(m.ProtoReflect().GetUnknown()) > 0 {
		return errors.New("unknown fields")
	}
	return nil
}
