package audit

import (
	"context"
	"crypto/sha256"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/ledger/event"
)

const erasedSubject = "spiffe://dev.bulla.test/gone"

// erase marks records as a ledger gives them out after an erasure, and adds the event that says so.
func (l *ledgerFake) erase(t testing.TB, indexes []int64, sessions ...event.ErasedSession) int64 {
	t.Helper()
	by := int64(len(l.records))
	l.add(t, event.New(testStart.Add(time.Hour), "", event.SubjectErased{
		Subject: erasedSubject, Key: erasedSubject + "#1", Seen: by, Indexes: indexes, Sessions: sessions, Reason: "test",
	}))
	for _, i := range indexes {
		l.records[i] = Record{Index: i, Erased: by, Left: l.records[i].Leaf()}
	}
	return by
}

// erasedLedger is a log of n entries and some more, of which some were erased: two deliveries, one of which the sweeper
// ended in an event that can be read, and some denials.
func erasedLedger(t testing.TB, key proofs.Key, n int) (src *ledgerFake, gone []int64) {
	src = newLedger(t, key, n)
	one, two := issued(erasedSubject, testStart), issued(erasedSubject, testStart)
	first := int64(len(src.records))
	src.add(t, event.New(testStart, erasedSubject, one))
	src.add(t, event.New(testStart, erasedSubject, two))
	src.add(t, event.New(testStart, erasedSubject, event.SessionConfirmed{Session: one.Session, R: []byte("r")}))
	src.add(t, event.New(testStart, "", event.SessionsRevoked{Sessions: []event.ID{one.Session, two.Session}, Reason: "test"}))
	src.add(t, event.New(testStart, erasedSubject, event.DecisionDenied{Principal: erasedSubject, Decision: decision("DENY")}))
	gone = []int64{first, first + 1, first + 2, first + 4}
	src.erase(t, gone, event.ErasedSession{Session: one.Session, State: "revoked"}, event.ErasedSession{Session: two.Session, State: "revoked"})
	return src, gone
}

func TestErasedExport(t *testing.T) {
	s := newSigner(t)
	for _, n := range []int{1, 20, 254, 300} {
		src, gone := erasedLedger(t, s.Key(), n)
		dir := export(t, s, src)
		r, fault := verify(t, dir, s.Key(), VerifyOptions{})
		if fault != nil || r.Erased != int64(len(gone)) || !strings.Contains(r.Summary, "4 of them erased") {
			t.Errorf("%d entries: %+v, %v", n, r, fault)
		}
		if raw := readTree(t, dir)[manifestName]; !strings.HasPrefix(string(raw), `{"format":"`+erasedFormat) {
			t.Errorf("manifest %.60s", raw)
		}
	}
	if raw := readTree(t, export(t, s, newLedger(t, s.Key(), 20)))[manifestName]; !strings.HasPrefix(string(raw), `{"format":"`+exportFormatOld) || strings.Contains(string(raw), "erased") {
		t.Errorf("manifest without erased entries %.60s", raw)
	}
}

// An export with revisions may hold erased lines as well, and what it activates is still to be there.
func TestErasedExportWithRevisions(t *testing.T) {
	s := newSigner(t)
	src, gone := erasedLedger(t, s.Key(), 20)
	archive := []byte("one")
	src.add(t, event.New(testStart, "", event.RevisionActivated{Digest: sha256.Sum256(archive), Sequence: 1, Source: "test"}))
	dir := filepath.Join(t.TempDir(), "export")
	cfg := ExportConfig{Checkpoint: sign(t, s, src), Key: s.Key(), Events: src, Revisions: func(context.Context, event.Digest) ([]byte, error) { return archive, nil }}
	if _, err := Export(t.Context(), dir, cfg); err != nil {
		t.Fatal(err)
	}
	bodiless := 0
	r, fault := verify(t, dir, s.Key(), VerifyOptions{Event: func(_ int64, e event.Event) error {
		if e.Body == nil {
			bodiless++
		}
		return nil
	}})
	if fault != nil || r.Erased != int64(len(gone)) || bodiless != len(gone) {
		t.Errorf("%+v, %d without a body, %v", r, bodiless, fault)
	}
	files := readTree(t, dir)
	if raw := files[manifestName]; !strings.HasPrefix(string(raw), `{"format":"`+ExportFormat) {
		t.Errorf("manifest %.60s", raw)
	}
	delete(files, archiveName(sha256.Sum256(archive)))
	if _, fault = verify(t, writeTree(t, files), s.Key(), VerifyOptions{}); fault == nil {
		t.Error("the archive is missing, and all verifies")
	}
}

