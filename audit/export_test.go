package audit

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/ledger/event"
)

func TestExportRefuses(t *testing.T) {
	s := newSigner(t)
	src := newLedger(t, s.Key(), 300)
	checkpoint := sign(t, s, src)
	altered := src.prefix(300)
	altered.records[7].ReplySalt[0] ^= 1
	swapped := src.prefix(300)
	swapped.records[7], swapped.records[8] = swapped.records[8], swapped.records[7]
	failed := src.prefix(300)
	failed.err = errDisk
	empty, err := s.Sign(proofs.Checkpoint{Origin: testOrigin, Root: oracleRoot(nil)})
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		cfg  ExportConfig
		want error
	}{
		"fewer events":      {ExportConfig{Checkpoint: checkpoint, Key: s.Key(), Events: src.prefix(299)}, proofs.ErrVerification},
		"other events":      {ExportConfig{Checkpoint: checkpoint, Key: s.Key(), Events: altered}, proofs.ErrVerification},
		"swapped events":    {ExportConfig{Checkpoint: checkpoint, Key: s.Key(), Events: swapped}, ErrGap},
		"other key":         {ExportConfig{Checkpoint: checkpoint, Key: newSigner(t).Key(), Events: src}, proofs.ErrVerification},
		"empty log":         {ExportConfig{Checkpoint: empty, Key: s.Key(), Events: src}, ErrEmpty},
		"source that fails": {ExportConfig{Checkpoint: checkpoint, Key: s.Key(), Events: failed}, errDisk},
	} {
		parent := t.TempDir()
		if _, err := Export(t.Context(), filepath.Join(parent, "x"), tt.cfg); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
		if left, err := os.ReadDir(parent); err != nil || len(left) != 0 {
			t.Errorf("%s: something was left behind: %v, %v", name, left, err)
		}
	}
	dir := t.TempDir()
	if _, err := Export(t.Context(), dir, ExportConfig{Checkpoint: checkpoint, Key: s.Key(), Events: src}); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("an existing directory: %v", err)
	}
	// More events than the checkpoint signs are not exported.
	parent := filepath.Join(t.TempDir(), "x")
	if _, err := Export(t.Context(), parent, ExportConfig{Checkpoint: sign(t, s, src.prefix(256)), Key: s.Key(), Events: src}); err != nil {
		t.Fatal(err)
	}
	if r, fault := verify(t, parent, s.Key(), VerifyOptions{}); fault != nil || r.Size != 256 {
		t.Errorf("%v, %+v", fault, r)
	}
}

func TestLine(t *testing.T) {
	src := newLedger(t, newSigner(t).Key(), 10)
	for _, r := range src.records {
		line := appendLine(nil, r)
		got, err := parseLine(line)
		if err != nil || got.Leaf() != r.Leaf() || got.Index != r.Index {
			t.Errorf("event %d: %v", r.Index, err)
		}
		if !json.Valid(line) {
			t.Errorf("event %d: the line is not JSON", r.Index)
		}
	}
	good := string(appendLine(nil, src.records[1]))
	for name, bad := range map[string]string{
		"empty": "", "no newline": strings.TrimSuffix(good, "\n"), "index with zero": strings.Replace(good, `:1,`, `:01,`, 1), "negative index": strings.Replace(good, `:1,`, `:-1,`, 1),
		"space": strings.Replace(good, `:1,`, `: 1,`, 1), "other field": strings.Replace(good, "reply_salt", "reply_malt", 1), "upper case": upperSalt(good), "salt too long": strings.Replace(good, `"event_salt":"`, `"event_salt":"ab`, 1),
		"zero reply":      string(appendLine(nil, src.records[2]))[:0] + strings.Replace(string(appendLine(nil, src.records[2])), `"reply":""`, `"reply":"`+strings.Repeat("0", 64)+`"`, 1),
		"index too large": strings.Replace(good, `:1,`, `:9223372036854775808,`, 1), "index too long": strings.Replace(good, `:1,`, `:`+strings.Repeat("9", 100)+`,`, 1), "too long": good[:len(good)-2] + strings.Repeat(" ", maxLine) + "}\n",
	} {
		if _, err := parseLine([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// upperSalt writes the event salt of a line with capital digits.
func upperSalt(line string) string {
	at := strings.Index(line, lineEventSalt) + len(lineEventSalt)
	return line[:at] + strings.ToUpper(line[at:at+64]) + line[at+64:]
}

func FuzzLine(f *testing.F) {
	src := newLedger(f, newSigner(f).Key(), 4)
	for _, r := range src.records {
		f.Add(appendLine(nil, r))
	}
	f.Add([]byte(lineIndex))
	f.Add(appendLine(nil, Record{Index: 7, Erased: 31}))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseLine(data)
		if err == nil && !bytes.Equal(appendLine(nil, r), data) {
			t.Errorf("%q is not canonical", data)
		}
	})
}

func FuzzManifest(f *testing.F) {
	m := Manifest{Origin: testOrigin, Size: 3, Files: []File{listed(checkpointName, []byte("x")), listed("tile/0/000.p/3", nil)}}
	raw, err := m.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"format":"bulla-export/v1"}`))
	f.Add([]byte(`{"format":"bulla-export/v2"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseManifest(data)
		if err != nil {
			if !errors.Is(err, ErrManifest) {
				t.Errorf("error without the sentinel: %v", err)
			}
			return
		}
		if again, err := m.Encode(); err != nil || !bytes.Equal(again, data) {
			t.Errorf("%q is not canonical: %v", data, err)
		}
	})
}

