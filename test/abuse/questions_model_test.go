package abuse

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/session"
	"github.com/bulla-project/bulla/test/rig"
)

// asked is a broker whose ledger a test writes, and the questions to it.
type asked struct {
	*rig.Assembled
	t        *testing.T
	random   *rand.Rand
	ahead    *atomic.Int64
	service  bullav1.QuestionsClient
	secrets  []string
	devices  []string
	revision event.Digest
	live     []session.Session
}

func (x *asked) now() time.Time { return time.Now().Add(time.Duration(x.ahead.Load())) }

func pick[T any](r *rand.Rand, all []T) T { return all[r.IntN(len(all))] }

// TestQuestionsAgainstModel does random things (deliver, use, operate, deny, revoke, lose a device, change the policy) and
// compares the answer to each question with a look at all events. More steps with BULLA_TEST_LONG=1.
func TestQuestionsAgainstModel(t *testing.T) {
	t.Parallel()
	steps := 400
	if os.Getenv("BULLA_TEST_LONG") == "1" {
		steps = 20_000
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	x := &asked{t: t, random: rand.New(rand.NewPCG(seed, 1)), ahead: new(atomic.Int64), secrets: []string{"demo/a", "demo/a/b", "demo/c"}}
	r := rig.Start(t, rig.Config{SVIDTTL: 8000 * time.Hour, Now: x.now})
	for _, name := range x.secrets {
		r.Put(name, "standard", "one")
		r.Put(name, "standard", "two")
	}
	for range 2 {
		_, id := r.Device(rig.ID("workload").String())
		x.devices = append(x.devices, id)
	}
	x.Assembled = r.Assemble(rig.Parts{})
	x.service = bullav1.NewQuestionsClient(r.Client("auditor").Conn())
	x.readRevision()
	for range steps {
		x.ahead.Add(x.random.Int64N(int64(25 * time.Minute)))
		x.step()
	}
	m := x.look()
	if len(m.deliveries) == 0 || len(m.refusals) == 0 {
		t.Fatal("nothing happened")
	}
	for i := range 60 {
		x.compareQuery(m, i)
	}
	for _, name := range x.secrets {
		x.compareBlast(m, &bullav1.About{Secret: name})
		for range 4 {
			x.compareUsage(m, name)
		}
	}
	for _, about := range []*bullav1.About{
		{Device: x.devices[0]},
		{Device: x.devices[1]},
		{Principal: rig.ID("p0").String()},
		{Principal: rig.ID("never").String()},
		{Revision: m.first.String()},
		{Revision: x.revision.String()},
		{Revision: x.revision.String(), Since: timestamppb.New(x.moment(m))},
	} {
		x.compareBlast(m, about)
	}
	r.CheckRows() // its decisions are made up
}

func (x *asked) readRevision() {
	x.t.Helper()
	active, _, err := x.Ledger.ActiveRevision(x.t.Context())
	if err != nil {
		x.t.Fatal(err)
	}
	x.revision = active.Digest
}

func (x *asked) commit(subject string, body event.Body) {
	x.t.Helper()
	if _, err := x.Ledger.Commit(x.t.Context(), ledger.Commit{Event: event.New(x.now(), subject, body)}); err != nil {
		x.t.Fatal(err)
	}
}

func (x *asked) decision(principal, secret, device, grade string, effect policy.Effect) event.Decision {
	x.t.Helper()
	s := policy.Signals{
		Now: x.now().UnixMicro(), Action: policy.ActionDeliver, Principal: policy.Principal{ID: principal}, Request: policy.Request{Grade: grade},
		Resource: policy.Resource{Kind: policy.KindSecret, Secret: &policy.Secret{Name: secret, Exists: true, Version: 2}},
	}
	if device != "" {
		s.Attestation = &policy.Attestation{DeviceID: device}
	}
	text, err := s.Encode()
	if err != nil {
		x.t.Fatal(err)
	}
	return event.Decision{Action: "deliver", Effect: string(effect), Revision: x.revision, Sequence: 1, Signals: text, Result: []byte(`{"reasons":["because"]}`)}
}

func (x *asked) step() {
	principal, secret := rig.ID(fmt.Sprint("p", x.random.IntN(4))).String(), pick(x.random, x.secrets)
	device := pick(x.random, append([]string{""}, x.devices...))
	now := x.now()
	x.live = slices.DeleteFunc(x.live, func(s session.Session) bool { return s.StateAt(now).Ended() })
	switch n := x.random.IntN(100); {
	case n < 45:
		x.deliver(principal, secret, device)
	case n < 65 && len(x.live) > 0:
		x.use(x.random.IntN(len(x.live)))
	case n < 85:
		grade := pick(x.random, []string{"", "open", "gated"})
		x.commit(principal, event.DecisionDenied{Principal: principal, Decision: x.decision(principal, secret, device, grade, policy.Deny)})
	case n < 88:
		x.commit(principal, event.RequestRefused{Principal: principal, Method: "Use", Check: "proof"})
	case n < 90:
		x.commit(principal, event.RefusalsCounted{Principal: principal, Limit: "limit", Count: 7, From: event.NewTime(now.Add(-time.Second)), To: event.NewTime(now)})
	case n < 95 && len(x.live) > 0:
		i := x.random.IntN(len(x.live))
		x.commit(x.live[i].Principal, event.SessionRevoked{Session: x.live[i].ID, Reason: "x"})
		x.live = slices.Delete(x.live, i, i+1)
	case n < 96:
		x.lose(device)
	case n < 98:
		x.Push(func(files map[string]string) {
			files["data/owners.yaml"] += fmt.Sprintf("# %d\n", x.random.IntN(2)) // two revisions that come back
		})
		x.readRevision()
	}
}

func (x *asked) deliver(principal, secret, device string) {
	now, id := x.now(), event.NewID(x.now())
	body := event.SessionIssued{
		Session: id, Principal: principal, Instance: "i", Device: device, Secret: secret, Version: 1 + uint32(x.random.IntN(2)), Class: "standard",
		Grade: pick(x.random, []string{"open", "gated", "proxied"}), Suite: "HPKE-9-KE", KeyID: "k", EnvelopeDigest: event.Digest{1}, ReceiptLock: event.Digest{2},
		Expires: event.NewTime(now.Add(time.Minute + time.Duration(x.random.Int64N(int64(6*time.Hour))))), Decision: x.decision(principal, secret, device, "", policy.Permit),
	}
	if body.Grade != "open" {
		body.Uses = 3
	}
	if body.Grade == "gated" {
		body.Epoch = "e"
	}
	ev := event.New(now, principal, body)
	if _, err := x.Ledger.Commit(x.t.Context(), ledger.Commit{Event: ev}); err != nil {
		x.t.Fatal(err)
	}
	s, err := session.Open(ev)
	if err != nil {
		x.t.Fatal(err)
	}
	x.live = append(x.live, s)
}

func (x *asked) use(i int) {
	s := x.live[i]
	decision := x.decision(s.Principal, s.Secret, s.Device, "", policy.Permit)
	body := event.Body(event.SessionConfirmed{Session: s.ID, R: []byte("r")})
	switch {
	case s.Grade == "gated":
		body = event.SessionUsed{Session: s.ID, Number: s.Used + 1, Decision: decision}
	case s.Grade == "proxied":
		body = event.SessionOperated{Session: s.ID, Operation: "sign", Decision: decision}
	case s.State == session.Confirmed:
		return
	}
	ev := event.New(x.now(), s.Principal, body)
	if _, err := x.Ledger.Commit(x.t.Context(), ledger.Commit{Event: ev}); err != nil {
		x.t.Fatal(err)
	}
	var err error
	if x.live[i], err = session.Apply(s, ev); err != nil {
		x.t.Fatal(err)
	}
}

// lose ends what was delivered on a device, as its revocation does.
func (x *asked) lose(device string) {
	var ids []event.ID
	for _, s := range x.live {
		if device != "" && s.Device == device {
			ids = append(ids, s.ID)
		}
	}
	if len(ids) == 0 {
		return
	}
	x.commit("", event.SessionsRevoked{Sessions: ids, Reason: "its device was lost"})
	x.live = slices.DeleteFunc(x.live, func(s session.Session) bool { return slices.Contains(ids, s.ID) })
}

// toldEvents is what the events say, without any index.
type toldEvents struct {
	deliveries []ledger.Delivery
	refusals   []toldRefusal
	first      event.Digest // revision
	times      []time.Time
}

type toldRefusal struct {
	index                                    int64
	at                                       time.Time
	principal, secret, device, grade, digest string
	count                                    uint64
}

// look reads all events.
func (x *asked) look() toldEvents {
	x.t.Helper()
	var m toldEvents
	at := map[event.ID]int{}
	apply := func(ev event.Event, ids ...event.ID) {
		for _, id := range ids {
			s, err := session.Apply(m.deliveries[at[id]].Session, ev)
			if err != nil {
				x.t.Fatal(err)
			}
			m.deliveries[at[id]].Session = s
		}
	}
	for i, ev := range x.Events() {
		m.times = append(m.times, ev.Time.Time())
		refused := toldRefusal{index: int64(i), at: ev.Time.Time(), count: 1}
		switch b := ev.Body.(type) {
		case event.RevisionActivated:
			if m.first.IsZero() {
				m.first = b.Digest
			}
		case event.SessionIssued:
			s, err := session.Open(ev)
			if err != nil {
				x.t.Fatal(err)
			}
			at[s.ID] = len(m.deliveries)
			m.deliveries = append(m.deliveries, ledger.Delivery{Index: int64(i), Session: s})
		case event.SessionConfirmed:
			apply(ev, b.Session)
		case event.SessionUsed:
			apply(ev, b.Session)
		case event.SessionOperated:
			apply(ev, b.Session)
		case event.SessionRevoked:
			apply(ev, b.Session)
		case event.SessionsRevoked:
			apply(ev, b.Sessions...)
		case event.SessionsExpired:
			apply(ev, b.Sessions...)
		case event.DecisionDenied:
			signals, err := policy.ParseSignals(b.Decision.Signals)
			if err != nil {
				x.t.Fatal(err)
			}
			refused.principal, refused.grade, refused.digest = b.Principal, signals.Request.Grade, b.Decision.Revision.String()
			if signals.Resource.Secret != nil {
				refused.secret = signals.Resource.Secret.Name
			}
			if signals.Attestation != nil {
				refused.device = signals.Attestation.DeviceID
			}
			m.refusals = append(m.refusals, refused)
		case event.RequestRefused:
			refused.principal = b.Principal
			m.refusals = append(m.refusals, refused)
		case event.RefusalsCounted:
			refused.principal, refused.count = b.Principal, b.Count
			m.refusals = append(m.refusals, refused)
		}
	}
	return m
}

func (x *asked) moment(m toldEvents) time.Time {
	return pick(x.random, m.times).Add(-time.Duration(x.random.IntN(2)))
}

func inWindow(a *bullav1.About, at time.Time) bool {
	return (a.GetSince() == nil || !at.Before(a.GetSince().AsTime())) && (a.GetUntil() == nil || at.Before(a.GetUntil().AsTime()))
}

func either(want, got string) bool { return want == "" || want == got }

func deliveredAbout(a *bullav1.About, s session.Session) bool {
	return either(a.GetPrincipal(), s.Principal) && either(a.GetSecret(), s.Secret) && either(a.GetDevice(), s.Device) &&
		either(a.GetRevision(), s.Revision.String()) && inWindow(a, s.Issued.Time())
}

func refusedAbout(a *bullav1.About, r toldRefusal) bool {
	return either(a.GetPrincipal(), r.principal) && either(a.GetSecret(), r.secret) && either(a.GetDevice(), r.device) &&
		either(a.GetRevision(), r.digest) && inWindow(a, r.at)
}

func (x *asked) randomWindow(m toldEvents, about *bullav1.About) {
	since, until := x.moment(m), x.moment(m)
	if x.random.IntN(2) == 0 {
		about.Since = timestamppb.New(since)
	}
	if x.random.IntN(2) == 0 && (about.Since == nil || since.Before(until)) {
		about.Until = timestamppb.New(until)
	}
}

func (x *asked) compareQuery(m toldEvents, i int) {
	x.t.Helper()
	about := &bullav1.About{}
	if i%5 == 1 || i%5 == 2 {
		about.Secret = pick(x.random, x.secrets)
	}
	if i%5 == 2 || i%5 == 3 {
		about.Principal = rig.ID(fmt.Sprint("p", x.random.IntN(4))).String()
	}
	if i%5 == 4 || i%7 == 0 {
		about.Device = pick(x.random, x.devices)
	}
	if i%4 == 0 {
		about.Revision = pick(x.random, []event.Digest{m.first, x.revision}).String()
	}
	x.randomWindow(m, about)
	in := &bullav1.QueryRequest{
		About: about, Outcome: pick(x.random, []string{"", "permit", "deny"}), Grade: pick(x.random, []string{"", "", "open", "gated"}), Limit: 1 + uint32(x.random.IntN(90)),
	}
	var want []int64
	for _, d := range m.deliveries {
		if in.GetOutcome() != "deny" && deliveredAbout(about, d.Session) && either(in.GetGrade(), d.Session.Grade) {
			want = append(want, d.Index)
		}
	}
	for _, r := range m.refusals {
		if in.GetOutcome() != "permit" && refusedAbout(about, r) && either(in.GetGrade(), r.grade) {
			want = append(want, r.index)
		}
	}
	slices.SortFunc(want, func(a, b int64) int { return cmp.Compare(b, a) })
	question := fmt.Sprint(in)
	var got []int64
	for {
		reply, err := x.service.Query(x.t.Context(), in)
		if err != nil {
			x.t.Fatalf("%s: %v", question, err)
		}
		if len(reply.GetFindings()) > int(in.GetLimit()) || reply.GetWithheld() != 0 {
			x.t.Fatalf("%s: %d findings, %d withheld", question, len(reply.GetFindings()), reply.GetWithheld())
		}
		for _, f := range reply.GetFindings() {
			got = append(got, f.GetIndex())
		}
		if in.PageToken = reply.GetNext(); in.GetPageToken() == "" {
			break
		}
	}
	if !slices.Equal(got, want) {
		x.t.Fatalf("%s:\n got %v\nwant %v", question, got, want)
	}
}

func (x *asked) compareBlast(m toldEvents, about *bullav1.About) {
	x.t.Helper()
	stream, err := x.service.BlastRadius(x.t.Context(), &bullav1.BlastRadiusRequest{About: about})
	if err != nil {
		x.t.Fatal(err)
	}
	var answer *bullav1.BlastRadius
	for answer == nil {
		reply, err := stream.Recv()
		if err != nil {
			x.t.Fatalf("%v: %v", about, err)
		}
		answer = reply.GetAnswer()
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		x.t.Errorf("after the answer came %v", err)
	}
	now, want, denials := x.now(), map[string]string{}, uint64(0)
	for _, name := range x.secrets {
		for version := uint32(1); version <= 2; version++ {
			var mine, live, used, uses uint64
			grades, others, othersLive := map[string]bool{}, map[string]bool{}, 0
			for _, d := range m.deliveries {
				s := d.Session
				alive := !s.StateAt(now).Ended()
				switch {
				case s.Secret != name || s.Version != version:
				case !deliveredAbout(about, s):
					others[s.Principal] = about.GetSecret() == ""
					if alive && about.GetSecret() == "" {
						othersLive++
					}
				default:
					mine, grades[s.Grade], uses = mine+1, true, uses+uint64(s.Used)
					if alive {
						live++
					}
					if s.Used > 0 {
						used++
					}
				}
			}
			if mine == 0 {
				continue
			}
			if about.GetSecret() != "" {
				others = nil
			}
			want[fmt.Sprint(name, "@", version)] = fmt.Sprint(mine, live, used, uses, len(others), othersLive, len(grades))
		}
	}
	for _, r := range m.refusals {
		if refusedAbout(about, r) {
			denials += r.count
		}
	}
	got := map[string]string{}
	for _, e := range answer.GetExposures() {
		got[fmt.Sprint(e.GetSecret(), "@", e.GetVersion())] = fmt.Sprint(e.GetDeliveries(), e.GetLive(), e.GetUsed(), e.GetUses(), e.GetOthers(), e.GetOthersLive(), len(e.GetGrades()))
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || answer.GetDenials() != denials || answer.GetIncomplete() {
		x.t.Fatalf("%v:\n got %v %d (%v)\nwant %v %d", about, got, answer.GetDenials(), answer.GetNotes(), want, denials)
	}
	if live := answer.GetLive() > 0; live != strings.Contains(fmt.Sprint(answer.GetSteps()), "--dry-run") {
		x.t.Errorf("%v: %d live, and the steps are %v", about, answer.GetLive(), answer.GetSteps())
	}
}

func (x *asked) compareUsage(m toldEvents, name string) {
	x.t.Helper()
	about := &bullav1.About{Secret: name}
	x.randomWindow(m, about)
	if about.GetUntil() == nil {
		about.Until = timestamppb.New(x.now())
	}
	if about.GetSince() == nil {
		about.Since = timestamppb.New(about.GetUntil().AsTime().Add(-30 * time.Hour))
	}
	stream, err := x.service.SecretUsage(x.t.Context(), &bullav1.SecretUsageRequest{Name: name, Since: about.GetSince(), Until: about.GetUntil()})
	if err != nil {
		x.t.Fatal(err)
	}
	var answer *bullav1.SecretUsage
	for answer == nil {
		reply, err := stream.Recv()
		if err != nil {
			x.t.Fatalf("%v: %v", about, err)
		}
		answer = reply.GetAnswer()
	}
	length := time.Duration(answer.GetSpanSeconds()) * time.Second
	var uses, operations, denials uint64
	principals, spans := map[string]bool{}, map[int64]uint64{}
	for _, d := range m.deliveries {
		s := d.Session
		if !deliveredAbout(about, s) {
			continue
		}
		principals[s.Principal] = true
		start := s.Issued.Time().Truncate(length)
		if start.Before(about.GetSince().AsTime()) {
			start = about.GetSince().AsTime()
		}
		spans[start.UnixNano()]++
		if s.Grade == "gated" {
			uses += uint64(s.Used)
		} else {
			operations += uint64(s.Used)
		}
	}
	for _, r := range m.refusals {
		if refusedAbout(about, r) {
			denials += r.count
		}
	}
	got, peak, total := map[int64]uint64{}, uint64(0), uint64(0)
	for _, s := range answer.GetSpans() {
		got[s.GetStart().AsTime().UnixNano()] = s.GetAccesses()
		peak, total = max(peak, s.GetAccesses()), total+s.GetAccesses()
	}
	have := fmt.Sprint(answer.GetAccesses(), answer.GetPrincipals(), answer.GetUses(), answer.GetOperations(), answer.GetDenials(), got, answer.GetPeak().GetAccesses())
	want := fmt.Sprint(total, len(principals), uses, operations, denials, spans, peak)
	if have != want {
		x.t.Fatalf("%v: got %s, want %s", about, have, want)
	}
}
