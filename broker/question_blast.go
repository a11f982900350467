package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/secret"
)

const (
	// maxVersions is how many versions of secrets one answer tells apart, and maxNames how many principals and devices.
	maxVersions = 20_000
	maxNames    = 100
	// maxHolders is how many different principals of one version are told apart, and maxAllHolders of all versions together.
	maxHolders    = 10_000
	maxAllHolders = 200_000
	// lookEach is after how many sessions the time is looked at.
	lookEach = 256
)

// BlastRadius says what was delivered to whom, or under what, is lost, and what to do about it.
func (s questions) BlastRadius(in *bullav1.BlastRadiusRequest, out grpc.ServerStreamingServer[bullav1.BlastRadiusReply]) error {
	ctx := out.Context()
	what, err := s.about(ctx, in.GetAbout())
	if err != nil {
		return err
	}
	if len(what.facts) != 1 {
		return wrong("name one of principal, secret, device and revision")
	}
	op, err := s.permit(ctx, policy.ActionAuditBlast, what)
	if err != nil {
		return err
	}
	ctx, end, err := s.begin(ctx, 2*longTime)
	if err != nil {
		return err
	}
	defer end()
	b := &blast{
		questions: s, what: what, sight: s.sight(op), until: time.Now().Add(longTime), said: time.Now(),
		alive: func(n uint64) error { return out.Send(&bullav1.BlastRadiusReply{Examined: n}) },
		found: map[versionKey]*exposure{}, principals: map[string]struct{}{}, devices: map[string]struct{}{}, out: new(bullav1.BlastRadius),
	}
	if err := b.run(ctx, page(in.GetLimit())); err != nil {
		return s.answer(ctx, op.caller, err)
	}
	return out.Send(&bullav1.BlastRadiusReply{Examined: b.examined, Answer: b.out})
}

type versionKey struct {
	secret  string
	version uint32
}

// exposure gathers what was delivered of one version.
type exposure struct {
	versionKey
	class, kind string
	current     uint32 // the current version of the secret; 0: not known
	grades      map[string]struct{}
	open        uint64 // deliveries at grade open
	deliveries  uint64
	live        uint64
	gatedUsed   uint64 // deliveries at grade gated whose key was released
	operated    uint64 // at grade proxied, with operations
	uses        uint64
	first, last time.Time

	others     map[string]struct{}
	othersLive uint64
	named      []string // some of others
}

func (e *exposure) add(s ledger.Brief, now time.Time) {
	e.deliveries++
	e.grades[s.Grade] = struct{}{}
	if s.Lives(now) {
		e.live++
	}
	e.uses += uint64(s.Used)
	switch {
	case s.Grade == "open":
		e.open++
	case s.Grade == "gated" && s.Used > 0:
		e.gatedUsed++
	case s.Grade == "proxied" && s.Used > 0:
		e.operated++
	}
	at := s.Issued.Time()
	if e.first.IsZero() || at.Before(e.first) {
		e.first = at
	}
	for _, t := range []time.Time{at, s.UsedAt.Time()} {
		if t.After(e.last) {
			e.last = t
		}
	}
}

// What there is to do about a version, the most urgent first.
const (
	todoRotate  = "rotate"
	todoCheck   = "check"
	todoReview  = "review"
	todoRevoke  = "revoke"
	todoNothing = "nothing"
)

// todo says what to do about an exposure and why, and how urgent it is: less is more so.
func (e *exposure) todo() (rank int, what, why string) {
	superseded := e.current > e.version
	switch {
	case e.open > 0 && !superseded:
		return 0, todoRotate, fmt.Sprintf("delivered open %s: whoever got it can have kept the value", times(e.open))
	case e.gatedUsed > 0 && !superseded:
		return 1, todoRotate, fmt.Sprintf("delivered gated and its key released in %s: a hostile client can have kept the value", sessionsText(e.gatedUsed))
	case e.open > 0 || e.gatedUsed > 0:
		return 2, todoCheck, fmt.Sprintf("its value can have been kept, and version %d took its place: see that nobody accepts the old one", e.current)
	case e.operated > 0:
		return 3, todoReview, fmt.Sprintf("%s with the key, which never left: see what was signed, decrypted or authenticated", operationsText(e.uses))
	case e.live > 0:
		return 4, todoRevoke, "nothing of it can be read without the broker: revoke what still lives"
	}
	return 5, todoNothing, "nothing of it could be read without the broker, and no session lives"
}

func times(n uint64) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func sessionsText(n uint64) string {
	if n == 1 {
		return "one session"
	}
	return fmt.Sprintf("%d sessions", n)
}

func operationsText(n uint64) string {
	if n == 1 {
		return "one operation"
	}
	return fmt.Sprintf("%d operations", n)
}

