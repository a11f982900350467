package broker

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/keyring/epoch"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/risk"
)

// freshFor is how long a recipient key is remembered where policy demands forward secrecy: longer than any
// envelope lives, which policy can let live for 366 days.
const freshFor = 367 * 24 * time.Hour

// terms are the limits under which a permit is delivered.
type terms struct {
	permit
	grade     envelope.Grade // open, gated or proxied
	expires   time.Time
	receiptBy time.Time // zero: no receipt is demanded
	uses      uint32    // 0: not counted
	places    []string  // countries that it is bound to; none: not bound
	epoch     string    // of the use shares, at grade gated
	offline   uint32    // of the uses, those that may be fetched ahead
	counters  []ledger.Counter
	custody   *event.Split // who has to take part before it can be read; nil: nobody
	reattest  uint32       // seconds: how old the device's attestation may become; 0: it does not matter
}

// enforcer is who counts the uses.
func (t terms) enforcer() string {
	switch {
	case t.uses == 0:
		return ""
	case t.grade == envelope.GradeOpen:
		return envelope.UsesByClient
	}
	return envelope.UsesByBroker
}

// terms turns the obligations of a permit into limits, at the hardest grade that one of them, or the caller,
// demands. What the broker can't keep at that grade makes the permit void, and unmet says what it was.
func (p permit) terms(now time.Time, asked ask, d device, target target, epochs *epoch.Keys) (t terms, unmet string) {
	o := p.decision.Obligations
	grade, unmet := demanded(o)
	if unmet != "" {
		return terms{}, unmet
	}
	switch g := envelope.Grade(asked.grade); {
	case g == envelope.GradeLeased:
		return terms{}, "grade leased was asked for, and this broker delivers at grade open, gated or proxied"
	case harder(g, grade):
		grade = g
	}
	key := target.keyType().IsKey()
	if key { // whatever is asked: what the broker made for its own use never leaves it
		grade = envelope.GradeProxied
	}
	if unmet := p.misplaced(nil); unmet != "" {
		return terms{}, unmet
	}
	switch was := envelope.Grade(target.version.Exposure); {
	case grade == envelope.GradeProxied && !key:
		return terms{}, "grade proxied is for keys that the broker made, and this secret is opaque: generate one"
	case was != "" && harder(grade, was):
		return terms{}, fmt.Sprintf("this version was released at grade %s before, and %s would claim more than holds: put a new version", was, grade)
	case o.Reattest != nil && d.id == "":
		return terms{}, "the policy demands that the device is attested again and again, and there is none"
	case o.TimeBound == nil:
		return terms{}, "the policy permits without a time bound, and nothing is released for ever"
	case o.QuantumResistant != nil && !asked.recipient.Suite().PostQuantum():
		return terms{}, "the policy demands a post-quantum suite: ask with HPKE-9-KE or HPKE-8-KE"
	case o.ForwardSecrecy != nil && d.result.Keys.RecipientInHardware && hardwareRecipient(d, asked):
		return terms{}, "the policy demands a fresh recipient key, and this one lives in hardware"
	}
	custody, unmet := p.custody(target, grade)
	if unmet != "" {
		return terms{}, unmet
	}
	t = terms{permit: p, custody: custody, grade: grade, expires: expiry(now, o.TimeBound.TTLSeconds, asked.ttl), uses: asked.maxUses}
	if o.UsageLimit != nil && (t.uses == 0 || int64(t.uses) > o.UsageLimit.MaxUses) {
		t.uses = uint32(min(o.UsageLimit.MaxUses, 1<<31))
	}
	if o.GeoRestriction != nil {
		t.places = o.GeoRestriction.Countries
	}
	if o.ReceiptRequired != nil {
		t.receiptBy = now.Add(time.Duration(o.ReceiptRequired.WithinSeconds) * time.Second)
	}
	if o.Reattest != nil {
		t.reattest = uint32(o.Reattest.WithinSeconds)
	}
	if grade == envelope.GradeGated {
		if t.uses == 0 || t.uses > envelope.MaxUses {
			t.uses = envelope.MaxUses
		}
		var end time.Time
		if t.epoch, end = epochs.Current(now); end.Before(t.expires) {
			t.expires = end.Truncate(time.Second)
		}
		if o.UsageLimit != nil {
			t.offline = uint32(min(o.UsageLimit.Offline, int64(t.uses)))
		}
	}
	t.counters = p.rate(now)
	if custody != nil {
		t.counters = append(t.counters, roundCounter(p.signals.Principal.ID, now))
	}
	if o.ForwardSecrecy != nil {
		t.counters = append(t.counters, ledger.Counter{
			Key: "recipient/" + asked.recipient.Digest().String(), Window: time.Unix(0, 0), Length: now.Add(freshFor).Sub(time.Unix(0, 0)), Max: 1,
		})
	}
	return t, ""
}

