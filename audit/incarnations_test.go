package audit

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/ledger/event"
)

// signerOf makes the key of another log.
func signerOf(t testing.TB, origin string) *proofs.Signer {
	t.Helper()
	skey, _, err := proofs.NewLogKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := proofs.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// restoredTo is the event that goes on from the log of old, of which all was known, in that of next.
func restoredTo(t testing.TB, old, next *proofs.Signer, all *ledgerFake) event.Restored {
	t.Helper()
	c := proofs.Checkpoint{Origin: old.Origin(), Size: int64(len(all.leaves)), Root: oracleRoot(all.leaves)}
	signed, err := old.Sign(c)
	if err != nil {
		t.Fatal(err)
	}
	_, n := proofs.SplitIncarnation(next.Origin())
	return event.Restored{
		Incarnation: n, Origin: next.Origin(), LogKey: next.Key().String(), Previous: old.Origin(),
		Known: event.KnownHead{Origin: c.Origin, Size: c.Size, Root: c.Root.String(), Signed: signed},
	}
}

// An export of a restored ledger verifies with the new key alone. Checkpoints of the log before are compared with as far
// as that was kept; one that signs more is not passed over.
func TestVerifyRestored(t *testing.T) {
	first, second, third := newSigner(t), signerOf(t, proofs.Incarnation(testOrigin, 2)), signerOf(t, proofs.Incarnation(testOrigin, 5))
	all := newLedger(t, first.Key(), 600)
	src := all.prefix(500)
	src.add(t, event.New(testStart.Add(time.Hour), "", restoredTo(t, first, second, all)))
	dir := export(t, second, src)
	report, fault := verify(t, dir, second.Key(), VerifyOptions{})
	if fault != nil {
		t.Fatal(fault)
	}
	if want := (Restore{500, 2, second.Origin(), 600, testOrigin}); len(report.Restores) != 1 || report.Restores[0] != want || !strings.Contains(report.Summary, "restored from a backup by entry 500") {
		t.Errorf("%+v, %s", report.Restores, report.Summary)
	}
	if _, err := Verify(t.Context(), dir, first.Key(), VerifyOptions{}); !errors.Is(err, proofs.ErrVerification) || !strings.Contains(err.Error(), "restored from a backup") {
		t.Errorf("with the key of the old log: %v", err)
	}
	for n, want := range map[int]bool{1: true, 256: true, 499: true, 500: true, 501: false, 600: false} {
		report, fault := verify(t, dir, second.Key(), VerifyOptions{Against: sign(t, first, all.prefix(n))})
		switch {
		case want && (fault != nil || *report.Against != int64(n) || !strings.Contains(report.Summary, "of log "+testOrigin)):
			t.Errorf("against %d entries of the old log: %v, %s", n, fault, report.Summary)
		case !want && (fault == nil || fault.Index != 500 || !strings.Contains(fault.What, "restored here")):
			t.Errorf("against %d entries of the old log: %v", n, fault)
		}
	}
	forked := all.prefix(400)
	forked.leaves[7].Leaf.Event[3] ^= 1
	if _, fault := verify(t, dir, second.Key(), VerifyOptions{Against: sign(t, first, forked)}); fault == nil || !strings.Contains(fault.What, "rewritten") {
		t.Errorf("against a fork of the old log: %v", fault)
	}
	if _, fault := verify(t, dir, second.Key(), VerifyOptions{Against: sign(t, newSigner(t), all.prefix(10))}); fault == nil {
		t.Error("against a checkpoint that another key signed for the old log")
	}

	// Once more, and an incarnation in between that came to nothing.
	again := src.prefix(501)
	again.add(t, event.New(testStart.Add(2*time.Hour), "", restoredTo(t, second, third, src)))
	if report, fault := verify(t, export(t, third, again), third.Key(), VerifyOptions{Against: sign(t, first, all.prefix(500))}); fault != nil || len(report.Restores) != 2 {
		t.Errorf("the third life: %v, %+v", fault, report.Restores)
	}
	if _, fault := verify(t, export(t, second, again), second.Key(), VerifyOptions{}); fault == nil || fault.Index != 501 {
		t.Errorf("signed by the key of the life before: %v", fault)
	}
}

// A restore that can't have been, in a log that somebody signed all the same.
func TestVerifyRefusesRestores(t *testing.T) {
	first, second := newSigner(t), signerOf(t, proofs.Incarnation(testOrigin, 2))
	all := newLedger(t, first.Key(), 30)
	for name, change := range map[string]func(b *event.Restored){
		"of another log":            func(b *event.Restored) { b.Previous = "other.example/log" },
		"first again":               func(b *event.Restored) { b.Incarnation = 1 },
		"another number":            func(b *event.Restored) { b.Incarnation = 3 },
		"another name":              func(b *event.Restored) { b.Origin = proofs.Incarnation("other.example/log", 2) },
		"key of another log":        func(b *event.Restored) { b.LogKey = newSigner(t).Key().String() },
		"the old key":               func(b *event.Restored) { b.LogKey, b.Origin = first.Key().String(), testOrigin },
		"no checkpoint":             func(b *event.Restored) { b.Known.Signed = nil },
		"another size":              func(b *event.Restored) { b.Known.Size++ },
		"another root":              func(b *event.Restored) { b.Known.Root = proofs.Hash{}.String() },
		"another log known":         func(b *event.Restored) { b.Known.Origin = "other.example/log" },
		"checkpoint of another key": func(b *event.Restored) { b.Known.Signed = sign(t, newSigner(t), all) },
		"checkpoint of another log": func(b *event.Restored) { b.Known = restoredTo(t, signerOf(t, "other.example/log"), second, all).Known },
		"checkpoint of the new log": func(b *event.Restored) { b.Known = restoredTo(t, second, second, all).Known },
		"checkpoint of a later log": func(b *event.Restored) {
			b.Known = restoredTo(t, signerOf(t, proofs.Incarnation(testOrigin, 9)), second, all).Known
		},
		"checkpoint that was altered": func(b *event.Restored) { b.Known.Signed[len(b.Known.Signed)-3] ^= 1 },
	} {
		b := restoredTo(t, first, second, all)
		change(&b)
		src := all.prefix(20)
		src.add(t, event.New(testStart.Add(time.Hour), "", b))
		if _, fault := verify(t, export(t, second, src), second.Key(), VerifyOptions{}); fault == nil || fault.Index != 20 {
			t.Errorf("%s: %v", name, fault)
		}
	}
	src := all.prefix(20)
	if _, fault := verify(t, export(t, second, src), second.Key(), VerifyOptions{}); fault == nil || fault.Index != 0 {
		t.Errorf("a log that no restore names: %v", fault)
	}
}

func TestMeasure(t *testing.T) {
	s := newSigner(t)
	src := newLedger(t, s.Key(), 5000)
	size, roots, err := Measure(t.Context(), src, 5001, 4999, 4097, 1, 4999)
	if err != nil || size != 5000 {
		t.Fatal(size, err)
	}
	for _, n := range []int{1, 4097, 4999, 5000} {
		if roots[int64(n)] != oracleRoot(src.leaves[:n]) {
			t.Errorf("the root of %d", n)
		}
	}
	if _, ok := roots[5001]; ok {
		t.Error("there is a root of more than there is")
	}
	if size, _, err := Measure(t.Context(), &ledgerFake{}); err != nil || size != 0 {
		t.Error(size, err)
	}
	src.leaves = append(src.leaves[:7:7], src.leaves[8:]...)
	if _, _, err := Measure(t.Context(), src); !errors.Is(err, ErrGap) {
		t.Errorf("with a gap: %v", err)
	}
}

// TestAbuse_A49_incarnations: where the log goes on in another incarnation, a copy of the one before or after signs nothing.
func TestAbuse_A49_incarnations(t *testing.T) {
	first, second := newSigner(t), signerOf(t, proofs.Incarnation(testOrigin, 2))
	src := newLedger(t, first.Key(), 20)
	for _, s := range [][2]*proofs.Signer{{first, second}, {second, first}} {
		outside := filepath.Join(t.TempDir(), "checkpoint")
		writeFile(t, outside, sign(t, s[1], src.prefix(5)))
		_, err := Open(t.Context(), Config{Dir: t.TempDir(), Origin: s[0].Origin(), Signer: s[0], Source: src, OutsideCheckpoint: outside})
		if !errors.Is(err, ErrRollback) || !strings.Contains(err.Error(), "one of them is from before a restore") {
			t.Errorf("%s beside %s: %v", s[0].Origin(), s[1].Origin(), err)
		}
	}
}