// byUrgency sorts what to do first to the front: by what there is to do, then by what lives, then by what was touched last.
func byUrgency(a, b *exposure) int {
	ra, _, _ := a.todo()
	rb, _, _ := b.todo()
	return cmp.Or(cmp.Compare(ra, rb), cmp.Compare(b.live, a.live), b.last.Compare(a.last), cmp.Compare(a.secret, b.secret), cmp.Compare(b.version, a.version))
}

// blast is an answer on its way.
type blast struct {
	questions
	what     about
	sight    *sight
	until    time.Time // enough then
	said     time.Time
	alive    func(examined uint64) error
	examined uint64

	found               map[versionKey]*exposure
	principals, devices map[string]struct{}
	cut                 bool // not all was looked at
	tooMany             bool // names
	held                int  // in the others of all exposures
	hidden              int  // principals and devices that the caller may not see
	out                 *bullav1.BlastRadius
}

func (b *blast) run(ctx context.Context, limit int) error {
	spans, err := b.spans(ctx, b.what)
	if err != nil {
		return err
	}
	if err := b.scan(ctx, b.what, spans, b.gather); err != nil && !errors.Is(err, errEnough) {
		return err
	}
	var all []*exposure
	for _, e := range b.found {
		if !b.sight.secret(ctx, e.secret) {
			b.out.Withheld++
			continue
		}
		if err := b.describe(ctx, e); err != nil {
			return err
		}
		all = append(all, e)
	}
	slices.SortFunc(all, byUrgency)
	b.out.Versions = uint64(len(all))
	all = all[:min(len(all), limit)]
	if err := b.elsewhere(ctx, all); err != nil {
		return err
	}
	for _, e := range all {
		b.out.Exposures = append(b.out.Exposures, exposureReply(e))
	}
	b.names(ctx)
	if err := b.denials(ctx, spans); err != nil {
		return err
	}
	b.notes(limit)
	if note, err := b.erasedNote(ctx); err != nil {
		return err
	} else if note != "" {
		b.out.Notes = append(b.out.Notes, note)
	}
	return b.steps(ctx, all)
}

// look counts what was looked at, says now and then that it goes on, and when it is enough.
func (b *blast) look() error {
	if b.examined++; b.examined%lookEach != 0 {
		return nil
	}
	if b.examined >= longExamined || time.Now().After(b.until) {
		return errEnough
	}
	if time.Since(b.said) < signOfLife {
		return nil
	}
	b.said = time.Now()
	return b.alive(b.examined)
}

func (b *blast) gather(s ledger.Brief) error {
	b.out.Deliveries++
	if s.Lives(b.sight.op.now) {
		b.out.Live++
	}
	b.tooMany = !remember(b.principals, s.Principal, maxNames) || b.tooMany
	if s.Device != "" {
		b.tooMany = !remember(b.devices, s.Device, maxNames) || b.tooMany
	}
	key := versionKey{s.Secret, s.Version}
	e := b.found[key]
	if e == nil {
		if len(b.found) >= maxVersions {
			b.cut = true
			return errEnough
		}
		e = &exposure{versionKey: key, class: s.Class, grades: map[string]struct{}{}, others: map[string]struct{}{}}
		b.found[key] = e
	}
	e.add(s, b.sight.op.now)
	err := b.look()
	b.cut = errors.Is(err, errEnough)
	return err
}

// remember adds a name to a set of at most so many, and says whether it is in it.
func remember(set map[string]struct{}, name string, most int) bool {
	if _, ok := set[name]; ok {
		return true
	}
	if len(set) >= most {
		return false
	}
	set[name] = struct{}{}
	return true
}

// describe adds what the secret's metadata say.
func (b *blast) describe(ctx context.Context, e *exposure) error {
	row, _, err := b.ledger.Secret(ctx, e.secret)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	e.kind = string(typeOf(row))
	for _, v := range row.Versions {
		if v.Stage == secret.StageCurrent {
			e.current = v.Version
		}
	}
	return nil
}

