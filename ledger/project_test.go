package ledger_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/ledger/storetest"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/session"
)

// table is a transaction over a map; it keeps nothing of an event that was refused.
type table struct {
	rows  map[ledger.RowKey]ledger.Row
	puts  map[ledger.RowKey]ledger.Row
	index int64
}

func newTable(t rapid.TB) *table {
	tab := &table{rows: map[ledger.RowKey]ledger.Row{}}
	for _, c := range storetest.Foundation() {
		tab.must(t, c.Event)
	}
	return tab
}

func (tab *table) Get(key ledger.RowKey) (ledger.Row, error) {
	row, ok := tab.puts[key]
	if !ok {
		row, ok = tab.rows[key]
	}
	if !ok {
		return row, ledger.ErrNotFound
	}
	return row, nil
}

func (tab *table) Put(row ledger.Row) error {
	tab.puts[row.RowKey] = row
	return nil
}

func (tab *table) PutSession(s session.Session, row ledger.Row) error {
	if s.ID.String() != row.Key || row.Kind != ledger.KindSession {
		return errors.New("session and row differ")
	}
	return tab.Put(row)
}

func (tab *table) DropBlob(string) error { return nil }

func (tab *table) apply(e event.Event) error {
	tab.puts = map[ledger.RowKey]ledger.Row{}
	if err := ledger.Project(tab, tab.index, e); err != nil {
		return err
	}
	for key, row := range tab.puts {
		tab.rows[key] = row
	}
	tab.index++
	return nil
}

func (tab *table) must(t rapid.TB, e event.Event) {
	t.Helper()
	if err := tab.apply(e); err != nil {
		t.Fatal(err)
	}
}

func (tab *table) refuse(t rapid.TB, body event.Body) {
	t.Helper()
	if err := tab.apply(event.New(storetest.Start, storetest.Operator, body)); !errors.Is(err, ledger.ErrTransition) {
		t.Errorf("%+v: %v, want ErrTransition", body, err)
	}
}

func row[T any](t rapid.TB, tab *table, kind ledger.Kind, key string) (v T, seq int64) {
	t.Helper()
	r, ok := tab.rows[ledger.RowKey{Kind: kind, Key: key}]
	if !ok {
		return v, 0
	}
	if err := event.Unmarshal(r.Value, &v); err != nil {
		t.Fatal(err)
	}
	return v, r.Seq
}

func now(body event.Body) event.Event { return event.New(storetest.Start, storetest.Operator, body) }

// Each type that events can have is projected, or named as one that changes nothing.
func TestProjectKnowsEveryType(t *testing.T) {
	left := event.Types()
	for _, body := range []event.Body{
		event.Genesis{},
		event.KeyIntroduced{},
		event.KeyRetired{},
		event.RevisionActivated{},
		event.SecretPut{},
		event.InstanceBound{},
		event.DeviceEnrolled{},
		event.DeviceRevoked{},
		event.AttestationAppraised{},
		event.AttestationRefused{},
		event.SessionIssued{},
		event.DecisionDenied{},
		event.OperationPermitted{},
		event.SessionConfirmed{},
		event.SessionRevoked{},
		event.SessionClosed{},
		event.SessionUsed{},
		event.SessionOperated{},
		event.SessionsExpired{},
		event.SessionsUnconfirmed{},
		event.RefusalsCounted{},
		event.RequestRefused{},
		event.SignalReceived{},
		event.SignalSettled{},
		event.SignalRefused{},
		event.RoundOpened{},
		event.ShareIssued{},
		event.RoundApproved{},
		event.RoundRejected{},
		event.RoundClosed{},
		event.RoundExpired{},
		event.RevocationOrdered{},
		event.RevocationCompleted{},
		event.SessionsRevoked{},
		event.SessionsWiped{},
		event.AttestationDemanded{},
		event.RevisionSwept{},
		event.RevisionStaged{},
		event.RevisionProposed{},
		event.ShadowStarted{},
		event.ShadowDiffered{},
		event.ShadowEnded{},
		event.TrustObserved{},
		event.SubjectErased{},
		event.HoldPlaced{},
		event.HoldReleased{},
		event.Restored{},
	} {
		left = slices.DeleteFunc(left, func(t event.Type) bool { return t == body.EventType() })
		if err := newTable(t).apply(now(body)); err != nil && strings.Contains(err.Error(), "no projection knows") {
			t.Error(err)
		}
	}
	if len(left) > 0 {
		t.Errorf("types that this test does not know: %v", left)
	}
	tab := newTable(t)
	for i, body := range []event.Body{
		event.OperationPermitted{}, event.SignalRefused{}, event.AttestationRefused{}, event.DecisionDenied{}, event.RefusalsCounted{}, event.RequestRefused{},
	} {
		before := len(tab.rows)
		tab.must(t, now(body))
		for _, row := range tab.puts {
			if row.Kind != ledger.KindDenial {
				t.Errorf("%T changed something: %v", body, row.RowKey)
			}
		}
		want := before
		if i > 1 {
			want++ // where it is in the log
		}
		if len(tab.rows) != want {
			t.Errorf("%T made %d rows", body, len(tab.rows)-before)
		}
	}
	tab.refuse(t, unknown{})
}