// rate is the counter of a rate limit, which deliveries, gated uses and operations share.
func (p permit) rate(now time.Time) []ledger.Counter {
	r := p.decision.Obligations.RateLimit
	if r == nil {
		return nil
	}
	length, who := time.Duration(r.WindowSeconds)*time.Second, "key/"+r.Key // all who share the key share the limit
	if r.Key == "" {
		who = "principal/" + p.signals.Principal.ID
	}
	return []ledger.Counter{{Key: "rate/" + who, Window: now.Truncate(length), Length: length, Max: uint32(min(r.Max, 1<<31))}}
}

// demanded is the hardest grade that an obligation asks for, of those that are there; unmet names the first
// obligation that asks for another one, or for a measure that is not there.
func demanded(o policy.Obligations) (grade envelope.Grade, unmet string) {
	grades := []struct {
		name  string
		set   bool
		grade policy.Grade
	}{
		{"time_bound", o.TimeBound != nil, gradeOf(o.TimeBound, func(v *policy.TimeBound) policy.Grade { return v.Grade })},
		{"usage_limit", o.UsageLimit != nil, gradeOf(o.UsageLimit, func(v *policy.UsageLimit) policy.Grade { return v.Grade })},
		{"rate_limit", o.RateLimit != nil, gradeOf(o.RateLimit, func(v *policy.RateLimit) policy.Grade { return v.Grade })},
		{"forward_secrecy", o.ForwardSecrecy != nil, gradeOf(o.ForwardSecrecy, func(v *policy.ForwardSecrecy) policy.Grade { return v.Grade })},
		{"quantum_resistant", o.QuantumResistant != nil, gradeOf(o.QuantumResistant, func(v *policy.QuantumResistant) policy.Grade { return v.Grade })},
		{"geo_restriction", o.GeoRestriction != nil, gradeOf(o.GeoRestriction, func(v *policy.GeoRestriction) policy.Grade { return v.Grade })},
		{"split_knowledge", o.SplitKnowledge != nil, gradeOf(o.SplitKnowledge, func(v *policy.SplitKnowledge) policy.Grade { return v.Grade })},
		{"reattest", o.Reattest != nil, gradeOf(o.Reattest, func(v *policy.Reattest) policy.Grade { return v.Grade })},
		{"receipt_required", o.ReceiptRequired != nil, gradeOf(o.ReceiptRequired, func(v *policy.ReceiptRequired) policy.Grade { return v.Grade })},
	}
	grade = envelope.GradeOpen
	for _, g := range grades {
		switch {
		case !g.set || g.grade == policy.GradeOpen:
		case g.grade == policy.GradeGated, g.grade == policy.GradeProxied:
			if asked := envelope.Grade(g.grade); harder(asked, grade) {
				grade = asked
			}
		default:
			return "", fmt.Sprintf("the policy demands %s at grade %s, which this broker can't enforce: it delivers at grade open, gated or proxied", g.name, g.grade)
		}
	}
	return grade, ""
}

// harder reports whether limits at grade a are harder than at b, of the grades that are delivered here.
func harder(a, b envelope.Grade) bool {
	order := []envelope.Grade{envelope.GradeOpen, envelope.GradeGated, envelope.GradeProxied}
	return slices.Index(order, a) > slices.Index(order, b)
}

func gradeOf[T any](v *T, grade func(*T) policy.Grade) policy.Grade {
	if v == nil {
		return ""
	}
	return grade(v)
}

// expiry is the end of the session: what the caller asked for, never later than policy says, in whole
// seconds as the envelope has them.
func expiry(now time.Time, ttlSeconds int64, asked time.Duration) time.Time {
	ttl := time.Duration(ttlSeconds) * time.Second
	if asked > 0 && asked < ttl {
		ttl = asked
	}
	return now.Truncate(time.Second).Add(ttl)
}

func riskReply(a risk.Assessment) *bullav1.Risk {
	out := &bullav1.Risk{Score: uint32(a.Score)}
	for _, f := range a.Factors {
		out.Factors = append(out.Factors, &bullav1.RiskFactor{Name: f.Name, Value: f.Value, Points: int32(f.Points), Reason: f.Reason})
	}
	return out
}

// encodeRequires is the JSON that a covered caller gets; nil where nothing is required.
func encodeRequires(r policy.Requires) json.RawMessage {
	if r.Empty() {
		return nil
	}
	out, err := json.Marshal(r)
	if err != nil {
		return nil
	}
	return out
}

func parseDigest(s string) (out [32]byte, err error) {
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != len(out) {
		return out, fmt.Errorf("digest %q of the risk model is malformed", s)
	}
	return [32]byte(raw), nil
}