// Somebody hides an event by calling it erased, by each event of the log that comes after it.
func TestAbuse_A29_called_erased(t *testing.T) {
	s := newSigner(t)
	src, gone := erasedLedger(t, s.Key(), 20)
	size := int64(len(src.records))
	for i := range size {
		for by := i + 1; by < size; by++ {
			if slices.Contains(gone, i) && src.records[i].Erased == by {
				continue
			}
			forged := &ledgerFake{records: slices.Clone(src.records), leaves: src.leaves}
			forged.records[i] = Record{Index: i, Erased: by, Left: src.records[i].Leaf()}
			_, fault := verify(t, export(t, s, forged), s.Key(), VerifyOptions{})
			if fault == nil {
				t.Fatalf("entry %d is called erased by event %d, and all verifies", i, by)
			}
			// What hides an opening may show first at an event about that session, what hides the erasure at what it erased.
			if fault.Index != i && fault.Index < i && !slices.Contains(gone, fault.Index) {
				t.Errorf("entry %d by %d: found at %d: %s", i, by, fault.Index, fault.What)
			}
			if !strings.Contains(fault.File, "events/") {
				t.Errorf("entry %d by %d: found in %q", i, by, fault.File)
			}
		}
	}
}

// An entry that can be read where the log says that it was erased, and one that another event is said to have erased.
func TestErasedOtherwise(t *testing.T) {
	s := newSigner(t)
	src, gone := erasedLedger(t, s.Key(), 20)
	readable := newLedger(t, s.Key(), 20)
	denied := int64(len(readable.records))
	readable.add(t, event.New(testStart, erasedSubject, event.DecisionDenied{Principal: erasedSubject, Decision: decision("DENY")}))
	whole := readable.records[denied]
	readable.erase(t, []int64{denied})
	readable.records[denied] = whole
	_, fault := verify(t, export(t, s, readable), s.Key(), VerifyOptions{})
	if fault == nil || fault.Index != denied {
		t.Errorf("an entry that is there: %v", fault)
	}
	src.erase(t, gone[:1])
	src.records[gone[0]].Erased = int64(len(src.records)) - 2
	if _, fault = verify(t, export(t, s, src), s.Key(), VerifyOptions{}); fault == nil {
		t.Error("erased twice, and all verifies")
	}
	twice := newLedger(t, s.Key(), 5)
	twice.add(t, event.New(testStart, "", event.SessionsRevoked{Sessions: []event.ID{event.NewID(testStart)}, Reason: "never issued"}))
	stray := int64(len(twice.records)) - 1
	if _, fault = verify(t, export(t, s, twice), s.Key(), VerifyOptions{}); fault == nil || fault.Index != stray {
		t.Errorf("a session that was never issued: %v", fault)
	}
}

// After an erasure, too, each changed line is found, and a sample of changed bits.
func TestAbuse_A29_erasedLines(t *testing.T) {
	s := newSigner(t)
	src, _ := erasedLedger(t, s.Key(), 20)
	files := readTree(t, export(t, s, src))
	random := rand.New(rand.NewPCG(2, 9))
	for name, content := range files {
		if !strings.HasPrefix(name, "events/") {
			continue
		}
		for range 300 {
			at := random.IntN(len(content))
			changed := maps.Clone(files)
			changed[name] = slices.Clone(content)
			changed[name][at] ^= 1 << random.IntN(8)
			if _, fault := verify(t, writeTree(t, changed), s.Key(), VerifyOptions{}); fault == nil {
				t.Fatalf("byte %d of %s is changed, and all verifies", at, name)
			}
		}
	}
}

func TestErasedLine(t *testing.T) {
	line := appendLine(nil, Record{Index: 7, Erased: 31})
	if string(line) != "{\"index\":7,\"erased\":31}\n" {
		t.Errorf("line %s", line)
	}
	if r, err := parseLine(line); err != nil || r.Index != 7 || r.Erased != 31 {
		t.Errorf("%+v: %v", r, err)
	}
	for _, bad := range []string{
		"{\"index\":7,\"erased\":7}\n", "{\"index\":7,\"erased\":0}\n", "{\"index\":07,\"erased\":31}\n", "{\"index\":7,\"erased\":31}", "{\"index\":7,\"erased\":31} \n",
		"{\"index\":7,\"erased\":31,\"event\":{}}\n", "{\"index\":-1,\"erased\":31}\n", "{\"index\":7,\"erased\":99999999999999999999}\n",
	} {
		if r, err := parseLine([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, r)
		}
	}
}