type unknown struct{}

func (unknown) EventType() event.Type { return "test.unknown" }

func TestGenesisComesFirstAndOnce(t *testing.T) {
	tab := newTable(t)
	tab.refuse(t, event.Genesis{})
	empty := &table{rows: map[ledger.RowKey]ledger.Row{}}
	empty.refuse(t, event.DecisionDenied{})
	empty.refuse(t, event.KeyIntroduced{KeyID: "k"})
}

func TestProjectSecret(t *testing.T) {
	tab := newTable(t)
	put := func(version uint32) event.SecretPut {
		return storetest.SecretVersion(storetest.Secret, version).Event.Body.(event.SecretPut)
	}
	tab.refuse(t, put(1))
	tab.refuse(t, put(3))
	tab.refuse(t, storetest.SecretVersion("demo/new", 2).Event.Body)
	for _, spoil := range []func(*event.SecretPut){
		func(b *event.SecretPut) { b.Name = "" }, func(b *event.SecretPut) { b.Class = "" },
		func(b *event.SecretPut) { b.RecordID = event.ID{} }, func(b *event.SecretPut) { b.CiphertextDigest = event.Digest{} },
	} {
		b := put(2)
		spoil(&b)
		tab.refuse(t, b)
	}
	for v := uint32(2); v <= 300; v++ {
		b := put(v)
		b.Class = "high"
		tab.must(t, now(b))
	}
	s, seq := row[ledger.Secret](t, tab, ledger.KindSecret, storetest.Secret)
	if seq != tab.index || s.Class != "high" || len(s.Versions) != 256 || s.Versions[0].Version != 45 || s.Versions[255].Version != 300 {
		t.Errorf("%d versions from %d, class %s", len(s.Versions), s.Versions[0].Version, s.Class)
	}
	for i, v := range s.Versions {
		want := secret.StageRetired
		switch i {
		case 255:
			want = secret.StageCurrent
		case 254:
			want = secret.StagePrevious
		}
		if v.Stage != want {
			t.Errorf("version %d is %s, want %s", v.Version, v.Stage, want)
		}
	}
}

// A secret keeps its type: neither becomes a key opaque, which could leave, nor one type another.
func TestProjectKeepsTheType(t *testing.T) {
	tab := newTable(t)
	put := func(name string, version uint32, kind string) event.SecretPut {
		b := storetest.SecretVersion(name, version).Event.Body.(event.SecretPut)
		b.Type, b.PublicKey = kind, []byte("{}")
		return b
	}
	tab.must(t, now(put("demo/key", 1, "ed25519")))
	for _, kind := range []string{"", "ecdsa-p256", "opaque", "rsa"} {
		tab.refuse(t, put("demo/key", 2, kind))
	}
	for _, kind := range []string{"ed25519", "opaque", "rsa"} {
		tab.refuse(t, put(storetest.Secret, 2, kind)) // which is opaque
	}
	tab.refuse(t, put("demo/other", 1, "opaque")) // it is recorded as no text
	tab.must(t, now(put("demo/key", 2, "ed25519")))
	s, _ := row[ledger.Secret](t, tab, ledger.KindSecret, "demo/key")
	if v := s.Versions[1]; v.Type != "ed25519" || string(v.PublicKey) != "{}" {
		t.Errorf("%+v", v)
	}
}

