package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
)

// The outcomes of a finding.
const (
	outcomePermit = "permit"
	outcomeDeny   = "deny"
)

// Query lists deliveries and refusals, the newest first.
func (s questions) Query(ctx context.Context, in *bullav1.QueryRequest) (*bullav1.QueryReply, error) {
	switch in.GetOutcome() {
	case "", outcomePermit, outcomeDeny:
	default:
		return nil, wrong("unknown outcome %q: use permit or deny", clip(in.GetOutcome()))
	}
	switch in.GetGrade() {
	case "", "open", "gated", "proxied", "leased":
	default:
		return nil, wrong("unknown grade %q: use open, gated, proxied or leased", clip(in.GetGrade()))
	}
	what, err := s.about(ctx, in.GetAbout())
	if err != nil {
		return nil, err
	}
	op, err := s.permit(ctx, policy.ActionAuditQuery, what)
	if err != nil {
		return nil, err
	}
	below, err := s.pageBelow(op, in)
	if err != nil {
		return nil, err
	}
	ctx, end, err := s.begin(ctx, 2*pageTime)
	if err != nil {
		return nil, err
	}
	defer end()
	q := &query{questions: s, in: in, what: what, sight: s.sight(op), limit: page(in.GetLimit()), until: time.Now().Add(pageTime), out: new(bullav1.QueryReply)}
	if err := q.run(ctx, below); err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	if q.more {
		if q.out.Next, err = s.pageToken(op, in, q.below); err != nil {
			return nil, s.answer(ctx, op.caller, err)
		}
	}
	q.notes()
	if err := q.erased(ctx); err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	return q.out, nil
}

// query is one page of an answer on its way.
type query struct {
	questions
	in    *bullav1.QueryRequest
	what  about
	sight *sight
	limit int
	until time.Time // enough for one page then

	out      *bullav1.QueryReply
	size     int // bytes of what is in out
	examined int
	below    int64 // what was looked at last
	more     bool
	lost     int // events that can't be read
	counted  bool
}

