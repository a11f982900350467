// Package timeline tells the story of one session from the events of a ledger: what was asked before it, the delivery and
// why it was permitted, the receipt, each use, what was decided again, and how it ended.
//
// It picks events and puts them into words. It judges nothing, and whether the events are those of the log is for
// package audit to say.
package timeline

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
)

const (
	// Before is how long before a delivery its story begins, and After how long after its end it goes on.
	Before = 20 * time.Minute
	After  = time.Hour
)

// Subject is the session that the story is about.
type Subject struct {
	Session             event.ID
	Principal, Instance string
	Secret, Device      string
	Revision            event.Digest
	Approval            event.ID // round of approvals that it consumed; zero: none
	Issued, Expires     time.Time
}

// SubjectOf is the session that a delivery opens.
func SubjectOf(e event.Event, b event.SessionIssued) Subject {
	return Subject{
		Session: b.Session, Principal: b.Principal, Instance: b.Instance, Secret: b.Secret, Device: b.Device, Revision: b.Decision.Revision,
		Approval: b.Approval, Issued: e.Time.Time(), Expires: b.Expires.Time(),
	}
}

// Entry is one thing that happened.
type Entry struct {
	Index   int64
	Event   string // id
	Time    time.Time
	Kind    string
	What    string
	Details []string
}

// Teller picks the events of a session's story. Events come in the order of their indexes.
type Teller struct {
	of     Subject
	orders map[event.ID]bool // revocations that touch it
	ended  time.Time
}

// New returns a teller.
func New(of Subject) *Teller { return &Teller{of: of, orders: map[event.ID]bool{}} }

// Over says that an event of this time, and all that come later, are not part of the story.
func (t *Teller) Over(at time.Time) bool {
	end := t.of.Expires
	if !t.ended.IsZero() {
		end = t.ended
	}
	return at.After(end.Add(After))
}

// Add puts an event into words, if it is part of the story. One without a body was erased, and is part of none.
func (t *Teller) Add(index int64, e event.Event) (Entry, bool) {
	at := e.Time.Time()
	if e.Body == nil || at.Before(t.of.Issued.Add(-Before)) || t.Over(at) {
		return Entry{}, false
	}
	what, details := t.tell(e)
	if what == "" {
		return Entry{}, false
	}
	return Entry{Index: index, Event: e.ID.String(), Time: at, Kind: string(e.Body.EventType()), What: what, Details: details}, true
}

func (t *Teller) tell(e event.Event) (string, []string) {
	switch b := e.Body.(type) {
	case event.SessionIssued:
		if b.Session == t.of.Session {
			return t.issued(b)
		}
	case event.DecisionDenied:
		return t.denied(b)
	case event.SessionConfirmed:
		if b.Session == t.of.Session {
			return "the receipt came: the envelope was opened", nil
		}
	case event.SessionUsed:
		if b.Session == t.of.Session {
			what := fmt.Sprintf("share %d was given out", b.Number)
			if b.Ahead {
				what += ", ahead of its use"
			}
			return what, decided(b.Decision)
		}
	case event.SessionOperated:
		if b.Session == t.of.Session {
			return "the broker did for it: " + b.Operation, decided(b.Decision)
		}
	case event.AttestationAppraised:
		if b.Principal == t.of.Principal && b.Instance == t.of.Instance {
			return t.appraised(b)
		}
	case event.AttestationDemanded:
		if b.Principal == t.of.Principal && b.Instance == t.of.Instance && b.Device == t.of.Device {
			return "a fresh attestation is demanded by " + b.By.String(), []string{b.Reason}
		}
	case event.Restored:
		if !e.Time.Time().Before(t.of.Issued) {
			return fmt.Sprintf("the ledger was restored from a backup: incarnation %d", b.Incarnation), nil
		}
	case event.RequestRefused:
		if b.Target == t.of.Session.String() {
			return "a call about it was refused: " + b.Check, []string{"by " + b.Principal, b.Method}
		}
	}
	if what, details := t.round(e.Body); what != "" {
		return what, details
	}
	return t.end(e)
}