// The first delivery of a version marks it; later ones leave the row, so that deliveries that rely on it at
// the same time do not spoil each other.
func TestExposureIsWrittenOnce(t *testing.T) {
	tab := newTable(t)
	issue := func(grade string, version uint32) event.Event {
		e := storetest.Issue(storetest.Start, time.Hour, 0).Event
		b := e.Body.(event.SessionIssued)
		b.Grade, b.Version = grade, version
		e.Body = b
		return e
	}
	tab.must(t, now(storetest.SecretVersion(storetest.Secret, 2).Event.Body))
	for _, c := range []struct {
		grade    string
		version  uint32
		changes  bool
		exposure string
	}{
		{"proxied", 1, true, "proxied"},
		{"proxied", 2, true, "proxied"},
		{"gated", 1, true, "gated"},
		{"leased", 1, false, "gated"},
		{"open", 1, true, "open"},
		{"open", 1, false, "open"},
		{"gated", 1, false, "open"},
		{"gated", 2, true, "open"},
		{"gated", 2, false, "open"},
		{"open", 2, true, "open"},
		{"open", 2, false, "open"},
	} {
		_, before := row[ledger.Secret](t, tab, ledger.KindSecret, storetest.Secret)
		tab.must(t, issue(c.grade, c.version))
		s, after := row[ledger.Secret](t, tab, ledger.KindSecret, storetest.Secret)
		if (before != after) != c.changes || s.Exposure != c.exposure || c.grade == "open" && s.Versions[c.version-1].Exposure != "open" {
			t.Errorf("%s of version %d: row %d → %d, exposure %s", c.grade, c.version, before, after, s.Exposure)
		}
	}
	for _, e := range []event.Event{issue("wide open", 1), issue("open", 3)} {
		if err := tab.apply(e); !errors.Is(err, ledger.ErrTransition) {
			t.Errorf("%+v: %v", e.Body, err)
		}
	}
	unknown := issue("open", 1)
	b := unknown.Body.(event.SessionIssued)
	b.Secret = "demo/none"
	tab.refuse(t, b)
	b = unknown.Body.(event.SessionIssued)
	b.Expires = event.NewTime(storetest.Start)
	tab.refuse(t, b)
}

func TestProjectDevices(t *testing.T) {
	tab := newTable(t)
	_, before := row[ledger.Device](t, tab, ledger.KindDevice, storetest.Device)
	tab.must(t, storetest.Appraisal(2).Event)
	d, after := row[ledger.Device](t, tab, ledger.KindDevice, storetest.Device)
	if before != after || string(d.Record) != `{"kind":"tpm2"}` {
		t.Errorf("an appraisal changed the device's row: %d → %d, %s", before, after, d.Record)
	}
	if c, seq := row[ledger.DeviceCounter](t, tab, ledger.KindDeviceCounter, storetest.Device); seq != tab.index || c.Counters.Clock != 2 {
		t.Errorf("counters %v at %d", c.Counters, seq)
	}
	tab.must(t, storetest.Appraisal(1).Event) // quoted before the other, and verified after it
	if c, _ := row[ledger.DeviceCounter](t, tab, ledger.KindDeviceCounter, storetest.Device); c.Counters.Clock != 2 {
		t.Errorf("an earlier quote took the counters back to %v", c.Counters)
	}
	plain := storetest.Appraisal(3).Event.Body.(event.AttestationAppraised)
	plain.Counters = nil
	tab.must(t, now(plain))
	if _, seq := row[ledger.DeviceCounter](t, tab, ledger.KindDeviceCounter, storetest.Device); seq == tab.index {
		t.Error("an appraisal without counters changed them")
	}
	if p, seq := row[ledger.Passport](t, tab, ledger.KindPassport, ledger.InstanceKey(storetest.Principal, storetest.Instance)); seq != tab.index || p.Device != storetest.Device {
		t.Errorf("passport %+v at %d", p, seq)
	}
	tab.refuse(t, event.AttestationAppraised{Principal: "p", Instance: "i"})
	tab.refuse(t, event.DeviceEnrolled{Device: storetest.Device, Record: json.RawMessage(`{}`)})
	tab.refuse(t, event.DeviceEnrolled{})
	tab.refuse(t, event.DeviceRevoked{Device: "other"})
	tab.must(t, now(event.DeviceRevoked{Device: storetest.Device, Reason: "stolen"}))
	if d, _ := row[ledger.Device](t, tab, ledger.KindDevice, storetest.Device); d.Revoked.IsZero() || d.Reason != "stolen" {
		t.Errorf("device %+v", d)
	}
	tab.refuse(t, event.DeviceRevoked{Device: storetest.Device})
	tab.refuse(t, event.DeviceEnrolled{Device: storetest.Device, Record: json.RawMessage(`{}`)})
}