func (q *query) run(ctx context.Context, below int64) error {
	spans, err := q.spans(ctx, q.what)
	if err != nil {
		return err
	}
	for _, in := range spans {
		in.below = min(in.below, below)
		if err := q.span(ctx, in); errors.Is(err, errEnough) {
			q.more = true
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// span merges the deliveries and the refusals of a stretch of the log. Where one of the two has more than was read, the
// other waits for it.
func (q *query) span(ctx context.Context, in span) error {
	batch := max(q.limit, 100)
	for in.from < in.below {
		var deliveries []ledger.Delivery
		var denials []int64
		var err error
		if q.in.GetOutcome() != outcomeDeny {
			if deliveries, err = q.ledger.Deliveries(ctx, q.what.sessions(in, batch)); err != nil {
				return err
			}
		}
		if q.in.GetOutcome() != outcomePermit {
			scope, value := q.what.scope()
			if denials, err = q.ledger.Denials(ctx, scope, value, in.from, in.below, batch); err != nil {
				return err
			}
		}
		floor := in.from
		if len(deliveries) == batch {
			floor = deliveries[batch-1].Index
		}
		if len(denials) == batch {
			floor = max(floor, denials[batch-1])
		}
		if err := q.merge(ctx, deliveries, denials, floor); err != nil {
			return err
		}
		in.below = floor
	}
	return nil
}

func (q *query) merge(ctx context.Context, deliveries []ledger.Delivery, denials []int64, floor int64) error {
	for len(deliveries) > 0 || len(denials) > 0 {
		delivered := len(denials) == 0 || len(deliveries) > 0 && deliveries[0].Index > denials[0]
		var err error
		if delivered {
			if q.below = deliveries[0].Index; q.below < floor {
				return nil
			}
			err = q.delivery(ctx, deliveries[0])
			deliveries = deliveries[1:]
		} else {
			if q.below = denials[0]; q.below < floor {
				return nil
			}
			err = q.denial(ctx, denials[0])
			denials = denials[1:]
		}
		if err != nil {
			return err
		}
		if q.examined++; len(q.out.Findings) >= q.limit || q.size >= maxAnswer || q.examined >= maxExamined || time.Now().After(q.until) {
			return errEnough
		}
	}
	return ctx.Err()
}

func (q *query) delivery(ctx context.Context, d ledger.Delivery) error {
	s := d.Session
	if s.Erased != 0 || !q.what.holds(s.Issued.Time()) || !q.what.revision.IsZero() && q.what.revision != s.Revision || q.in.GetGrade() != "" && q.in.GetGrade() != s.Grade {
		return nil
	}
	if !q.shows(ctx, q.sight.op, policy.ActionSessionShow, sessionFacts(s)) {
		q.out.Withheld++
		return nil
	}
	q.add(deliveryFinding(d, q.sight.op.now))
	return nil
}

func deliveryFinding(d ledger.Delivery, now time.Time) *bullav1.Finding {
	s := d.Session
	f := &bullav1.Finding{
		Index: d.Index, At: stamp(s.Issued), Outcome: outcomePermit, What: "delivery", Principal: s.Principal, Secret: s.Secret, Version: s.Version,
		Device: s.Device, Revision: s.Revision.String(), Grade: s.Grade, Session: s.ID.String(), State: string(s.StateAt(now)),
		Used: s.Used, UsedAt: stamp(s.UsedAt), ExpiresAt: stamp(s.Expires), Action: string(policy.ActionDeliver), Count: 1,
	}
	if s.Reason != "" {
		f.Reasons = []string{s.Reason}
	}
	return f
}

// refusalAt is a refusal as its event tells it, and what it was about.
type refusalAt struct {
	finding *bullav1.Finding
	at      time.Time
	grade   string
}

// meant says whether a question is about a refusal.
func (a about) meant(r refusalAt) bool {
	f := r.finding
	return a.holds(r.at) && (a.principal == "" || a.principal == f.GetPrincipal()) && (a.secret == "" || a.secret == f.GetSecret()) &&
		(a.device == "" || a.device == f.GetDevice()) && (a.revision.IsZero() || a.revision.String() == f.GetRevision())
}

func (q *query) denial(ctx context.Context, index int64) error {
	r, err := q.refusal(ctx, index)
	if errors.Is(err, ledger.ErrErased) { // while this is answered: the note at the end counts it
		return nil
	}
	if errors.Is(err, ledger.ErrTampered) {
		q.lost++
		return nil
	}
	if err != nil {
		return err
	}
	if !q.what.meant(r) || q.in.GetGrade() != "" && q.in.GetGrade() != r.grade {
		return nil
	}
	if !q.sight.refusal(ctx, r) {
		q.out.Withheld++
		return nil
	}
	q.counted = q.counted || r.finding.GetCount() > 1
	q.add(r.finding)
	return nil
}

func (q *query) add(f *bullav1.Finding) {
	q.out.Findings = append(q.out.Findings, f)
	q.size += proto.Size(f)
}

// refusal says whether the caller may see a refusal: whoever may see the secret that it was about, or sessions of the
// principal where there is none.
func (v *sight) refusal(ctx context.Context, r refusalAt) bool {
	if name := r.finding.GetSecret(); name != "" {
		return v.secret(ctx, name)
	}
	return v.principal(ctx, r.finding.GetPrincipal(), "")
}

// refusal reads the event of a refusal.
func (s questions) refusal(ctx context.Context, index int64) (refusalAt, error) {
	entries, err := s.ledger.Events(ctx, index, 1)
	if err != nil {
		return refusalAt{}, err
	}
	if len(entries) == 0 {
		return refusalAt{}, fmt.Errorf("%w: event %d is missing", ledger.ErrTampered, index)
	}
	if by := entries[0].Erased; by != 0 {
		return refusalAt{}, fmt.Errorf("event %d: %w by event %d", index, ledger.ErrErased, by)
	}
	ev := entries[0].Event
	f := &bullav1.Finding{Index: index, Event: ev.ID.String(), At: stamp(ev.Time), Outcome: outcomeDeny, What: string(ev.Body.EventType()), Count: 1}
	out := refusalAt{finding: f, at: ev.Time.Time()}
	switch b := ev.Body.(type) {
	case event.DecisionDenied:
		f.Principal, f.Revision, f.Action = b.Principal, b.Decision.Revision.String(), b.Decision.Action
		out.grade = decidedBy(f, b)
	case event.RequestRefused:
		f.Principal, f.Action, f.Reasons = b.Principal, b.Method, []string{"refused before policy: " + b.Check}
		if _, err := event.ParseID(b.Target); err == nil {
			f.Session = b.Target
		}
	case event.AttestationRefused:
		f.Principal, f.Action, f.Reasons = b.Principal, "attest", []string{b.Kind + ": " + b.Reason}
	case event.RefusalsCounted:
		f.Principal, f.Count = b.Principal, b.Count
		f.Reasons = []string{fmt.Sprintf("%s: %d calls since %s were counted and not recorded one by one", b.Limit, b.Count, b.From)}
	default:
		return refusalAt{}, fmt.Errorf("%w: event %d is %s, which refuses nothing", ledger.ErrTampered, index, ev.Body.EventType())
	}
	return out, nil
}

// decidedBy fills in what a decision says that denied.
func decidedBy(f *bullav1.Finding, b event.DecisionDenied) (grade string) {
	var result struct {
		Reasons []string `json:"reasons"`
	}
	if json.Unmarshal(b.Decision.Result, &result) == nil {
		f.Reasons = result.Reasons
	}
	if b.Unmet != "" {
		f.Reasons = append(f.Reasons, b.Unmet)
	}
	signals, err := policy.ParseSignals(b.Decision.Signals)
	if err != nil {
		return ""
	}
	if r := signals.Resource; r.Secret != nil {
		f.Secret, f.Version = r.Secret.Name, uint32(r.Secret.Version)
	} else if r.Session != nil {
		f.Session = r.Session.ID
	}
	if signals.Attestation != nil {
		f.Device = signals.Attestation.DeviceID
	}
	f.Grade = signals.Request.Grade
	return f.Grade
}

// erased notes what is not in the answer for good.
func (q *query) erased(ctx context.Context) error {
	note, err := q.erasedNote(ctx)
	if note != "" {
		q.out.Notes = append(q.out.Notes, note)
	}
	return err
}

// notes says what the answer can't.
func (q *query) notes() {
	note := func(format string, args ...any) { q.out.Notes = append(q.out.Notes, fmt.Sprintf(format, args...)) }
	if q.out.Withheld > 0 {
		note("the policy does not show %d of the findings to you", q.out.Withheld)
	}
	if q.lost > 0 {
		note("%d refusals can't be read (`bulla audit rebuild --check` tells which) and are left out", q.lost)
	}
	if q.counted {
		note("what a limiter refused is counted, by principal: its secrets and devices are not known")
	} else if q.in.GetOutcome() != outcomePermit && (q.what.secret != "" || q.what.device != "") {
		note("refusals before policy was asked name no secret and no device: ask for the principal to see them")
	}
	if !q.what.revision.IsZero() && q.in.GetOutcome() != outcomeDeny {
		note("uses of sessions that another revision delivered are not listed, although this one permitted them: `bulla audit tail` has each")
	}
	if q.in.GetGrade() != "" && q.in.GetOutcome() != outcomePermit {
		note("a refusal has the grade that was asked for; where none was, --grade leaves it out")
	}
}
