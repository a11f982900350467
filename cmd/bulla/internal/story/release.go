package story

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/broker/devserver"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// put puts a secret of each class.
func (t *teller) put(ctx context.Context) (string, error) {
	for name, class := range map[string]string{standardSecret: "standard", highSecret: "high", gatedSecret: "critical", splitSecret: "split"} {
		t.want[name] = random()
		_, err := bullav1.NewSecretsClient(t.operator.Conn()).PutSecret(ctx, &bullav1.PutSecretRequest{
			Name: name, Class: class, Value: t.want[name], RequestId: event.NewID(time.Now()).String(),
		})
		if err != nil {
			return "", fmt.Errorf("put %s: %w", name, client.FromStatus(err))
		}
	}
	return fmt.Sprintf("operator puts %s (class standard), %s (class high), %s (class critical) and %s (class split)", standardSecret, highSecret, gatedSecret, splitSecret), nil
}

// permit gets a secret for which the SVID is enough.
func (t *teller) permit(ctx context.Context) (string, error) {
	s, err := t.bare.Get(ctx, standardSecret)
	if err != nil {
		return "", err
	}
	defer s.Close()
	if err := t.same(s); err != nil {
		return "", err
	}
	if len(s.Attestation) != 0 {
		return "", errors.New("the delivery claims an attestation that never was")
	}
	return fmt.Sprintf("workload gets %s on its SVID alone: risk %d of 100, policy revision %d", standardSecret, s.RiskScore, s.PolicyRevision), nil
}

// same compares a delivered value with the one that was put.
func (t *teller) same(s *client.Secret) error {
	return s.Use(func(value []byte) error {
		if !bytes.Equal(value, t.want[s.Name]) {
			return fmt.Errorf("the value of %s is not the one that was put", s.Name)
		}
		return nil
	})
}

// deny shows that one without a grant learns nothing, and that a device is needed for the class high.
func (t *teller) deny(ctx context.Context) (string, error) {
	stranger, err := t.connect(ctx, t.server.Client("stranger"))
	if err != nil {
		return "", err
	}
	known, err := refusal(stranger.Get(ctx, standardSecret))
	if err != nil {
		return "", fmt.Errorf("stranger asks for %s: %w", standardSecret, err)
	}
	unknown, err := refusal(stranger.Get(ctx, noSecret))
	if err != nil {
		return "", fmt.Errorf("stranger asks for %s: %w", noSecret, err)
	}
	if known.Decision != "DENY" || len(known.Reasons) > 0 || known.Requires != nil || known.SupportID == "" {
		return "", fmt.Errorf("stranger learns more than that it is denied: %w", known)
	}
	unknown.SupportID = known.SupportID
	if known.Error() != unknown.Error() || known.Code != unknown.Code || unknown.Decision != "DENY" {
		return "", fmt.Errorf("stranger can tell a secret that exists (%w) from one that does not (%w)", known, unknown)
	}
	bare, err := refusal(t.bare.Get(ctx, highSecret))
	if err != nil {
		return "", fmt.Errorf("workload without a device asks for %s: %w", highSecret, err)
	}
	if bare.Decision != "STEP_UP" || !wantsAttestation(bare.Requires) {
		return "", fmt.Errorf("workload without a device gets another answer than a step-up: %w", bare)
	}
	return fmt.Sprintf("stranger hears the same word for %s, which exists, and %s, which does not; workload without a device gets no %s: %s",
		standardSecret, noSecret, highSecret, strings.Join(bare.Reasons, "; ")), nil
}

// refusal wants the answer to be a denial.
func refusal(s *client.Secret, err error) (*client.Refusal, error) {
	if s != nil {
		s.Close()
		return nil, errors.New("it was delivered")
	}
	var r *client.Refusal
	if !errors.As(err, &r) || !errors.Is(err, client.ErrDenied) {
		return nil, fmt.Errorf("another answer than a denial: %w", err)
	}
	return r, nil
}

func wantsAttestation(requires json.RawMessage) bool {
	var want struct {
		Attestation json.RawMessage `json:"attestation"`
	}
	return json.Unmarshal(requires, &want) == nil && len(want.Attestation) > 0
}

// stepUp gets the high secret with a device. The SDK does it in one call; what happened in it is read from the
// ledger, as the auditor.
func (t *teller) stepUp(ctx context.Context) (string, error) {
	from, err := t.nextIndex(ctx)
	if err != nil {
		return "", err
	}
	if t.got, err = t.workload.Get(ctx, highSecret); err != nil {
		return "", err
	}
	if t.seen, err = t.tail(ctx, from); err != nil {
		return "", err
	}
	denied, at := find(t.seen, func(b event.DecisionDenied) bool { return b.Principal == devserver.ID("workload") })
	if at < 0 || denied.Decision.Effect != "STEP_UP" {
		return "", errors.New("the ledger has no step-up before the delivery")
	}
	var result struct {
		Requires json.RawMessage `json:"requires"`
	}
	if err := json.Unmarshal(denied.Decision.Result, &result); err != nil || !wantsAttestation(result.Requires) {
		return "", errors.New("the step-up does not name an attestation")
	}
	return fmt.Sprintf("workload with its device asks for %s; the first answer (event %d) names what it would take: %s", highSecret, at, result.Requires), nil
}

