package tiles

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"
)

// paths lists the files of a log by tlog's reckoning and torchwood's names.
func paths(size int64) map[string]bool {
	out := map[string]bool{}
	for _, t := range tlog.NewTiles(Height, 0, size) {
		out[torchwood.TilePath(t)] = true
		if t.L == 0 {
			t.L = -1
			out[torchwood.TilePath(t)] = true
			out["events/"+strings.TrimPrefix(torchwood.TilePath(t), "tile/entries/")] = true
		}
	}
	return out
}

func TestLayoutAgainstTorchwood(t *testing.T) {
	for _, size := range []int64{0, 1, 2, 255, 256, 257, 511, 512, 513, 65535, 65536, 65537, 256 * 1001, 256*256*256 + 1} {
		want := paths(size)
		n := 0
		check := func(path string) {
			n++
			if !want[path] {
				t.Fatalf("size %d: %s is not a file of the log", size, path)
			}
			if !Has(size, path) {
				t.Fatalf("size %d: Has says no to %s", size, path)
			}
		}
		for level := range Levels(size) {
			for i := range Tiles(size, level) {
				tile := At(size, level, i)
				check(tile.HashPath())
				if level == 0 {
					check(tile.EntriesPath())
					check(tile.EventsPath())
				}
			}
		}
		if n != len(want) {
			t.Errorf("size %d: %d files, torchwood has %d", size, n, len(want))
		}
	}
}

func TestHasRefuses(t *testing.T) {
	const size = 70_000 // a few tiles on level 0 and 1, one on 2
	for _, path := range []string{
		"", ".", "tile", "tile/0", "tile/0/", "tile/0/0", "tile/0/1", "tile/0/0000", "tile/0/x000/001", "tile/00/001", "tile/+0/001", "tile/-1/001", "tile/3/000.p/1", "tile/9/000",
		"tile/0/000.p/256", "tile/0/000.p/255", "tile/0/000.p/0", "tile/0/273", "tile/0/273.p/111", "tile/0/273.p/113", "tile/0/273.p/0112", "tile/0/274", "tile/1/001", "tile/2/000",
		"tile/entries/273", "events/273", "events/000.p/1", "events/x000/000", "events/999", "tile/data/000", "tile/0/x999/x999/x999/x999/x999/x999/x999/x999/x999/999", "Tile/0/000", "tile/0/000/", "tile//0/000", "tile/0/0x1", "tile/0/ 01",
	} {
		if Has(size, path) {
			t.Errorf("Has(%d, %q)", size, path)
		}
	}
	for _, path := range []string{"tile/0/000", "tile/0/273.p/112", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1", "tile/entries/273.p/112", "events/272"} {
		if !Has(size, path) {
			t.Errorf("!Has(%d, %q)", size, path)
		}
	}
}

func TestEntriesAgainstTorchwood(t *testing.T) {
	entries := [][]byte{{}, {1}, bytes.Repeat([]byte{2}, 300), bytes.Repeat([]byte{3}, MaxEntry)}
	var ours, theirs []byte
	for _, e := range entries {
		var err error
		if ours, err = AppendEntry(ours, e); err != nil {
			t.Fatal(err)
		}
		if theirs, err = torchwood.AppendTileEntry(theirs, e); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(ours, theirs) {
		t.Error("our bundle is not torchwood's")
	}
	got, err := ParseEntries(theirs)
	if err != nil || len(got) != len(entries) {
		t.Fatalf("ParseEntries: %d entries, %v", len(got), err)
	}
	for i := range got {
		if !bytes.Equal(got[i], entries[i]) {
			t.Errorf("entry %d differs", i)
		}
	}
	if _, err := AppendEntry(nil, make([]byte, MaxEntry+1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("an entry too long: %v", err)
	}
}

func TestParseEntriesRefuses(t *testing.T) {
	for name, bad := range map[string][]byte{
		"nothing": nil, "half a length": {0}, "cut": {0, 2, 1}, "rest": {0, 1, 1, 0}, "257 entries": make([]byte, 2*257),
	} {
		if _, err := ParseEntries(bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if e, err := ParseEntries(make([]byte, 2*256)); err != nil || len(e) != 256 {
		t.Errorf("256 empty entries: %d, %v", len(e), err)
	}
}

func FuzzParseEntries(f *testing.F) {
	f.Add([]byte{0, 1, 7, 0, 0, 0, 2, 8, 9})
	f.Add([]byte{0})
	f.Add(make([]byte, 600))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := ParseEntries(data)
		if err != nil {
			return
		}
		var again []byte
		for _, e := range entries {
			if again, err = AppendEntry(again, e); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(again, data) {
			t.Errorf("%x is not canonical", data)
		}
	})
}

func FuzzHas(f *testing.F) {
	f.Add(int64(70_000), "tile/0/273.p/112")
	f.Add(int64(1), "events/000.p/1")
	f.Add(int64(1<<40), "tile/entries/x001/234")
	f.Fuzz(func(t *testing.T, size int64, path string) {
		if size < 0 || size > 1<<48 || !Has(size, path) {
			return
		}
		rest, isEvents := strings.CutPrefix(path, "events/")
		if isEvents {
			path = "tile/entries/" + rest
		}
		tile, err := torchwood.ParseTilePath(path)
		if err != nil {
			t.Fatalf("torchwood does not read %q: %v", path, err)
		}
		if level := max(tile.L, 0); tile.N*Width+int64(tile.W) > Count(size, level) {
			t.Errorf("%q is beyond size %d", path, size)
		}
	})
}

func TestParse(t *testing.T) {
	for path, want := range map[string]Tile{
		"tile/0/000": {0, 0, 256}, "tile/2/x001/x234/067.p/8": {2, 1234067, 8}, "tile/entries/x001/234": {0, 1234, 256}, "tile/63/000": {63, 0, 256},
	} {
		got, entries, ok := Parse(path)
		if !ok || got != want || entries != strings.HasPrefix(path, "tile/entries/") {
			t.Errorf("%s: %+v, %v, %v", path, got, entries, ok)
		}
	}
	for _, path := range []string{
		"", "tile/", "tile/0", "tile/0/", "tile/0/0", "tile/00/000", "tile/64/000", "tile/-1/000", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/01", "tile/0/x000/000",
		"tile/0/1000", "tile/0/001/000", "tile/0/x001", "tile/0/000/", "tile/0/000.p/", "tile/data/000", "events/000", "tile/entries/../0/000", "tile/0/" + strings.Repeat("x999/", 20) + "999",
	} {
		if got, _, ok := Parse(path); ok {
			t.Errorf("%q is taken for %+v", path, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("tile/0/x001/234.p/5")
	f.Add("tile/entries/x001/234")
	f.Add("tile/63/x281/x474/x976/710/656")
	f.Fuzz(func(t *testing.T, path string) {
		got, entries, ok := Parse(path)
		if !ok {
			return
		}
		tile, err := torchwood.ParseTilePath(path)
		if err != nil {
			t.Fatalf("torchwood does not read %q: %v", path, err)
		}
		if want := max(tile.L, 0); want != got.Level || tile.N != got.N || tile.W != got.W || entries != (tile.L < 0) {
			t.Errorf("%q: %+v, torchwood says %+v", path, got, tile)
		}
	})
}