func TestProjectRevisionsAndKeys(t *testing.T) {
	tab := newTable(t)
	first, _ := row[ledger.Revision](t, tab, ledger.KindRevision, ledger.ActiveRevision)
	other := event.Digest{7}
	tab.refuse(t, event.RevisionActivated{Digest: other, Sequence: 1, Previous: first.Digest})
	tab.refuse(t, event.RevisionActivated{Digest: other, Sequence: 3, Previous: first.Digest})
	tab.refuse(t, event.RevisionActivated{Digest: other, Sequence: 2})
	tab.refuse(t, event.RevisionActivated{Sequence: 2, Previous: first.Digest})
	tab.must(t, now(event.RevisionActivated{Digest: other, Sequence: 2, Previous: first.Digest}))
	tab.must(t, now(event.RevisionActivated{Digest: first.Digest, Sequence: 3, Previous: other})) // back again
	active, _ := row[ledger.Revision](t, tab, ledger.KindRevision, ledger.ActiveRevision)
	byDigest, _ := row[ledger.Revision](t, tab, ledger.KindRevision, first.Digest.String())
	if active != byDigest || active.Sequence != 3 || active.By != storetest.Operator {
		t.Errorf("active %+v, by digest %+v", active, byDigest)
	}
	tab.refuse(t, event.KeyIntroduced{KeyID: "key-1"})
	tab.refuse(t, event.KeyIntroduced{})
	tab.refuse(t, event.KeyRetired{KeyID: "key-2"})
	tab.must(t, now(event.KeyRetired{KeyID: "key-1"}))
	tab.refuse(t, event.KeyRetired{KeyID: "key-1"})
	if k, _ := row[ledger.Key](t, tab, ledger.KindKey, "key-1"); k.Retired.IsZero() || k.Introduced.IsZero() {
		t.Errorf("key %+v", k)
	}
}

// What an event makes is the same whether it comes from the broker or, years later, out of its encoding.
func TestProjectOfDecodedEvents(t *testing.T) {
	live, replayed := &table{rows: map[ledger.RowKey]ledger.Row{}}, &table{rows: map[ledger.RowKey]ledger.Row{}}
	c := storetest.Issue(storetest.Start.Add(123456789*time.Nanosecond), time.Hour, time.Minute)
	commits := append(storetest.Foundation(), c,
		storetest.Plain("", event.DeviceEnrolled{Device: "d2", Record: json.RawMessage("{ \"a\" : [1, 2], \"b\": \"<\u2028>\" }")}),
		storetest.Plain("", event.DeviceEnrolled{Device: "d3"}),
		storetest.Plain("", event.InstanceBound{Principal: "p", Instance: "i"}),
		storetest.Plain("", event.AttestationAppraised{Principal: "p", Instance: "i", Device: "d2", Result: json.RawMessage("null")}),
		storetest.Plain("", event.SessionRevoked{Session: storetest.SessionOf(c), Reason: "\x00 <a&b> \u2028"}),
	)
	for _, c := range commits {
		live.must(t, c.Event)
		encoding, err := c.Event.Encode()
		if err != nil {
			t.Fatal(err)
		}
		e, err := event.Decode(encoding)
		if err != nil {
			t.Fatal(err)
		}
		replayed.must(t, e)
	}
	if len(live.rows) != len(replayed.rows) {
		t.Fatalf("%d rows, %d replayed", len(live.rows), len(replayed.rows))
	}
	for key, want := range live.rows {
		if got := replayed.rows[key]; !bytes.Equal(got.Value, want.Value) || got.Seq != want.Seq {
			t.Errorf("%v: %s at %d, replayed %s at %d", key, want.Value, want.Seq, got.Value, got.Seq)
		}
	}
}

