package broker

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bulla-project/bulla/place"
	"github.com/bulla-project/bulla/policy"
)

func from(country string) *policy.Place { return &policy.Place{Country: country, Source: "d"} }

// TestMisplaced: only a known country that is on every list passes.
func TestMisplaced(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		place   *policy.Place
		demands []string
		bound   []string
		unmet   string
	}{
		"no limit":                     {},
		"no limit, unknown":            {place: from("")},
		"allowed":                      {place: from("DE"), demands: []string{"DE", "FR"}},
		"bound and allowed":            {place: from("DE"), demands: []string{"DE"}, bound: []string{"DE", "FR"}},
		"another country":              {place: from("AU"), demands: []string{"DE"}, unmet: "comes from AU"},
		"unknown":                      {place: from(""), demands: []string{"DE"}, unmet: "not known"},
		"no database":                  {demands: []string{"DE"}, unmet: "no database"},
		"bound elsewhere":              {place: from("DE"), demands: []string{"DE"}, bound: []string{"FR"}, unmet: "comes from DE"},
		"bound, and no database":       {bound: []string{"FR"}, unmet: "no database"},
		"bound, and an unknown place":  {place: from(""), bound: []string{"FR"}, unmet: "not known"},
		"bound, and demanded narrower": {place: from("FR"), demands: []string{"DE"}, bound: []string{"DE", "FR"}, unmet: "comes from FR"},
	} {
		p := verdict{signals: policy.Signals{Place: c.place}}
		if c.demands != nil {
			p.decision.Obligations.GeoRestriction = &policy.GeoRestriction{Countries: c.demands, Grade: policy.GradeOpen}
		}
		if got := p.misplaced(c.bound); (got == "") != (c.unmet == "") || !strings.Contains(got, c.unmet) {
			t.Errorf("%s: %q, want %q", name, got, c.unmet)
		}
	}
}

// TestTravellers: who is judged by its place, and as whom.
func TestTravellers(t *testing.T) {
	t.Parallel()
	device := &policy.Attestation{DeviceID: "d"}
	for name, c := range map[string]struct {
		s    policy.Signals
		want traveller
	}{
		"a user":                    {policy.Signals{Place: from("DE"), Principal: policy.Principal{ID: "p", Type: policy.TypeUser}}, traveller{"p", ""}},
		"a user with a device":      {policy.Signals{Place: from("DE"), Principal: policy.Principal{ID: "p", Type: policy.TypeUser}, Attestation: device}, traveller{"p", ""}},
		"a service with a device":   {policy.Signals{Place: from("DE"), Principal: policy.Principal{ID: "p", Type: policy.TypeService}, Attestation: device}, traveller{"p", "d"}},
		"a service":                 {policy.Signals{Place: from("DE"), Principal: policy.Principal{ID: "p", Type: policy.TypeService}}, traveller{}},
		"a user without a database": {policy.Signals{Principal: policy.Principal{ID: "p", Type: policy.TypeUser}}, traveller{}},
	} {
		if got, ok := travellerOf(c.s); got != c.want || ok != (c.want != traveller{}) {
			t.Errorf("%s: %+v, %t", name, got, ok)
		}
	}
}

// TestJourneysAreBounded: neither many identities nor many countries of one fill the memory, and an unknown place
// leaves no trace.
func TestJourneysAreBounded(t *testing.T) {
	t.Parallel()
	all := newTravels(nil)
	user := policy.Signals{Principal: policy.Principal{Type: policy.TypeUser}}
	for i := range 2 * maxPrincipals {
		user.Principal.ID, user.Place = fmt.Sprint("p", i), from("DE")
		all.arrived(user)
	}
	if len(all.all) != maxPrincipals {
		t.Errorf("%d journeys are kept", len(all.all))
	}
	user.Now = time.Hour.Microseconds()
	user.Place = from("")
	all.arrived(user)
	who, _ := travellerOf(user)
	if j := all.all[who]; j.last.Country != "DE" || !j.at.Equal(time.UnixMicro(0)) {
		t.Errorf("an unknown place left %+v", j)
	}
	rapid.Check(t, func(t *rapid.T) {
		var j journey
		stops := rapid.SliceOfN(rapid.SampledFrom([]string{
			"AA", "AB", "AC", "AD", "AE", "AF", "AG", "AH", "AI", "AJ", "AK", "AL", "AM", "AN", "AO", "AP", "AQ", "AR", "AS", "AT",
		}), 1, 60).Draw(t, "stops")
		for i, stop := range stops {
			before := len(j.countries)
			j = j.with(place.Place{Country: stop}, time.Unix(int64(i), 0))
			seen := map[string]bool{}
			for _, c := range j.countries {
				seen[c] = true
			}
			if len(j.countries) > maxCountries || len(j.countries) < before || len(seen) != len(j.countries) || j.countries[len(j.countries)-1] != stop || j.last.Country != stop {
				t.Fatalf("after %q: %+v", stops[:i+1], j)
			}
		}
	})
}
