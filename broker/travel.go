package broker

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/place"
	"github.com/bulla-project/bulla/policy"
)

const (
	// maxCountries is how many countries of an identity are remembered, the last ones, and lookBack how many of its
	// sessions are asked for them where nothing is.
	maxCountries = 16
	lookBack     = 64
)

// travels keeps where each identity that is at one place at a time was permitted last, and in which countries before.
// What is refused leaves no trace here: otherwise the second try of a thief would come from a known place. What is not
// remembered is looked up in the ledger.
type travels struct {
	ledger *ledger.Ledger

	mu  sync.Mutex // guards all
	all map[traveller]journey
}

// traveller is a USER, whatever the device, or a device as one principal uses it.
type traveller struct{ principal, device string }

type journey struct {
	last      place.Place
	at        time.Time
	countries []string // the latest last
}

func newTravels(l *ledger.Ledger) *travels {
	return &travels{ledger: l, all: map[traveller]journey{}}
}

// travellerOf says who travels; false: nobody, since replicas of a service are at many places.
func travellerOf(s policy.Signals) (traveller, bool) {
	switch {
	case s.Place == nil:
		return traveller{}, false
	case s.Principal.Type == policy.TypeUser:
		return traveller{principal: s.Principal.ID}, true
	case s.Attestation != nil:
		return traveller{s.Principal.ID, s.Attestation.DeviceID}, true
	}
	return traveller{}, false
}

// compare measures the place against the journey so far. Nothing is remembered: see arrived.
func (t *travels) compare(ctx context.Context, s policy.Signals) *policy.Travel {
	who, ok := travellerOf(s)
	if !ok {
		return nil
	}
	j, err := t.journey(ctx, who)
	if err != nil { // the commit will meet it too
		return &policy.Travel{NewCountry: true, DistanceKM: place.FarthestKM}
	}
	here := placeOf(s.Place)
	out := &policy.Travel{NewCountry: !slices.Contains(j.countries, here.Country)}
	if j.last.Known() {
		out.DistanceKM = place.Apart(j.last, here)
		out.Seconds = max(0, int64(time.UnixMicro(s.Now).Sub(j.at)/time.Second))
	}
	return out
}

// arrived remembers the place of a request that was permitted and committed. An unknown place is skipped.
func (t *travels) arrived(s policy.Signals) {
	who, ok := travellerOf(s)
	if !ok || s.Place.Country == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.put(who, t.all[who].with(placeOf(s.Place), time.UnixMicro(s.Now)))
}

// with is the journey with one more stop.
func (j journey) with(p place.Place, at time.Time) journey {
	countries := slices.DeleteFunc(slices.Clone(j.countries), func(c string) bool { return c == p.Country })
	countries = append(countries, p.Country)
	return journey{last: p, at: at, countries: countries[max(0, len(countries)-maxCountries):]}
}

// journey is what is remembered, or else what the newest sessions say.
func (t *travels) journey(ctx context.Context, who traveller) (journey, error) {
	t.mu.Lock()
	j, known := t.all[who]
	t.mu.Unlock()
	if known {
		return j, nil
	}
	had, err := t.ledger.Sessions(ctx, ledger.SessionQuery{Principal: who.principal, Device: who.device, Max: lookBack})
	if err != nil {
		return journey{}, err
	}
	for _, s := range slices.Backward(had) {
		if s.Place != nil {
			j = j.with(placeOfEvent(s.Place), s.Issued.Time())
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if newer, known := t.all[who]; known {
		return newer, nil
	}
	t.put(who, j)
	return j, nil
}

// put stores a journey; where there are too many, any of them makes room. The caller holds mu.
func (t *travels) put(who traveller, j journey) {
	if _, there := t.all[who]; !there && len(t.all) >= maxPrincipals {
		for k := range t.all {
			delete(t.all, k)
			break
		}
	}
	t.all[who] = j
}

// placeFacts looks the peer's address up; nil where no database is configured.
func (b *Broker) placeFacts(who caller) *policy.Place {
	if b.places == nil {
		return nil
	}
	var addr netip.Addr
	if ap, err := netip.ParseAddrPort(who.addr.String()); err == nil {
		addr = ap.Addr()
	}
	found, by := b.places.Find(addr)
	out := &policy.Place{Country: found.Country, Continent: found.Continent, Source: by.Digest(), BuiltAt: by.Built().UnixMicro()}
	if q := found.Point; q != nil {
		out.Point = &policy.Point{LatitudeMilli: q.LatitudeMilli, LongitudeMilli: q.LongitudeMilli, RadiusKM: q.RadiusKM}
	}
	return out
}

func placeOf(p *policy.Place) place.Place {
	out := place.Place{Country: p.Country, Continent: p.Continent}
	if q := p.Point; q != nil {
		out.Point = &place.Point{LatitudeMilli: q.LatitudeMilli, LongitudeMilli: q.LongitudeMilli, RadiusKM: q.RadiusKM}
	}
	return out
}

// eventPlace is a known place as a session keeps it.
func eventPlace(p *policy.Place) *event.Place {
	if p == nil || p.Country == "" {
		return nil
	}
	out := &event.Place{Country: p.Country}
	if q := p.Point; q != nil {
		out.Point = &event.Point{LatitudeMilli: q.LatitudeMilli, LongitudeMilli: q.LongitudeMilli, RadiusKM: q.RadiusKM}
	}
	return out
}

func placeOfEvent(p *event.Place) place.Place {
	out := place.Place{Country: p.Country}
	if q := p.Point; q != nil {
		out.Point = &place.Point{LatitudeMilli: q.LatitudeMilli, LongitudeMilli: q.LongitudeMilli, RadiusKM: q.RadiusKM}
	}
	return out
}

// misplaced says why a request may not be answered to where it comes from: the countries that a permit allows, and
// those that the session is bound to, if it is to any. An unknown place is in none.
func (v verdict) misplaced(bound []string) (unmet string) {
	limits := [][]string{bound}
	if g := v.decision.Obligations.GeoRestriction; g != nil {
		limits = append(limits, g.Countries)
	}
	for _, countries := range limits {
		switch {
		case len(countries) == 0:
		case v.signals.Place == nil:
			return "the policy demands geo_restriction, and this broker has no database of places"
		case v.signals.Place.Country == "":
			return "it is bound to a place, and where this connection comes from is not known"
		case !slices.Contains(countries, v.signals.Place.Country):
			return "it is bound to a place, and this connection comes from " + v.signals.Place.Country
		}
	}
	return ""
}
