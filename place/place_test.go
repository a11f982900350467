package place_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/maxmind/mmdbwriter/mmdbtype"
	"pgregory.net/rapid"

	"github.com/bulla-project/bulla/place"
	"github.com/bulla-project/bulla/place/xtest"
)

func parse(tb testing.TB, records map[string]mmdbtype.DataType) *place.Database {
	tb.Helper()
	d, err := place.Parse(xtest.Bytes(tb, records))
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

func TestFind(t *testing.T) {
	t.Parallel()
	text := func(s string) mmdbtype.String { return mmdbtype.String(s) }
	d := parse(t, map[string]mmdbtype.DataType{
		"10.0.0.0/8":    xtest.Nested("DE", "EU", 52.52004, -13.40496, 20),
		"10.9.0.0/16":   xtest.Nested("FR", "EU", 0, 0, 0), // more exact, and without a position
		"10.10.0.0/16":  xtest.Flat("JP"),
		"2001:db8::/32": xtest.Nested("US", "NA", 90, 180, 5000),
		"11.1.0.0/16":   mmdbtype.Map{"country_code": text("CH"), "country": text("Switzerland"), "continent_code": text("EU"), "latitude": mmdbtype.Float32(47.5), "longitude": mmdbtype.Float32(8.5)},
		"11.2.0.0/16":   mmdbtype.Map{"country_code": text("CH"), "country": mmdbtype.Map{"iso_code": text("AT")}},
		"11.3.0.0/16":   mmdbtype.Map{"country_code": text("ch")},
		"11.4.0.0/16":   mmdbtype.Map{"country_code": mmdbtype.Uint16(49)},
		"11.5.0.0/16":   mmdbtype.Map{"registered_country": mmdbtype.Map{"iso_code": text("DE")}},
		"11.6.0.0/16":   mmdbtype.Map{"country_code": text("ZZ")},
		"11.7.0.0/16":   xtest.Nested("DE", "EU", 91, 10, 20),
		"11.8.0.0/16":   xtest.Nested("DE", "Europe", math.NaN(), 10, 20),
		"11.9.0.0/16":   mmdbtype.Map{"country_code": text("DE"), "location": mmdbtype.Map{"latitude": text("52"), "longitude": text("13")}},
		"11.10.0.0/16":  text("DE"),
	})
	berlin := place.Place{Country: "DE", Continent: "EU", Point: &place.Point{LatitudeMilli: 52520, LongitudeMilli: -13405, RadiusKM: 20}}
	for addr, want := range map[string]place.Place{
		"10.1.2.3":         berlin,
		"::ffff:10.1.2.3":  berlin,
		"10.9.1.1":         {Country: "FR", Continent: "EU"},
		"10.10.1.1":        {Country: "JP"},
		"2001:db8::1":      {Country: "US", Continent: "NA", Point: &place.Point{LatitudeMilli: 90000, LongitudeMilli: 180000, RadiusKM: 1000}},
		"2001:db8::1%eth0": {Country: "US", Continent: "NA", Point: &place.Point{LatitudeMilli: 90000, LongitudeMilli: 180000, RadiusKM: 1000}},
		"11.1.1.1":         {Country: "CH", Continent: "EU", Point: &place.Point{LatitudeMilli: 47500, LongitudeMilli: 8500, RadiusKM: 100}},
		"11.2.1.1":         {}, // the two shapes disagree
		"11.3.1.1":         {},
		"11.4.1.1":         {},
		"11.5.1.1":         {}, // where its owner is at home says nothing
		"11.6.1.1":         {},
		"11.7.1.1":         {Country: "DE", Continent: "EU"},
		"11.8.1.1":         {Country: "DE"},
		"11.9.1.1":         {Country: "DE"},
		"11.10.1.1":        {},
		"12.0.0.1":         {},
		"2001:db9::1":      {},
	} {
		if diff := cmp.Diff(want, d.Find(netip.MustParseAddr(addr))); diff != "" {
			t.Errorf("%s: %s", addr, diff)
		}
	}
	if d.Find(netip.Addr{}).Known() {
		t.Error("no address has a place")
	}
	if d.Built() != time.Unix(xtest.Built, 0).UTC() || d.Type() != "Bulla-Test" || len(d.Digest()) != 64 {
		t.Errorf("built %v, type %s, digest %s", d.Built(), d.Type(), d.Digest())
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	good := xtest.Bytes(t, map[string]mmdbtype.DataType{"10.0.0.0/8": xtest.Flat("DE")})
	for name, data := range map[string][]byte{
		"nothing":     nil,
		"text":        []byte("a text"),
		"cut":         good[:len(good)-1],
		"cut in half": good[len(good)/2:],
		"no country":  xtest.Bytes(t, map[string]mmdbtype.DataType{"10.0.0.0/8": mmdbtype.Map{"autonomous_system_number": mmdbtype.Uint32(1)}}),
		"a cycle":     append(bytes.Repeat([]byte{0}, 6), good[6:]...), // the root is its own child
	} {
		if _, err := place.Parse(data); !errors.Is(err, place.ErrDatabase) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestApart(t *testing.T) {
	t.Parallel()
	at := func(country string, lat, lon, radius int64) place.Place {
		return place.Place{Country: country, Point: &place.Point{LatitudeMilli: lat, LongitudeMilli: lon, RadiusKM: radius}}
	}
	berlin, paris, sydney := at("DE", 52520, 13405, 0), at("FR", 48857, 2352, 0), at("AU", -33869, 151209, 0)
	for _, c := range []struct {
		a, b     place.Place
		from, to int64
	}{
		{berlin, paris, 870, 885},
		{berlin, sydney, 16050, 16120},
		{at("DE", 52520, 13405, 500), at("FR", 48857, 2352, 500), 0, 0},
		{at("AA", 90000, 0, 0), at("BB", -90000, 7, 0), place.FarthestKM - 1, place.FarthestKM},
		{at("AA", 0, 179999, 0), at("BB", 0, -179999, 0), 0, 1},
		{place.Place{Country: "DE"}, berlin, 0, 0},
		{place.Place{Country: "DE"}, paris, place.FarthestKM, place.FarthestKM},
		{place.Place{}, berlin, place.FarthestKM, place.FarthestKM},
		{place.Place{}, place.Place{}, place.FarthestKM, place.FarthestKM},
	} {
		if d := place.Apart(c.a, c.b); d < c.from || d > c.to || d != place.Apart(c.b, c.a) {
			t.Errorf("%+v and %+v are %d km apart, want %d to %d", c.a, c.b, d, c.from, c.to)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		draw := func() place.Place {
			if rapid.IntRange(0, 9).Draw(t, "unknown") == 0 {
				return place.Place{}
			}
			return at(rapid.SampledFrom([]string{"AA", "BB"}).Draw(t, "country"), rapid.Int64Range(-90000, 90000).Draw(t, "lat"),
				rapid.Int64Range(-180000, 180000).Draw(t, "lon"), rapid.Int64Range(0, 1000).Draw(t, "radius"))
		}
		a, b := draw(), draw()
		d := place.Apart(a, b)
		if d < 0 || d > place.FarthestKM || d != place.Apart(b, a) || a.Known() && place.Apart(a, a) != 0 || d > place.Apart(a, place.Place{}) {
			t.Fatalf("%+v and %+v are %d km apart", a, b, d)
		}
	})
}

// TestSource: a new file takes the place of the old one as a whole, a broken one does not, and the fault is told
// until it is mended.
func TestSource(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "places.mmdb")
	if _, err := place.Open(place.Config{File: path}); !errors.Is(err, place.ErrDatabase) {
		t.Fatalf("a file that is not there: %v", err)
	}
	german := xtest.Bytes(t, map[string]mmdbtype.DataType{"10.0.0.0/8": xtest.Flat("DE")})
	xtest.Write(t, path, german)
	s, err := place.Open(place.Config{File: path, Poll: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	addr := netip.MustParseAddr("10.1.2.3")
	wait := func(what string, done func() bool) {
		t.Helper()
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for !done() {
			select {
			case <-tick.C:
			case <-t.Context().Done():
				t.Fatalf("it did not come about that %s", what)
			}
		}
	}
	country := func() string { p, _ := s.Find(addr); return p.Country }
	sum := sha256.Sum256(german)
	if _, d := s.Find(addr); country() != "DE" || s.Fault() != nil || d.Digest() != hex.EncodeToString(sum[:]) {
		t.Fatalf("country %s, fault %v", country(), s.Fault())
	}
	xtest.Write(t, path, []byte("broken"))
	wait("the fault is seen", func() bool { return s.Fault() != nil })
	if !errors.Is(s.Fault(), place.ErrDatabase) || country() != "DE" {
		t.Fatalf("with a broken file: country %s, fault %v", country(), s.Fault())
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	wait("the file is missed", func() bool { return errors.Is(s.Fault(), os.ErrNotExist) })
	if country() != "DE" {
		t.Fatalf("without a file: country %s", country())
	}
	xtest.Write(t, path, xtest.Bytes(t, map[string]mmdbtype.DataType{"10.0.0.0/8": xtest.Flat("FR")}))
	wait("the new file is in use", func() bool { return country() == "FR" && s.Fault() == nil })
	if err := os.Mkdir(filepath.Join(filepath.Dir(path), "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := place.Open(place.Config{File: filepath.Join(filepath.Dir(path), "dir")}); !errors.Is(err, place.ErrDatabase) {
		t.Errorf("a directory: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(xtest.Bytes(f, map[string]mmdbtype.DataType{"10.0.0.0/8": xtest.Flat("DE")}))
	f.Add(xtest.Bytes(f, map[string]mmdbtype.DataType{"::/0": xtest.Nested("DE", "EU", 1, 2, 3), "10.0.0.0/8": xtest.Flat("FR")}))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := place.Parse(data)
		if err != nil {
			if !errors.Is(err, place.ErrDatabase) {
				t.Fatal(err)
			}
			return
		}
		for _, addr := range []string{"10.1.2.3", "::", "ffff::1", "255.255.255.255"} {
			p := d.Find(netip.MustParseAddr(addr))
			if !p.Known() && p != (place.Place{}) || p.Known() && len(p.Country) != 2 {
				t.Fatalf("%+v", p)
			}
			if q := p.Point; q != nil && (q.LatitudeMilli < -90000 || q.LatitudeMilli > 90000 || q.LongitudeMilli < -180000 || q.LongitudeMilli > 180000 || q.RadiusKM < 0 || q.RadiusKM > 1000) {
				t.Fatalf("%+v", q)
			}
		}
	})
}

func BenchmarkFind(b *testing.B) {
	d := parse(b, map[string]mmdbtype.DataType{"10.0.0.0/8": xtest.Nested("DE", "EU", 52.5, 13.4, 20)})
	addr := netip.MustParseAddr("10.1.2.3")
	b.ReportAllocs()
	for b.Loop() {
		d.Find(addr)
	}
}
