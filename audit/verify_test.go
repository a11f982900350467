package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/ledger/event"
)

// verify returns the report, and the fault if there is one; any other error ends the test.
func verify(t testing.TB, dir string, key proofs.Key, opts VerifyOptions) (Report, *Fault) {
	t.Helper()
	r, err := Verify(t.Context(), dir, key, opts)
	if err == nil {
		return r, nil
	}
	var f *Fault
	if !errors.As(err, &f) || !errors.Is(err, proofs.ErrVerification) {
		t.Fatalf("verification failed without a fault: %v", err)
	}
	if f.What == "" || f.File == "" {
		t.Fatalf("a fault without a place or a reason: %v", err)
	}
	return r, f
}

// consistent computes the manifest of files again, as somebody who covers his tracks would.
func consistent(t *testing.T, files map[string][]byte) map[string][]byte {
	t.Helper()
	m, err := ParseManifest(files[manifestName])
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range m.Files {
		m.Files[i] = listed(f.Path, files[f.Path])
	}
	out := maps.Clone(files)
	if out[manifestName], err = m.Encode(); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestVerify(t *testing.T) {
	s := newSigner(t)
	all := newLedger(t, s.Key(), 1000)
	for _, size := range []int{1, 2, 3, 70, 255, 256, 257, 512, 513, 1000} {
		src := all.prefix(size)
		dir := export(t, s, src)
		var last int64
		r, fault := verify(t, dir, s.Key(), VerifyOptions{Progress: func(done, total int64) {
			if done <= last || done > total || total != int64(size) {
				t.Errorf("size %d: progress went from %d to %d of %d", size, last, done, total)
			}
			last = done
		}})
		if fault != nil {
			t.Fatalf("size %d: %v", size, fault)
		}
		if last != int64(size) || r.Size != last || r.Origin != testOrigin || r.Root != oracleRoot(src.leaves).String() || r.Against != nil {
			t.Errorf("size %d: report %+v", size, r)
		}
		if want := "freshness not shown"; !strings.Contains(r.Summary, want) {
			t.Errorf("summary %q does not say %q", r.Summary, want)
		}
		files, bytes := 0, int64(0)
		for _, content := range readTree(t, dir) {
			files, bytes = files+1, bytes+int64(len(content))
		}
		if r.Files != files || r.Bytes != bytes {
			t.Errorf("size %d: report says %d files, %d bytes; there are %d, %d", size, r.Files, r.Bytes, files, bytes)
		}
		if _, err := json.Marshal(r); err != nil {
			t.Error(err)
		}
	}
}

// TestAbuse_A29_everyBit flips single bits all over an export of 300 entries. In every file the first and last 24
// bytes are hit, and a sample of those between.
func TestAbuse_A29_everyBit(t *testing.T) {
	s := newSigner(t)
	files := readTree(t, export(t, s, newLedger(t, s.Key(), 300)))
	dir := writeTree(t, files)
	random := rand.New(rand.NewPCG(29, 300))
	inside, edge := 40, 24
	if testing.Short() {
		inside, edge = 4, 4
	}
	for name, content := range files {
		positions := random.Perm(len(content))[:min(len(content), inside)]
		for i := range min(edge, len(content)) {
			positions = append(positions, i, len(content)-1-i)
		}
		for _, at := range positions {
			bad := bytes.Clone(content)
			bad[at] ^= 1 << random.IntN(8)
			writeFile(t, filepath.Join(dir, name), bad)
			_, fault := verify(t, dir, s.Key(), VerifyOptions{})
			switch {
			case fault == nil:
				t.Errorf("%s, byte %d: a flipped bit went unnoticed", name, at)
			case fault.File != name:
				t.Errorf("%s, byte %d: the fault is said to be in %s: %v", name, at, fault.File, fault)
			case strings.HasPrefix(name, "events/000") && len(bytes.SplitAfter(content[:at], []byte("\n"))) != int(fault.Index)+1 && content[at] != '\n':
				t.Errorf("%s, byte %d: entry %d is blamed: %v", name, at, fault.Index, fault)
			case name == "tile/entries/000" && fault.Index != int64(at/(2+event.LeafSize)):
				t.Errorf("%s, byte %d: entry %d is blamed: %v", name, at, fault.Index, fault)
			case name == "tile/0/000" && fault.Index != int64(at/32):
				t.Errorf("%s, byte %d: entry %d is blamed: %v", name, at, fault.Index, fault)
			}
		}
		writeFile(t, filepath.Join(dir, name), content)
	}
	if _, fault := verify(t, dir, s.Key(), VerifyOptions{}); fault != nil {
		t.Fatalf("the export is no longer whole: %v", fault)
	}
}

// TestAbuse_A29_entries removes, swaps, repeats and edits events, with and without covering tracks, and expects the place.
func TestAbuse_A29_entries(t *testing.T) {
	s := newSigner(t)
	src := newLedger(t, s.Key(), 700)
	files := readTree(t, export(t, s, src))
	lines := func(edit func(l [][]byte) [][]byte) func(f map[string][]byte) {
		return func(f map[string][]byte) {
			l := bytes.SplitAfter(f["events/001"], []byte("\n"))
			f["events/001"] = bytes.Join(edit(l[:256:256]), nil)
		}
	}
	const width = 2 + event.LeafSize
	entries := func(edit func(e [][]byte) [][]byte) func(f map[string][]byte) {
		return func(f map[string][]byte) {
			f["tile/entries/001"] = bytes.Join(edit(slices.Collect(slices.Chunk(f["tile/entries/001"], width))), nil)
		}
	}
	remove := func(all [][]byte) [][]byte { return slices.Delete(slices.Clone(all), 17, 18) }
	swap := func(all [][]byte) [][]byte {
		all = slices.Clone(all)
		all[17], all[30] = all[30], all[17]
		return all
	}
	repeat := func(all [][]byte) [][]byte { return slices.Insert(slices.Clone(all), 17, all[16]) }
	cut := func(all [][]byte) [][]byte { return all[:17] }
	cutWithin := func(all [][]byte) [][]byte { return append(slices.Clone(all[:17]), all[17][:40]) }
	for name, tt := range map[string]struct {
		edit  func(f map[string][]byte)
		file  string
		index int64
	}{
		"event removed":      {lines(remove), "events/001", 273},
		"events swapped":     {lines(swap), "events/001", 273},
		"event repeated":     {lines(repeat), "events/001", 273},
		"events cut":         {lines(cut), "events/001", 273},
		"event cut within":   {lines(cutWithin), "events/001", 273},
		"event edited":       {lines(func(l [][]byte) [][]byte { return edited(l, 17) }), "events/001", 273},
		"event renumbered":   {lines(func(l [][]byte) [][]byte { return renumbered(l, 17, 30) }), "events/001", 273},
		"line too long":      {lines(func(l [][]byte) [][]byte { return append(l[:17], bytes.Repeat([]byte("x"), maxLine+2)) }), "events/001", 273},
		"event more":         {func(f map[string][]byte) { f["events/001"] = append(bytes.Clone(f["events/001"]), "x"...) }, "events/001", 512},
		"entry removed":      {entries(remove), "tile/entries/001", 273},
		"entries swapped":    {entries(swap), "tile/entries/001", 273},
		"entry repeated":     {entries(repeat), "tile/entries/001", 273},
		"entries cut":        {entries(cut), "tile/entries/001", 273},
		"entry cut within":   {entries(cutWithin), "tile/entries/001", 273},
		"entry more":         {func(f map[string][]byte) { f["tile/entries/001"] = append(bytes.Clone(f["tile/entries/001"]), 0) }, "tile/entries/001", 512},
		"last event removed": {func(f map[string][]byte) { f["events/002.p/188"] = dropLast(f["events/002.p/188"]) }, "events/002.p/188", 699},
		"tile cut":           {func(f map[string][]byte) { f["tile/0/001"] = f["tile/0/001"][32:] }, "tile/0/001", -1},
		"tile more":          {func(f map[string][]byte) { f["tile/0/001"] = append(bytes.Clone(f["tile/0/001"]), 0) }, "tile/0/001", -1},
		"upper tile cut":     {func(f map[string][]byte) { f["tile/1/000.p/2"] = f["tile/1/000.p/2"][32:] }, "tile/1/000.p/2", -1},
		"upper tile emptied": {func(f map[string][]byte) { f["tile/1/000.p/2"] = nil }, "tile/1/000.p/2", -1},
	} {
		for _, covered := range []bool{false, true} {
			bad := maps.Clone(files)
			tt.edit(bad)
			if covered {
				bad = consistent(t, bad)
			}
			_, fault := verify(t, writeTree(t, bad), s.Key(), VerifyOptions{})
			if fault == nil || fault.File != tt.file || fault.Index != tt.index {
				t.Errorf("%s (tracks covered: %v): %v; want the fault in %s at %d", name, covered, fault, tt.file, tt.index)
			}
		}
	}
}

func edited(lines [][]byte, i int) [][]byte {
	lines = slices.Clone(lines)
	lines[i] = bytes.Replace(lines[i], []byte("PERMIT"), []byte("DENIED"), 1)
	lines[i] = bytes.Replace(lines[i], []byte("signature"), []byte("Signature"), 1)
	lines[i] = bytes.Replace(lines[i], []byte("company"), []byte("Company"), 1)
	lines[i] = bytes.Replace(lines[i], []byte("DENY"), []byte("NONE"), 1)
	return lines
}

// renumbered puts the line of another event in the place of event i, with its index changed.
func renumbered(lines [][]byte, i, from int) [][]byte {
	lines = slices.Clone(lines)
	r, _ := parseLine(lines[i])
	other, _ := parseLine(lines[from])
	other.Index = r.Index
	lines[i] = appendLine(nil, other)
	return lines
}

func dropLast(content []byte) []byte {
	return content[:bytes.LastIndexByte(content[:len(content)-1], '\n')+1]
}

// TestAbuse_A29_rewritten: entries replaced together with their events, tiles, and manifest.
func TestAbuse_A29_rewritten(t *testing.T) {
	s, other := newSigner(t), newSigner(t)
	src := newLedger(t, s.Key(), 700)
	files := readTree(t, export(t, s, src))
	oldCheckpoint := sign(t, s, src.prefix(600))

	forged := src.prefix(700)
	forged.records[300].EventSalt[0] ^= 1
	forged.leaves[300].Leaf = forged.records[300].Leaf()
	forgedFiles := readTree(t, export(t, s, forged))
	newHistory := readTree(t, export(t, other, newLedger(t, other.Key(), 700)))

	t.Run("one bundle, upper tiles kept", func(t *testing.T) {
		bad := maps.Clone(files)
		for _, name := range []string{"tile/0/001", "tile/entries/001", "events/001"} {
			bad[name] = forgedFiles[name]
		}
		_, fault := verify(t, writeTree(t, consistent(t, bad)), s.Key(), VerifyOptions{})
		if fault == nil || fault.File != "tile/entries/001" || fault.Index != 256 {
			t.Errorf("%v", fault)
		}
	})
	t.Run("all, checkpoint kept", func(t *testing.T) {
		bad := maps.Clone(forgedFiles)
		bad[checkpointName] = files[checkpointName]
		bad[manifestName] = files[manifestName]
		_, fault := verify(t, writeTree(t, consistent(t, bad)), s.Key(), VerifyOptions{})
		if fault == nil || fault.File != checkpointName || !strings.Contains(fault.What, "rewritten") {
			t.Errorf("%v", fault)
		}
	})
	t.Run("all, with another key", func(t *testing.T) {
		_, fault := verify(t, writeTree(t, newHistory), s.Key(), VerifyOptions{})
		if fault == nil || fault.File != checkpointName {
			t.Errorf("%v", fault)
		}
		if _, fault := verify(t, writeTree(t, newHistory), other.Key(), VerifyOptions{}); fault != nil {
			t.Errorf("with its own key: %v", fault)
		}
	})
	t.Run("all, with the same key", func(t *testing.T) {
		dir := writeTree(t, forgedFiles)
		if _, fault := verify(t, dir, s.Key(), VerifyOptions{}); fault != nil {
			t.Fatalf("without an older checkpoint nothing shows: %v", fault)
		}
		_, fault := verify(t, dir, s.Key(), VerifyOptions{Against: oldCheckpoint})
		if fault == nil || !strings.Contains(fault.What, "rewritten") {
			t.Errorf("%v", fault)
		}
	})
}

func TestVerifyAgainst(t *testing.T) {
	s := newSigner(t)
	src := newLedger(t, s.Key(), 700)
	dir := export(t, s, src)
	for _, size := range []int{1, 2, 255, 256, 257, 300, 511, 512, 513, 600, 699, 700} {
		r, fault := verify(t, dir, s.Key(), VerifyOptions{Against: sign(t, s, src.prefix(size))})
		if fault != nil || r.Against == nil || *r.Against != int64(size) || strings.Contains(r.Summary, "not shown") {
			t.Errorf("against %d: %v, %+v", size, fault, r)
		}
		fork := src.prefix(size)
		fork.leaves[size-1].Leaf.Event[0] ^= 1
		if _, fault := verify(t, dir, s.Key(), VerifyOptions{Against: sign(t, s, fork)}); fault == nil {
			t.Errorf("against another history of %d: no fault", size)
		}
	}
	// The tail was cut: an honest older checkpoint, and all that belongs to it.
	_, fault := verify(t, export(t, s, src.prefix(650)), s.Key(), VerifyOptions{Against: sign(t, s, src)})
	if fault == nil || fault.Index != 650 || !strings.Contains(fault.What, "tail") {
		t.Errorf("a cut tail: %v", fault)
	}
	for name, bad := range map[string][]byte{"empty": {}, "of another key": sign(t, newSigner(t), src), "garbage": []byte("x\n")} {
		if _, fault := verify(t, dir, s.Key(), VerifyOptions{Against: bad}); fault == nil {
			t.Errorf("against a checkpoint that is %s: no fault", name)
		}
	}
}

// TestVerifyFiles: what is missing, and what is there but should not be.
func TestVerifyFiles(t *testing.T) {
	s := newSigner(t)
	files := readTree(t, export(t, s, newLedger(t, s.Key(), 300)))
	for name := range files {
		bad := maps.Clone(files)
		delete(bad, name)
		if _, fault := verify(t, writeTree(t, bad), s.Key(), VerifyOptions{}); fault == nil || fault.File != name {
			t.Errorf("%s is missing: %v", name, fault)
		}
		dir := writeTree(t, files)
		elsewhere := filepath.Join(t.TempDir(), "file")
		writeFile(t, elsewhere, files[name])
		path := filepath.Join(dir, name)
		if err := errors.Join(os.Remove(path), os.Symlink(elsewhere, path)); err != nil {
			t.Fatal(err)
		}
		if _, fault := verify(t, dir, s.Key(), VerifyOptions{}); fault == nil || fault.File != name {
			t.Errorf("%s is a symbolic link: %v", name, fault)
		}
		if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
			t.Fatal(err)
		}
		if _, fault := verify(t, dir, s.Key(), VerifyOptions{}); fault == nil || fault.File != name {
			t.Errorf("%s is a directory: %v", name, fault)
		}
	}
	for _, name := range []string{"README", ".hidden", "tile/0/000.p/7", "tile/0/002", "tile/2/000.p/1", "tile/entries/.tmp", "events/notes", "checkpoint.old", "manifest~", "other/file", "tile/0/001.p/45"} {
		bad := maps.Clone(files)
		bad[name] = []byte("x")
		_, fault := verify(t, writeTree(t, bad), s.Key(), VerifyOptions{})
		if fault == nil || !strings.HasPrefix(name, fault.File) {
			t.Errorf("%s is there: %v", name, fault)
		}
	}
	dir := writeTree(t, files)
	if err := os.MkdirAll(filepath.Join(dir, "tile", "7"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, fault := verify(t, dir, s.Key(), VerifyOptions{}); fault == nil || fault.File != "tile/7" {
		t.Errorf("an empty directory: %v", fault)
	}
	if _, err := Verify(t.Context(), filepath.Join(dir, "nothing"), s.Key(), VerifyOptions{}); err == nil || errors.Is(err, proofs.ErrVerification) {
		t.Errorf("no export at all is an error of reading: %v", err)
	}
}

// TestVerifyManifest: the manifest can say nothing else than what is there.
func TestVerifyManifest(t *testing.T) {
	s := newSigner(t)
	files := readTree(t, export(t, s, newLedger(t, s.Key(), 300)))
	for name, edit := range map[string]func(m *Manifest){
		"other digest":   func(m *Manifest) { m.Files[3].SHA256[0] ^= 1 },
		"other size":     func(m *Manifest) { m.Files[3].Size++ },
		"other path":     func(m *Manifest) { m.Files[3].Path += "x" },
		"swapped":        func(m *Manifest) { m.Files[3], m.Files[4] = m.Files[4], m.Files[3] },
		"file less":      func(m *Manifest) { m.Files = m.Files[:len(m.Files)-1] },
		"file more":      func(m *Manifest) { m.Files = append(m.Files, File{Path: "more"}) },
		"no files":       func(m *Manifest) { m.Files = nil },
		"other log":      func(m *Manifest) { m.Origin = "other.example/log" },
		"other log size": func(m *Manifest) { m.Size-- },
		"other root":     func(m *Manifest) { m.Root[0] ^= 1 },
	} {
		m, err := ParseManifest(files[manifestName])
		if err != nil {
			t.Fatal(err)
		}
		edit(&m)
		bad := maps.Clone(files)
		if bad[manifestName], err = m.Encode(); err != nil {
			t.Fatal(err)
		}
		_, fault := verify(t, writeTree(t, bad), s.Key(), VerifyOptions{})
		if fault == nil || fault.File != manifestName {
			t.Errorf("%s: %v", name, fault)
		} else if name == "other digest" && !strings.Contains(fault.What, m.Files[3].Path) {
			t.Errorf("%s: the fault does not name the file: %v", name, fault)
		}
	}
	good := string(files[manifestName])
	for name, text := range map[string]string{
		"unknown field": strings.Replace(good, `{"format"`, `{"more":1,"format"`, 1), "repeated field": strings.Replace(good, `{"format"`, `{"format":"x","format"`, 1),
		"other format": strings.Replace(good, "/v1", "/v3", 1), "space": good + " ", "no newline": strings.TrimSpace(good), "null": "null\n", "other order": strings.Replace(good, `,"size":300`, "", 1),
		"upper-case hex": strings.Replace(good, `"sha256":"`, `"sha256":"ABCDEF`, 1),
	} {
		if _, err := ParseManifest([]byte(text)); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVerifyCancelled(t *testing.T) {
	s := newSigner(t)
	dir := export(t, s, newLedger(t, s.Key(), 3000))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := Verify(ctx, dir, s.Key(), VerifyOptions{Progress: func(int64, int64) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Whoever has the log's key can sign any size; what the verification costs goes by what is there.
func TestVerifySignedSize(t *testing.T) {
	s := newSigner(t)
	files := readTree(t, export(t, s, newLedger(t, s.Key(), 300)))
	m, err := ParseManifest(files[manifestName])
	if err != nil {
		t.Fatal(err)
	}
	m.Size = 1 << 32 // less than the largest, so that the test ends without the check as well
	if files[manifestName], err = m.Encode(); err != nil {
		t.Fatal(err)
	}
	if files[checkpointName], err = s.Sign(proofs.Checkpoint{Origin: testOrigin, Size: m.Size, Root: m.Root}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var f *Fault
	if _, err := Verify(ctx, writeTree(t, files), s.Key(), VerifyOptions{}); !errors.As(err, &f) || f.File != manifestName {
		t.Errorf("%v, want a fault of the manifest", err)
	}
}

// A manifest of many files is refused before memory is made of them.
func TestManifestCounts(t *testing.T) {
	good, err := Manifest{Origin: testOrigin, Size: 1}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	head, _, _ := strings.Cut(string(good), filesKey)
	for _, separator := range []string{",", ",\n"} {
		bad := []byte(head + filesKey + "\n{}" + strings.Repeat(separator+"{}", 1<<20) + manifestEnd)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := ParseManifest(bad); !errors.Is(err, ErrManifest) {
			t.Errorf("%q: %v", separator, err)
		}
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 4*uint64(len(bad)) {
			t.Errorf("%q: %d bytes were made of %d", separator, used, len(bad))
		}
	}
}

// Whoever has the log's key can commit to another envelope than the event tells of, and to one where it tells of none.
func TestVerifyReply(t *testing.T) {
	s := newSigner(t)
	for name, body := range map[string]event.Body{
		"another envelope": issued("spiffe://dev.bulla.test/workload", testStart),
		"one in secret":    event.DecisionDenied{Principal: "spiffe://dev.bulla.test/workload", Decision: decision("DENY")},
	} {
		src := newLedger(t, s.Key(), 10)
		encoding, err := event.New(testStart, "", body).Encode()
		if err != nil {
			t.Fatal(err)
		}
		src.put(Record{Encoding: encoding, EventSalt: event.NewSalt(), ReplySalt: event.NewSalt(), Reply: digest("what the client got")})
		if _, fault := verify(t, export(t, s, src), s.Key(), VerifyOptions{}); fault == nil || fault.Index != 10 {
			t.Errorf("%s: %v", name, fault)
		}
	}
}
