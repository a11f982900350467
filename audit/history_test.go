package audit

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/tiles"
	"github.com/bulla-project/bulla/ledger/event"
)

// TestVerifyHistory: what the log really holds, but can't have happened.
func TestVerifyHistory(t *testing.T) {
	s := newSigner(t)
	now := testStart.Add(time.Hour)
	delivery := issued("spiffe://dev.bulla.test/w", now)
	later := func(d time.Duration, b event.Body) event.Event {
		return event.New(now.Add(d), "spiffe://dev.bulla.test/w", b)
	}
	confirmed := event.SessionConfirmed{Session: delivery.Session}
	genesis := event.Genesis{Origin: testOrigin, LogKey: s.Key().String()}
	open := later(0, delivery)
	exhausted := issued("spiffe://dev.bulla.test/w", now)
	exhausted.Grade, exhausted.Uses, exhausted.Epoch = "gated", 1, "e"
	gated, revoked := later(0, exhausted), event.SessionRevoked{Session: exhausted.Session, Reason: "r"}
	use := func(after time.Duration, number uint32) event.Event {
		return later(after, event.SessionUsed{Session: exhausted.Session, Number: number, Decision: decision("PERMIT")})
	}
	denied := delivery
	denied.Decision = decision("DENY")
	for name, events := range map[string][]event.Event{
		"delivered though denied":       {later(0, denied)},
		"used though denied":            {gated, later(1, event.SessionUsed{Session: exhausted.Session, Number: 1, Decision: decision("STEP_UP")})},
		"session confirmed twice":       {open, later(1, confirmed), later(2, confirmed)},
		"session of nowhere confirmed":  {later(1, confirmed)},
		"confirmed after revocation":    {open, later(1, event.SessionRevoked{Session: delivery.Session}), later(2, confirmed)},
		"closed after being closed":     {open, later(1, event.SessionClosed{Session: delivery.Session}), later(2, event.SessionClosed{Session: delivery.Session})},
		"issued twice":                  {open, later(1, delivery)},
		"issued again after the end":    {open, later(1, event.SessionClosed{Session: delivery.Session}), later(2, delivery)},
		"expired too early":             {open, later(1, event.SessionsExpired{Sessions: []event.ID{delivery.Session}})},
		"unconfirmed though confirmed":  {open, later(1, confirmed), later(2, event.SessionsUnconfirmed{Sessions: []event.ID{delivery.Session}})},
		"the same event twice":          {open, later(1, confirmed), open},
		"a second genesis":              {open, later(1, genesis)},
		"expired a session of nowhere":  {open, later(time.Hour*2, event.SessionsExpired{Sessions: []event.ID{delivery.Session, event.NewID(now)}})},
		"a session without an id":       {later(0, event.SessionIssued{Expires: delivery.Expires, Decision: delivery.Decision})},
		"confirmed after the end":       {open, later(2*time.Hour, confirmed)},
		"the same event id, other body": {open, {ID: open.ID, Time: open.Time, Body: event.DecisionDenied{Decision: decision("DENY")}}},
		"used after the last use":       {gated, use(1, 1), use(2, 1)},
		"closed after the last use":     {gated, use(1, 1), later(2, event.SessionClosed{Session: exhausted.Session})},
		"revoked twice after it":        {gated, use(1, 1), later(2, revoked), later(3, revoked)},
		"revoked after it, too late":    {gated, use(1, 1), later(2*time.Hour, revoked)},
	} {
		src := newLedger(t, s.Key(), 4)
		for _, e := range events {
			src.add(t, e)
		}
		_, fault := verify(t, export(t, s, src), s.Key(), VerifyOptions{})
		if fault == nil || fault.Index != int64(3+len(events)) || fault.File != (tiles.Tile{W: 4 + len(events)}).EventsPath() {
			t.Errorf("%s: %v", name, fault)
		}
	}
	for name, first := range map[string]event.Body{
		"no genesis": delivery, "genesis of another log": event.Genesis{Origin: "other.example/log", LogKey: s.Key().String()},
		"genesis with another key": event.Genesis{Origin: testOrigin, LogKey: newSigner(t).Key().String()},
	} {
		src := &ledgerFake{}
		src.add(t, later(0, first))
		if _, fault := verify(t, export(t, s, src), s.Key(), VerifyOptions{}); fault == nil || fault.Index != 0 {
			t.Errorf("%s: %v", name, fault)
		}
	}
	ok := newLedger(t, s.Key(), 4)
	for _, e := range []event.Event{open, later(2*time.Minute, event.SessionsUnconfirmed{Sessions: []event.ID{delivery.Session}}), later(3*time.Minute, confirmed), later(2*time.Hour, event.SessionsExpired{Sessions: []event.ID{delivery.Session}}), gated, use(1, 1), later(2, revoked)} {
		ok.add(t, e)
	}
	if _, fault := verify(t, export(t, s, ok), s.Key(), VerifyOptions{}); fault != nil {
		t.Errorf("a whole life of a session: %v", fault)
	}
}

// TestVerifyNotCanonical: the log holds it, but it is no canonical event.
func TestVerifyNotCanonical(t *testing.T) {
	s := newSigner(t)
	src := newLedger(t, s.Key(), 10)
	files := readTree(t, export(t, s, src))
	r := src.records[9]
	r.Encoding = append([]byte(" "), r.Encoding...)
	bad := src.prefix(9)
	bad.put(r)
	if _, err := Export(t.Context(), filepath.Join(t.TempDir(), "x"), ExportConfig{Checkpoint: sign(t, s, bad), Key: s.Key(), Events: bad}); !errors.Is(err, proofs.ErrVerification) {
		t.Errorf("Export: %v", err)
	}
	// As a broker that has been taken over would write it.
	leaf := bad.leaves[9].Leaf.Bytes()
	last := bytes.LastIndexByte(bytes.TrimSuffix(files["events/000.p/10"], []byte("\n")), '\n') + 1
	files["events/000.p/10"] = appendLine(files["events/000.p/10"][:last:last], bad.records[9])
	copy(files["tile/entries/000.p/10"][len(files["tile/entries/000.p/10"])-len(leaf):], leaf)
	h := proofs.LeafHash(leaf)
	copy(files["tile/0/000.p/10"][9*32:], h[:])
	files[checkpointName] = sign(t, s, bad)
	m := Manifest{Origin: testOrigin, Size: 10, Root: oracleRoot(bad.leaves)}
	for _, name := range []string{checkpointName, "tile/0/000.p/10", "tile/entries/000.p/10", "events/000.p/10"} {
		m.Files = append(m.Files, listed(name, files[name]))
	}
	var err error
	if files[manifestName], err = m.Encode(); err != nil {
		t.Fatal(err)
	}
	if _, fault := verify(t, writeTree(t, files), s.Key(), VerifyOptions{}); fault == nil || fault.Index != 9 || !strings.Contains(fault.What, "malformed event") {
		t.Errorf("Verify: %v", fault)
	}
}