// issued is the delivery itself.
func (t *Teller) issued(b event.SessionIssued) (string, []string) {
	details := []string{
		fmt.Sprintf("%s version %d, class %s, to %s", b.Secret, b.Version, b.Class, b.Principal),
		"request " + b.Decision.RequestID + ", instance " + b.Instance,
		fmt.Sprintf("grade %s, suite %s, until %s, envelope %s", b.Grade, b.Suite, b.Expires, b.EnvelopeDigest),
	}
	if b.Uses > 0 {
		details = append(details, fmt.Sprintf("%d uses", b.Uses))
	}
	if b.Place != nil {
		details = append(details, "to "+b.Place.Country)
	}
	if b.Custody != nil {
		details = append(details, fmt.Sprintf("to be read with the shares of %d of %s", b.Custody.Threshold, strings.Join(b.Custody.Holders, ", ")))
	}
	if !b.Approval.IsZero() {
		details = append(details, "approved in round "+b.Approval.String())
	}
	return "delivered", append(details, decided(b.Decision)...)
}

// denied is a refusal of the same instance about the same secret.
func (t *Teller) denied(b event.DecisionDenied) (string, []string) {
	s, err := policy.ParseSignals(b.Decision.Signals)
	if err != nil || b.Principal != t.of.Principal || s.Instance != t.of.Instance || s.Resource.Secret == nil || s.Resource.Secret.Name != t.of.Secret {
		return "", nil
	}
	what := "asked for the secret, and denied"
	switch {
	case b.Unmet != "":
		what = "asked for the secret, and refused: " + b.Unmet
	case b.Decision.Effect == string(policy.StepUp):
		what = "asked for the secret, and asked for more"
	}
	return what, append([]string{"request " + b.Decision.RequestID}, decided(b.Decision)...)
}

func (t *Teller) appraised(b event.AttestationAppraised) (string, []string) {
	var r struct {
		Status     string `json:"status"`
		TrustScore int    `json:"trust_score"`
	}
	_ = json.Unmarshal(b.Result, &r) // what is not there is not said
	what := "its device was attested"
	if b.Failed {
		what = "its device failed its attestation"
	}
	return what, []string{fmt.Sprintf("device %s: %s, score %d", b.Device, r.Status, r.TrustScore)}
}

// round is what custodians or approvers did for it.
func (t *Teller) round(body event.Body) (string, []string) {
	mine := func(id event.ID) bool { return id == t.of.Session || !id.IsZero() && id == t.of.Approval }
	switch b := body.(type) {
	case event.RoundOpened:
		if mine(b.Round) {
			return fmt.Sprintf("%d of role %s are asked to approve", b.Count, b.Role), decided(b.Decision)
		}
	case event.ShareIssued:
		if mine(b.Round) {
			return "a holder got its share: " + b.Holder, decided(b.Decision)
		}
	case event.RoundApproved:
		if mine(b.Round) {
			return "approved by " + b.Holder, decided(b.Decision)
		}
	case event.RoundRejected:
		if mine(b.Round) {
			return "rejected by " + b.Holder + ": " + b.Reason, decided(b.Decision)
		}
	case event.RoundClosed:
		if mine(b.Round) {
			return "the requester closed the round", []string{fmt.Sprintf("combined: %t", b.Combined), "bad shares: " + orNone(strings.Join(b.Bad, ", "))}
		}
	case event.RoundExpired:
		if mine(b.Round) {
			return "the round is over", nil
		}
	}
	return "", nil
}

// end is what ended it, or would have.
func (t *Teller) end(e event.Event) (string, []string) {
	over := func(what string, details ...string) (string, []string) {
		if t.ended.IsZero() {
			t.ended = e.Time.Time()
		}
		return what, details
	}
	id := t.of.Session
	switch b := e.Body.(type) {
	case event.SessionRevoked:
		if b.Session == id {
			return over("revoked: "+b.Reason, by(b.By)...)
		}
	case event.SessionClosed:
		if b.Session == id {
			return over("closed by its holder")
		}
	case event.SessionsExpired:
		if slices.Contains(b.Sessions, id) {
			return over("expired")
		}
	case event.SessionsUnconfirmed:
		if slices.Contains(b.Sessions, id) {
			return "no receipt came in time", nil
		}
	case event.SessionsRevoked:
		if i := slices.Index(b.Sessions, id); i >= 0 {
			return over("ended: "+b.Reason, redecided(b, i)...)
		}
	case event.SessionsWiped:
		if b.Principal == t.of.Principal && b.Instance == t.of.Instance && slices.Contains(b.Sessions, id) {
			return "the client says that it holds nothing of it any more", nil
		}
	case event.RevocationOrdered:
		if t.touches(b) && !e.Time.Time().Before(t.of.Issued) {
			t.orders[e.ID] = true
			return fmt.Sprintf("revocation ordered of %s %s: %s", b.Selector, b.Value, b.Reason), by(b.By)
		}
	case event.RevocationCompleted:
		if t.orders[b.Revocation] {
			return fmt.Sprintf("the revocation has ended %d sessions", b.Sessions), nil
		}
	case event.DeviceRevoked:
		if b.Device != "" && b.Device == t.of.Device {
			return "its device was revoked: " + b.Reason, by(b.By)
		}
	}
	return "", nil
}