// A checkpoint that nobody cosigned is not taken for a witnessed one.
func TestWitnessedByNobody(t *testing.T) {
	s := newSigner(t)
	src := newLedger(t, s.Key(), 300)
	plain := sign(t, s, src.prefix(260))
	cfg := ExportConfig{Checkpoint: sign(t, s, src), Key: s.Key(), Events: src, Witnessed: plain}
	if _, err := Export(t.Context(), filepath.Join(t.TempDir(), "x"), cfg); !errors.Is(err, proofs.ErrVerification) {
		t.Errorf("exported: %v", err)
	}
	files := readTree(t, export(t, s, src))
	m, err := ParseManifest(files[manifestName])
	if err != nil {
		t.Fatal(err)
	}
	m.Files = slices.Insert(m.Files, 1, listed(witnessedName, plain))
	files[witnessedName] = plain
	if files[manifestName], err = m.Encode(); err != nil {
		t.Fatal(err)
	}
	if _, fault := verify(t, writeTree(t, files), s.Key(), VerifyOptions{}); fault == nil || fault.File != witnessedName {
		t.Errorf("verified: %v", fault)
	}
}

// What a witness has seen can't have happened later.
func TestEventsAfterTheirWitness(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	w, err := torchwood.NewCosignatureSigner("w.example/w", ed25519.NewKeyFromSeed(make([]byte, 32)))
	if err != nil {
		t.Fatal(err)
	}
	key, err := proofs.ParseWitnessKey(w.Verifier().String() + "\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		late int // place of a denial that is an hour ahead; the witness sees ten entries
		opts VerifyOptions
		want bool
	}{
		{late: 3, opts: VerifyOptions{Witnesses: []proofs.WitnessKey{key}}, want: true},
		{late: 9, opts: VerifyOptions{Witnesses: []proofs.WitnessKey{key}}, want: true},
		{late: 15, opts: VerifyOptions{Witnesses: []proofs.WitnessKey{key}}},
		{late: 3}, // nobody's word for the time
	} {
		src := newLedger(t, s.Key(), c.late)
		src.add(t, event.New(time.Now().Add(time.Hour), "x", event.DecisionDenied{Principal: "x", Decision: decision("DENY")}))
		src.grow(t, s.Key(), 18)
		at, err := s.Key().Open(sign(t, s, src.prefix(10)))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := note.Sign(&note.Note{Text: at.Text()}, w)
		if err != nil {
			t.Fatal(err)
		}
		seen, err := s.Key().Cosign(sign(t, s, src.prefix(10)), answer[bytes.LastIndex(answer, []byte("\n\n"))+2:], key)
		if err != nil {
			t.Fatal(err)
		}
		for _, against := range []bool{false, true} {
			cfg, opts := ExportConfig{Checkpoint: sign(t, s, src), Key: s.Key(), Events: src}, c.opts
			if against {
				opts.Against = seen
			} else {
				cfg.Witnessed = seen
			}
			dir := filepath.Join(t.TempDir(), "x")
			if _, err := Export(t.Context(), dir, cfg); err != nil {
				t.Fatal(err)
			}
			_, fault := verify(t, dir, s.Key(), opts)
			if got := fault != nil; got != c.want || got && fault.Index != int64(c.late) {
				t.Errorf("entry %d, against %t: %+v", c.late, against, fault)
			}
		}
	}
}
