package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/secret"
)

const (
	// usageSince is how far usage goes back when nothing is said.
	usageSince = 7 * 24 * time.Hour
	// maxSpans is how many hours, or days where these are more, one answer counts.
	maxSpans = 1000
)

// SecretUsage counts the accesses to a secret. It keeps no counters: deliveries are counted on an index of the store
// that a delivery needs anyway, and uses on the sessions.
func (s questions) SecretUsage(in *bullav1.SecretUsageRequest, out grpc.ServerStreamingServer[bullav1.SecretUsageReply]) error {
	ctx := out.Context()
	name, err := secret.ParseName(in.GetName())
	if err != nil {
		return wrong("%v", err)
	}
	what := about{secret: name.String()}
	if what.since, what.until, err = window(in.GetSince(), in.GetUntil()); err != nil {
		return err
	}
	t, err := s.target(ctx, ask{name: name})
	if err != nil {
		return s.unavailable(err)
	}
	op, err := s.read(ctx, policy.ActionSecretUsage, policy.Resource{Kind: policy.KindSecret, Secret: secretFacts(t)})
	if err != nil {
		return err
	}
	if !t.exists {
		return missing("there is no secret %s", name)
	}
	if what.until.IsZero() {
		what.until = op.now
	}
	if what.since.IsZero() {
		what.since = what.until.Add(-usageSince)
	}
	cuts, length := spansOf(what.since, what.until)
	if len(cuts) > maxSpans+2 {
		return wrong("at most %d days can be asked about at a time", maxSpans)
	}
	ctx, end, err := s.begin(ctx, 2*longTime)
	if err != nil {
		return err
	}
	defer end()
	u := &usage{
		questions: s, what: what, cuts: cuts, op: op, until: time.Now().Add(longTime), said: time.Now(),
		alive: func(n uint64) error { return out.Send(&bullav1.SecretUsageReply{Examined: n}) },
		out: &bullav1.SecretUsage{
			Name: name.String(), Since: timestamppb.New(what.since), Until: timestamppb.New(what.until), SpanSeconds: uint32(length / time.Second),
		},
	}
	if err := u.run(ctx); err != nil {
		return s.answer(ctx, op.caller, err)
	}
	return out.Send(&bullav1.SecretUsageReply{Examined: u.examined, Answer: u.out})
}

// spansOf cuts a window at full hours, or at full days where these are too many: the first cut is its start and the last
// its end.
func spansOf(since, until time.Time) (cuts []time.Time, length time.Duration) {
	if length = time.Hour; until.Sub(since) > maxSpans*length {
		length = 24 * time.Hour
	}
	cuts = append(cuts, since)
	for at := since.Truncate(length).Add(length); at.Before(until) && len(cuts) <= maxSpans+2; at = at.Add(length) {
		cuts = append(cuts, at)
	}
	return append(cuts, until), length
}

// usage is an answer on its way.
type usage struct {
	questions
	what     about
	cuts     []time.Time
	op       operation
	until    time.Time // enough then
	said     time.Time
	alive    func(examined uint64) error
	examined uint64
	out      *bullav1.SecretUsage
}

func (u *usage) run(ctx context.Context) error {
	places, err := u.ledger.Positions(ctx, u.cuts...)
	if err != nil {
		return err
	}
	if err := u.accesses(ctx, places); err != nil {
		return err
	}
	spans, err := u.spans(ctx, u.what)
	if err != nil {
		return err
	}
	if err := u.uses(ctx, spans); err != nil {
		return err
	}
	n, all, err := u.countRefusals(ctx, u.what, spans)
	if err != nil {
		return err
	}
	if u.out.Denials = n; !all {
		u.out.Incomplete = true
		u.out.Notes = append(u.out.Notes, "there are more denials than were counted: `bulla audit query --outcome deny` lists them")
	}
	if n > 0 {
		u.out.Notes = append(u.out.Notes, "what a limiter refused is counted by principal: it is not in denials")
	}
	if note, err := u.erasedNote(ctx); err != nil {
		return err
	} else if note != "" {
		u.out.Notes = append(u.out.Notes, note)
	}
	return u.last(ctx)
}

// accesses counts deliveries by their place in the log.
func (u *usage) accesses(ctx context.Context, places []int64) error {
	counts, last := make([]uint64, len(places)-1), ""
	err := u.ledger.Recipients(ctx, u.what.secret, places[0], places[len(places)-1], func(principal string, index int64) error {
		if principal != last || u.out.Principals == 0 {
			last = principal
			u.out.Principals++
		}
		at, exact := slices.BinarySearch(places, index)
		if !exact {
			at--
		}
		for at < len(counts)-1 && places[at+1] == places[at] { // a span in which nothing happened
			at++
		}
		counts[at]++
		u.out.Accesses++
		return nil
	})
	if err != nil {
		return err
	}
	for i, n := range counts {
		if n == 0 {
			continue
		}
		one := &bullav1.UsageSpan{Start: timestamppb.New(u.cuts[i]), Accesses: n}
		if u.out.Spans = append(u.out.Spans, one); u.out.Peak == nil || n > u.out.Peak.Accesses {
			u.out.Peak = one
		}
	}
	return nil
}

// uses adds up what the sessions say that were delivered in the window.
func (u *usage) uses(ctx context.Context, spans []span) error {
	var newest time.Time
	err := u.scan(ctx, u.what, spans, func(s ledger.Brief) error {
		switch s.Grade {
		case "gated":
			u.out.Uses += uint64(s.Used)
		case "proxied":
			u.out.Operations += uint64(s.Used)
		}
		if at := s.UsedAt.Time(); at.After(newest) {
			newest, u.out.LastUse = at, stamp(s.UsedAt)
		}
		if u.examined++; u.examined%lookEach != 0 {
			return nil
		}
		if u.examined >= longExamined || time.Now().After(u.until) {
			u.out.Incomplete = true
			u.out.Notes = append(u.out.Notes, fmt.Sprintf("uses and operations are those of %d of the deliveries only: ask about a shorter time", u.examined))
			return errEnough
		}
		if time.Since(u.said) < signOfLife {
			return nil
		}
		u.said = time.Now()
		return u.alive(u.examined)
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// last finds the newest delivery of all, whatever the window.
func (u *usage) last(ctx context.Context) error {
	newest, err := u.ledger.Deliveries(ctx, ledger.SessionQuery{Secret: u.what.secret, Max: 1})
	if err != nil || len(newest) == 0 {
		return err
	}
	s := newest[0].Session
	u.out.LastAccess = stamp(s.Issued)
	if u.sight(u.op).principal(ctx, s.Principal, s.Secret) {
		u.out.LastPrincipal = s.Principal
	}
	return nil
}