// attest checks the appraisal that the SDK's evidence got.
func (t *teller) attest(context.Context) (string, error) {
	device := t.server.Device()
	appraised, at := find(t.seen, func(b event.AttestationAppraised) bool { return b.Device == device.ID.String() })
	if at < 0 {
		return "", errors.New("the ledger has no appraisal of the device")
	}
	var result struct {
		Status string `json:"status"`
		Score  int    `json:"trust_score"`
		Keys   struct {
			Recipient bool `json:"recipient_in_hardware"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(appraised.Result, &result); err != nil {
		return "", err
	}
	if device.Kind == attest.KindTPM2 {
		if result.Status != "affirming" || !result.Keys.Recipient {
			return "", fmt.Errorf("the TPM's evidence was appraised as %s, key in hardware: %t", result.Status, result.Keys.Recipient)
		}
		return fmt.Sprintf("a quote of the TPM over nonce, channel and key is appraised as %s, trust %d of 100 (event %d)", result.Status, result.Score, at), nil
	}
	if result.Status != "warning" {
		return "", fmt.Errorf("the evidence of a development device was appraised as %s, not as warning", result.Status)
	}
	hint := ""
	if device.Missing != nil {
		hint = "; for the real thing install the packages swtpm and swtpm-tools"
	}
	return fmt.Sprintf("a development device, which proves nothing about the machine, is appraised as %s, trust %d of 100 (event %d)%s",
		result.Status, result.Score, at, hint), nil
}

// deliver checks that the ledger has the delivery, after the attestation.
func (t *teller) deliver(context.Context) (string, error) {
	_, attested := find(t.seen, func(event.AttestationAppraised) bool { return true })
	issued, at := find(t.seen, func(b event.SessionIssued) bool { return b.Session.String() == t.got.SessionID })
	switch {
	case at < 0 || at != t.got.LogIndex || at < attested:
		return "", fmt.Errorf("the ledger has session %s at event %d, the reply says %d", t.got.SessionID, at, t.got.LogIndex)
	case issued.Device != t.server.Device().ID.String() || issued.EnvelopeDigest.String() != t.got.EnvelopeDigest || issued.Suite != t.got.Suite:
		return "", errors.New("the ledger's delivery is not the one that arrived")
	}
	return fmt.Sprintf("session %s in an envelope of suite %s, grade %s, until %s; in the log as event %d before it left",
		t.got.SessionID, t.got.Suite, t.got.Grade, t.got.Expires.Format(time.RFC3339), at), nil
}

// open checks the plaintext.
func (t *teller) open(context.Context) (string, error) {
	if err := t.same(t.got); err != nil {
		return "", err
	}
	where := "a key that lived for this delivery alone"
	if t.server.Device().Kind == attest.KindTPM2 {
		where = "a key that never leaves the TPM"
	}
	return fmt.Sprintf("it opens with %s, and holds what operator put", where), nil
}

// receipt checks that the opening is proven, and that the delivery is in the log.
func (t *teller) receipt(ctx context.Context) (string, error) {
	if t.got.Receipt != string(session.Confirmed) {
		return "", fmt.Errorf("the receipt is %s", t.got.Receipt)
	}
	s, err := bullav1.NewSessionsClient(t.operator.Conn()).GetSession(ctx, &bullav1.GetSessionRequest{Id: t.got.SessionID})
	if err != nil {
		return "", client.FromStatus(err)
	}
	if s.GetState() != string(session.Confirmed) {
		return "", fmt.Errorf("operator sees the session as %s", s.GetState())
	}
	if _, at := find(t.seen, func(b event.SessionConfirmed) bool { return b.Session.String() == t.got.SessionID && len(b.R) == 32 }); at < 0 {
		return "", errors.New("the ledger has no receipt")
	}
	head, err := t.got.VerifyInclusion(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("only who opened the envelope could sign it: the session is %s; workload has checked that its delivery is in the log of %d entries",
		s.GetState(), head.Size), nil
}

// gated shows a session whose every use the broker gives out, counts, and can end.
func (t *teller) gated(ctx context.Context) (string, error) {
	from, err := t.nextIndex(ctx)
	if err != nil {
		return "", err
	}
	s, err := t.workload.Get(ctx, gatedSecret, client.WithUses(3))
	if err != nil {
		return "", err
	}
	defer s.Close()
	for range 2 {
		if err := t.same(s); err != nil {
			return "", err
		}
	}
	left, _ := s.UsesLeft()
	if s.Grade != "gated" || s.UsesEnforcedBy != "broker" || left != 1 {
		return "", fmt.Errorf("the session is of grade %s with %d uses left by the count of the %s", s.Grade, left, s.UsesEnforcedBy)
	}
	_, err = bullav1.NewSessionsClient(t.security.Conn()).RevokeSession(ctx, &bullav1.RevokeSessionRequest{Id: s.SessionID, Reason: "the demo ends it between two uses"})
	if err != nil {
		return "", client.FromStatus(err)
	}
	if err := s.Use(func([]byte) error { return nil }); !errors.Is(err, client.ErrEnded) {
		return "", fmt.Errorf("a use after the revocation: %w", errors.Join(errors.New("want the answer that the session has ended"), err))
	}
	seen, err := t.tail(ctx, from)
	if err != nil {
		return "", err
	}
	used := 0
	for _, e := range seen {
		if b, ok := e.body.(event.SessionUsed); ok && b.Session.String() == s.SessionID {
			used++
		}
	}
	if used != 2 {
		return "", fmt.Errorf("the ledger has %d uses, want 2", used)
	}
	return fmt.Sprintf("the envelope of %s opens to ciphertext; each of 2 uses took a share that the broker gave out once and counted; "+
		"security revokes the session with 1 left, and that one is refused", gatedSecret), nil
}