// touches says whether an order names the session.
func (t *Teller) touches(o event.RevocationOrdered) bool {
	td, _, _ := strings.Cut(strings.TrimPrefix(t.of.Principal, "spiffe://"), "/")
	switch o.Selector {
	case event.ByPrincipal:
		return o.Value == t.of.Principal
	case event.BySecret:
		return o.Value == t.of.Secret
	case event.ByDevice:
		return t.of.Device != "" && o.Value == t.of.Device
	case event.ByRevision:
		return o.Value == t.of.Revision.String()
	case event.ByTrustDomain:
		return o.Value == td
	}
	return false
}

// by names who was permitted to do it.
func by(d *event.Decision) []string {
	if d == nil {
		return []string{"by the broker"}
	}
	s, err := policy.ParseSignals(d.Signals)
	if err != nil {
		return []string{"by somebody whose signals can't be read"}
	}
	return append([]string{"by " + s.Principal.ID + " from " + s.Network.Peer}, decided(*d)...)
}

// redecided says by which decision it ended.
func redecided(b event.SessionsRevoked, i int) []string {
	var out []string
	if !b.Revocation.IsZero() {
		out = append(out, "by the order "+b.Revocation.String())
	}
	if r := b.Redecided; r != nil {
		out = append(out, fmt.Sprintf("decided again by revision %d, %s", r.Sequence, r.Revision))
		if i < len(r.Results) {
			out = append(out, "decision "+r.Results[i].String())
		}
	}
	return out
}

// decided says what a decision was, and on what.
func decided(d event.Decision) []string {
	var r policy.Decision
	if err := json.Unmarshal(d.Result, &r); err != nil {
		return []string{"its decision can't be read"}
	}
	out := []string{fmt.Sprintf("%s by revision %d, %s", d.Effect, d.Sequence, d.Revision)}
	if len(r.Reasons) > 0 {
		out = append(out, "because: "+strings.Join(r.Reasons, "; "))
	}
	if r.Fault != "" {
		out = append(out, "fault: "+r.Fault)
	}
	if text, err := json.Marshal(r.Obligations); err == nil && string(text) != "{}" {
		out = append(out, "under: "+string(text))
	}
	if text, err := json.Marshal(r.Requires); err == nil && string(text) != "{}" {
		out = append(out, "it would take: "+string(text))
	}
	risk := fmt.Sprintf("risk %d", r.Risk.Score)
	for _, f := range r.Risk.Factors {
		if f.Points > 0 {
			risk += fmt.Sprintf(", %s %d (%s)", f.Name, f.Points, f.Value)
		}
	}
	out = append(out, risk)
	if s, err := policy.ParseSignals(d.Signals); err == nil {
		out = append(out, circumstances(s)...)
	}
	return out
}

// circumstances are where the call came from, and what its device was.
func circumstances(s policy.Signals) []string {
	out := []string{"from " + s.Network.Peer + " at level " + s.Principal.Level}
	if a := s.Attestation; a != nil {
		out = append(out, fmt.Sprintf("device %s (%s): %s, score %d, attested %s", a.DeviceID, a.Kind, a.Tier, a.Score, time.UnixMicro(a.IssuedAt).UTC().Format(time.RFC3339)))
	}
	for _, a := range s.Approvals {
		out = append(out, "approved by "+a.Principal)
	}
	return out
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}
