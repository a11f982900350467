// Package place says in which country, and about where, an IP address is: by a database that the operator
// supplies, in the MaxMind DB file format (https://maxmind.github.io/MaxMind-DB/).
//
// A place is that of an address: where a connection comes from, as far as the maker of the database knows. It is
// not where a workload runs or a secret is used, and somebody with an exit elsewhere (a VPN, a relay, a rented
// host) chooses it. What the database doesn't know is unknown, never a guess.
//
// Both common shapes of a record are read: flat (country_code, latitude, longitude, continent_code) and nested
// (country.iso_code, location.latitude, location.longitude, location.accuracy_radius, continent.code). Nothing
// else of a record is looked at; registered_country is not, since it says where an owner is at home.
//
// The package fetches nothing: the file is read whole, into memory, checked from end to end and hashed, and only
// then asked. So what is asked is what was hashed, whatever happens to the file meanwhile.
package place

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/oschwald/maxminddb-golang/v2"
)

const (
	// MaxSize is the largest database file, in bytes.
	MaxSize = 512 << 20
	// FarthestKM is half the way around the Earth: no two places are farther apart, by the mean radius of
	// IUGG's GRS 80.
	FarthestKM = 20_015
	// usualRadiusKM is how exact coordinates are taken to be where the database doesn't say, and
	// maxRadiusKM the most that it may say.
	usualRadiusKM, maxRadiusKM = 100, 1000
	// sampled is how many networks are looked at for a country before a database counts as one without.
	sampled = 100_000
)

// ErrDatabase is wrapped by every refusal of a file.
var ErrDatabase = errors.New("database of places refused")

// Place is where an address is. The zero value is an unknown place.
type Place struct {
	Country   string // ISO 3166-1 alpha-2; empty: unknown
	Continent string // two letters; empty: not said
	Point     *Point // nil: not said
}

// Known says whether the country is known. Nothing else of a place counts without it.
func (p Place) Known() bool { return p.Country != "" }

// Point is a position, in thousandths of a degree (at most 111 m), and how exact it is.
type Point struct {
	LatitudeMilli, LongitudeMilli int64
	RadiusKM                      int64
}

// Database is one file's content. It never changes, and is safe for concurrent use.
type Database struct {
	reader *maxminddb.Reader
	digest string
	v4     bool // it knows no IPv6 addresses
}

// Parse checks a whole database: the metadata, the search tree, and each record's encoding, with the limits of the
// format's library; and that it tells countries at all. The caller must not change data afterwards.
func Parse(data []byte) (*Database, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("%w: it is larger than %d bytes", ErrDatabase, MaxSize)
	}
	reader, err := maxminddb.OpenBytes(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDatabase, err)
	}
	if err := reader.Verify(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDatabase, err)
	}
	if built := reader.Metadata.BuildEpoch; built == 0 || uint64(built) > maxEpoch {
		return nil, fmt.Errorf("%w: it was built at second %d of the epoch", ErrDatabase, built)
	}
	sum := sha256.Sum256(data)
	d := &Database{reader: reader, digest: hex.EncodeToString(sum[:]), v4: reader.Metadata.IPVersion == 4}
	looked := 0
	for found := range reader.Networks(maxminddb.IncludeNetworksWithoutData()) {
		if decode(found).Known() {
			return d, nil
		}
		if looked++; looked == sampled { // a tree can have more ways than anybody could go
			break
		}
	}
	return nil, fmt.Errorf("%w: its records have neither country_code nor country.iso_code: is it a database of countries or cities?", ErrDatabase)
}

// maxEpoch is the last second of the year 9999.
const maxEpoch = 253_402_300_799

// Digest is the SHA-256 of the file in hexadecimal.
func (d *Database) Digest() string { return d.digest }

// Built is when its maker built it.
func (d *Database) Built() time.Time { return d.reader.Metadata.BuildTime().UTC() }

// Type is what its maker calls it.
func (d *Database) Type() string { return d.reader.Metadata.DatabaseType }

// Find returns the place of an address. An IPv4 address mapped into IPv6 is that IPv4 address.
func (d *Database) Find(addr netip.Addr) Place {
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() || d.v4 && addr.Is6() {
		return Place{}
	}
	return decode(d.reader.Lookup(addr))
}

// decode reads a record in either shape. What is of another type than it has to be is not there.
func decode(r maxminddb.Result) Place {
	if !r.Found() {
		return Place{}
	}
	var flat, nested string
	read(r, &flat, "country_code")
	read(r, &nested, "country", "iso_code")
	country := flat
	if flat == "" {
		country = nested
	}
	if nested != "" && nested != country || !code(country) || country == "ZZ" { // ZZ stands for unknown
		return Place{}
	}
	p := Place{Country: country, Point: point(r)}
	read(r, &p.Continent, "continent", "code")
	if p.Continent == "" {
		read(r, &p.Continent, "continent_code")
	}
	if !code(p.Continent) {
		p.Continent = ""
	}
	return p
}

func read[T any](r maxminddb.Result, into *T, path ...any) {
	var v T
	if r.DecodePath(&v, path...) == nil {
		*into = v
	}
}

func point(r maxminddb.Result) *Point {
	for _, path := range [][]any{{"location"}, nil} {
		var lat, lon *float64
		read(r, &lat, append(path[:len(path):len(path)], "latitude")...)
		read(r, &lon, append(path[:len(path):len(path)], "longitude")...)
		if lat == nil || lon == nil || !(math.Abs(*lat) <= 90) || !(math.Abs(*lon) <= 180) { // so that NaN is none
			continue
		}
		var radius uint64
		if read(r, &radius, append(path[:len(path):len(path)], "accuracy_radius")...); radius == 0 {
			radius = usualRadiusKM
		}
		return &Point{
			LatitudeMilli: int64(math.Round(*lat * 1000)), LongitudeMilli: int64(math.Round(*lon * 1000)), RadiusKM: int64(min(radius, maxRadiusKM)),
		}
	}
	return nil
}

// code says whether s is two capital letters.
func code(s string) bool {
	return len(s) == 2 && !bytes.ContainsFunc([]byte(s), func(c rune) bool { return c < 'A' || c > 'Z' })
}

// Apart is how far two places are apart at least, in kilometres, by the great circle less how inexact either is.
// Within one country it is 0 where a position is missing. What can't be told is FarthestKM.
func Apart(a, b Place) int64 {
	switch {
	case !a.Known() || !b.Known():
		return FarthestKM
	case a.Point != nil && b.Point != nil:
		return max(0, greatCircle(*a.Point, *b.Point)-a.Point.RadiusKM-b.Point.RadiusKM)
	case a.Country == b.Country:
		return 0
	}
	return FarthestKM
}

// greatCircle is the distance on a sphere by the haversine formula, in whole kilometres, rounded down.
func greatCircle(a, b Point) int64 {
	radians := func(milli int64) float64 { return float64(milli) / 1000 * math.Pi / 180 }
	lat1, lat2 := radians(a.LatitudeMilli), radians(b.LatitudeMilli)
	s1, s2 := math.Sin((lat2-lat1)/2), math.Sin((radians(b.LongitudeMilli)-radians(a.LongitudeMilli))/2)
	h := s1*s1 + math.Cos(lat1)*math.Cos(lat2)*s2*s2
	const diameter = 2 * 6371.0088
	return min(FarthestKM, int64(diameter*math.Asin(math.Sqrt(min(1, h)))))
}
