package storetest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
)

// questions compares what a store finds by index with a look at everything that was appended.
func (s *suite) questions() {
	type delivery struct {
		principal, secret string
		index             int64
	}
	var all []delivery
	var denials []int64
	s.done(Foundation()...)
	s.done(SecretVersion("demo/d", 1)) // which the other one's name begins with
	for i := range 60 {
		at := Start.Add(time.Duration(i) * time.Minute)
		if i%4 == 3 {
			decision := Decision(event.NewID(at))
			decision.Signals = json.RawMessage(fmt.Sprintf(`{"attestation":{"device_id":%q},"resource":{"secret":{"name":%q}}}`, Device, Secret))
			out := s.done(ledger.Commit{Event: event.New(at, Principal, event.DecisionDenied{Principal: Principal, Decision: decision})})
			denials = append(denials, out[0].Index)
			continue
		}
		c := Issue(at, 24*time.Hour, 0)
		body := c.Event.Body.(event.SessionIssued)
		body.Principal, body.Secret = fmt.Sprintf("spiffe://dev.bulla.test/p%d", i%7), []string{Secret, "demo/d"}[i%2]
		c.Event.Body = body
		all = append(all, delivery{body.Principal, body.Secret, s.done(c)[0].Index})
	}
	s.view(func(v ledger.Snapshot) {
		for _, window := range [][2]int64{{0, 1 << 40}, {20, 50}, {all[3].index, all[3].index + 1}, {50, 50}} {
			var want, got []delivery
			for _, d := range all {
				if d.secret == Secret && d.index >= window[0] && d.index < window[1] {
					want = append(want, d)
				}
			}
			slices.SortStableFunc(want, func(a, b delivery) int { return cmp.Compare(a.principal, b.principal) })
			err := v.Recipients(s.Context(), Secret, window[0], window[1], func(principal string, index int64) error {
				got = append(got, delivery{principal, Secret, index})
				return nil
			})
			if err != nil || !slices.Equal(got, want) {
				s.Errorf("recipients in %v: %v %v, want %v", window, got, err, want)
			}
			rows, listed := v.Sessions(s.Context(), ledger.SessionQuery{Secret: Secret, From: window[0], Below: window[1], Max: 5})
			slices.SortFunc(want, func(a, b delivery) int { return cmp.Compare(b.index, a.index) })
			var scanned []int64
			err = v.Scan(s.Context(), ledger.SessionQuery{Secret: Secret, From: window[0], Below: window[1]}, func(r ledger.Row) error {
				scanned = append(scanned, r.Opened)
				return nil
			})
			slices.SortFunc(scanned, func(a, b int64) int { return cmp.Compare(b, a) })
			if err != nil || !slices.EqualFunc(scanned, want, func(index int64, d delivery) bool { return index == d.index }) {
				s.Errorf("scanned in %v: %v %v, want %v", window, scanned, err, want)
			}
			want = want[:min(len(want), 5)]
			if listed != nil || !slices.EqualFunc(rows, want, func(r ledger.Row, d delivery) bool { return r.Opened == d.index }) {
				s.Errorf("the newest sessions in %v: %v %v, want %v", window, rows, listed, want)
			}
		}
		rows, err := v.Rows(s.Context(), ledger.KindDenial, "", 1000)
		if err != nil || len(rows) != 4*len(denials) {
			s.Errorf("%d rows of %d denials: %v", len(rows), len(denials), err)
		}
	})
}