// elsewhere finds who else has the versions that are listed. Where the question is about a secret it is everybody anyway.
func (b *blast) elsewhere(ctx context.Context, listed []*exposure) error {
	if b.what.secret != "" {
		return nil
	}
	bySecret := map[string]map[uint32]*exposure{}
	var order []string // so that what is to be done first is looked at first
	for _, e := range listed {
		if bySecret[e.secret] == nil {
			bySecret[e.secret], order = map[uint32]*exposure{}, append(order, e.secret)
		}
		bySecret[e.secret][e.version] = e
	}
	size, _ := b.ledger.Committed()
	for _, name := range order {
		versions := bySecret[name]
		err := b.scan(ctx, about{secret: name}, []span{{0, size}}, func(s ledger.Brief) error {
			if e := versions[s.Version]; e != nil && !b.what.delivered(s) && s.Principal != b.what.principal {
				b.other(ctx, e, s)
			}
			return b.look()
		})
		if errors.Is(err, errEnough) {
			b.out.Notes = append(b.out.Notes, "who else has these versions was not looked up to the end: ask `bulla audit blast-radius --secret` for those that matter")
			b.out.Incomplete = true
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// delivered says whether a delivery is one that the question is about.
func (a about) delivered(s ledger.Brief) bool {
	return (a.principal == "" || a.principal == s.Principal) && (a.device == "" || a.device == s.Device) &&
		(a.revision.IsZero() || a.revision.String() == s.Revision) && a.holds(s.Issued.Time())
}

// maxOthers is how many of those who have a version too are named.
const maxOthers = 5

func (b *blast) other(ctx context.Context, e *exposure, s ledger.Brief) {
	if s.Lives(b.sight.op.now) {
		e.othersLive++
	}
	if _, known := e.others[s.Principal]; known {
		return
	}
	if b.held >= maxAllHolders || !remember(e.others, s.Principal, maxHolders) {
		b.tooMany = true
		return
	}
	b.held++
	if len(e.named) < maxOthers && b.sight.principal(ctx, s.Principal, e.secret) {
		e.named = append(e.named, s.Principal)
	}
}

func exposureReply(e *exposure) *bullav1.Exposure {
	_, todo, why := e.todo()
	return &bullav1.Exposure{
		Secret: e.secret, Version: e.version, Class: e.class, Type: e.kind, Todo: todo, Why: why, Superseded: e.current > e.version,
		Grades: slices.Sorted(maps.Keys(e.grades)), Deliveries: e.deliveries, Live: e.live, Used: e.gatedUsed + e.operated, Uses: e.uses,
		FirstAt: stamp(event.NewTime(e.first)), LastAt: stamp(event.NewTime(e.last)),
		Others: uint64(len(e.others)), OthersLive: e.othersLive, OtherPrincipals: e.named,
	}
}

// names lists who got it and where it ran, as far as the caller may see it.
func (b *blast) names(ctx context.Context) {
	for _, p := range slices.Sorted(maps.Keys(b.principals)) {
		if b.sight.principal(ctx, p, b.what.secret) {
			b.out.Principals = append(b.out.Principals, p)
		}
	}
	for _, d := range slices.Sorted(maps.Keys(b.devices)) {
		if b.sight.device(ctx, d) {
			b.out.Devices = append(b.out.Devices, d)
		}
	}
	b.hidden = len(b.principals) + len(b.devices) - len(b.out.GetPrincipals()) - len(b.out.GetDevices())
}

// maxRefusals is how many refusals are read to be counted.
const maxRefusals = 5000

// denials counts the calls that were refused.
func (b *blast) denials(ctx context.Context, spans []span) error {
	n, all, err := b.countRefusals(ctx, b.what, spans)
	b.out.Denials = n
	if !all {
		b.out.Incomplete = true
		b.out.Notes = append(b.out.Notes, "there are more refusals than were counted: `bulla audit query --outcome deny` lists them")
	}
	return err
}

// countRefusals counts the calls that were refused, those with them for which one event stands. all is false if there
// are more than it may read.
func (s questions) countRefusals(ctx context.Context, what about, spans []span) (n uint64, all bool, err error) {
	scope, value := what.scope()
	read := 0
	for _, in := range spans {
		for below := in.below; below > in.from; {
			page, err := s.ledger.Denials(ctx, scope, value, in.from, below, questionBatch)
			if err != nil {
				return n, false, err
			}
			for _, index := range page {
				r, err := s.refusal(ctx, index)
				if err != nil && !errors.Is(err, ledger.ErrTampered) && !errors.Is(err, ledger.ErrErased) {
					return n, false, err
				}
				if err == nil && what.meant(r) {
					n += r.finding.GetCount()
				}
				if read++; read >= maxRefusals {
					return n, false, nil
				}
			}
			if len(page) < questionBatch {
				break
			}
			below = page[len(page)-1]
		}
	}
	return n, true, nil
}

func (b *blast) notes(limit int) {
	note := func(format string, args ...any) { b.out.Notes = append(b.out.Notes, fmt.Sprintf(format, args...)) }
	if b.cut {
		b.out.Incomplete = true
		note("there is more than one answer looks at, which were %d deliveries: ask about a shorter time, with --since and --until", b.out.Deliveries)
	}
	if uint64(limit) < b.out.Versions {
		b.out.Incomplete = true
		note("%d versions are listed of %d: --limit lists more", limit, b.out.Versions)
	}
	if b.tooMany {
		b.out.Incomplete = true
		note("not all principals and devices are told apart: there are too many")
	}
	if b.out.Withheld > 0 {
		b.out.Incomplete = true
		note("%d versions of secrets are left out that the policy does not show to you: ask somebody who may see them", b.out.Withheld)
	}
	if b.hidden > 0 {
		b.out.Incomplete = true
		note("%d principals and devices are left out that the policy does not show to you", b.hidden)
	}
	if b.what.device != "" {
		note("a delivery without attestation names no device, even if it went to this one: ask for the principals that ran on it as well")
	}
	if !b.what.revision.IsZero() {
		note("uses that this revision permitted of sessions that another one delivered are not counted")
	}
}
