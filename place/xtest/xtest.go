// Package xtest writes databases of places for tests, in the real file format by its maker's own writer. It is
// imported by tests only.
package xtest

import (
	"bytes"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
)

// Built is the build time of every database, in seconds of the epoch: 1 July 2026.
const Built = 1_782_864_000

// Nested is a record as GeoLite2 City has it. Without a radius the coordinates are left out.
func Nested(country, continent string, latitude, longitude float64, radius uint16) mmdbtype.Map {
	m := mmdbtype.Map{
		"country":   mmdbtype.Map{"iso_code": mmdbtype.String(country), "names": mmdbtype.Map{"en": mmdbtype.String("a name")}},
		"continent": mmdbtype.Map{"code": mmdbtype.String(continent)},
	}
	if radius > 0 {
		m["location"] = mmdbtype.Map{"latitude": mmdbtype.Float64(latitude), "longitude": mmdbtype.Float64(longitude), "accuracy_radius": mmdbtype.Uint16(radius)}
	}
	return m
}

// Flat is a record as databases of countries by others than MaxMind often have it.
func Flat(country string) mmdbtype.Map { return mmdbtype.Map{"country_code": mmdbtype.String(country)} }

// Bytes is a database with a record for each CIDR range; a longer one is inserted after those around it.
func Bytes(tb testing.TB, records map[string]mmdbtype.DataType) []byte {
	tb.Helper()
	w, err := mmdbwriter.New(mmdbwriter.Options{
		DatabaseType: "Bulla-Test", Description: map[string]string{"en": "places for tests"}, BuildEpoch: Built, RecordSize: 24,
		IncludeReservedNetworks: true, // loopback is where the tests are
	})
	if err != nil {
		tb.Fatal(err)
	}
	width := func(cidr string) int {
		_, network, err := net.ParseCIDR(cidr)
		if err != nil {
			tb.Fatal(err)
		}
		ones, bits := network.Mask.Size()
		return ones + 128 - bits
	}
	for _, cidr := range slices.SortedFunc(maps.Keys(records), func(a, b string) int { return width(a) - width(b) }) {
		_, network, _ := net.ParseCIDR(cidr)
		if err := w.Insert(network, records[cidr]); err != nil {
			tb.Fatal(err)
		}
	}
	var out bytes.Buffer
	if _, err := w.WriteTo(&out); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// Write puts bytes at path as a whole, as an updater should.
func Write(tb testing.TB, path string, data []byte) {
	tb.Helper()
	next := filepath.Join(filepath.Dir(path), ".next-"+filepath.Base(path))
	if err := os.WriteFile(next, data, 0o600); err != nil {
		tb.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		tb.Fatal(err)
	}
}