// Sessions under random events against a model that only knows the picture in package session.
func TestSessionsAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tab := newTable(t)
		type model struct {
			state   session.State
			expires int
		}
		models := map[event.ID]model{}
		var ids []event.ID
		at := func(minute int) time.Time { return storetest.Start.Add(time.Duration(minute) * time.Minute) }
		for minute := range 40 {
			if len(ids) == 0 || rapid.IntRange(0, 3).Draw(t, "new") == 0 {
				ttl := rapid.IntRange(1, 20).Draw(t, "ttl")
				c := storetest.Issue(at(minute), time.Duration(ttl)*time.Minute, 0)
				tab.must(t, c.Event)
				ids = append(ids, storetest.SessionOf(c))
				models[storetest.SessionOf(c)] = model{session.Issued, minute + ttl}
				continue
			}
			some := rapid.SliceOfNDistinct(rapid.SampledFrom(ids), 1, min(3, len(ids)), rapid.ID[event.ID]).Draw(t, "sessions")
			id := some[0]
			var body event.Body
			to := session.State("")
			switch kind := rapid.IntRange(0, 4).Draw(t, "kind"); kind {
			case 0:
				body, to, some = event.SessionConfirmed{Session: id}, session.Confirmed, some[:1]
			case 1:
				body, to, some = event.SessionRevoked{Session: id}, session.Revoked, some[:1]
			case 2:
				body, to, some = event.SessionClosed{Session: id}, session.Closed, some[:1]
			case 3:
				body, to = event.SessionsExpired{Sessions: some}, session.Expired
			case 4:
				body, to = event.SessionsUnconfirmed{Sessions: some}, session.Unconfirmed
			}
			legal := true
			for _, id := range some {
				m := models[id]
				past := minute >= m.expires
				live := m.state == session.Issued || m.state == session.Confirmed || m.state == session.Unconfirmed
				switch to {
				case session.Confirmed:
					legal = legal && live && !past && m.state != session.Confirmed
				case session.Unconfirmed:
					legal = legal && m.state == session.Issued && !past
				case session.Expired:
					legal = legal && live && past
				default:
					legal = legal && live
				}
			}
			err := tab.apply(event.New(at(minute), "", body))
			if legal != (err == nil) || err != nil && !errors.Is(err, ledger.ErrTransition) {
				t.Fatalf("%+v at %d: legal %t, %v", body, minute, legal, err)
			}
			if legal {
				for _, id := range some {
					models[id] = model{to, models[id].expires}
				}
			}
		}
		for id, m := range models {
			s, _ := row[session.Session](t, tab, ledger.KindSession, id.String())
			if s.State != m.state || s.State.Ended() == s.EndedAt.IsZero() {
				t.Fatalf("session is %s, ended at %v; the model says %s", s.State, s.EndedAt, m.state)
			}
		}
		tab.refuseEmpty(t)
	})
}

func (tab *table) refuseEmpty(t rapid.TB) {
	tab.refuse(t, event.SessionsExpired{})
	tab.refuse(t, event.SessionsUnconfirmed{})
	tab.refuse(t, event.SessionConfirmed{Session: event.NewID(storetest.Start)})
}

func TestKindsAreDistinct(t *testing.T) {
	kinds := ledger.Kinds()
	slices.Sort(kinds)
	if len(slices.Compact(kinds)) != len(ledger.Kinds()) {
		t.Errorf("%v", kinds)
	}
}
