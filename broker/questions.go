package broker

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/secret"
)

const (
	// maxQuestions is how many questions are answered at once. Each holds a reader of the store, of which there are few.
	maxQuestions = 2
	// maxChecks is how many calls look at the whole ledger at once. Each holds a reader of the store, and its rows in memory.
	maxChecks = 2
	// pageTime and longTime are how long the answer to a question may take: a page of it, or all at once.
	pageTime = 4 * time.Second
	longTime = 30 * time.Second
	// maxExamined is how many events one page looks at, and longExamined how many sessions one whole answer.
	maxExamined  = 20_000
	longExamined = 4_000_000
	// maxAnswer is from how many bytes on a page is full: a client takes 8 MiB.
	maxAnswer = 4 << 20
	// questionBatch is how many refusals are looked up at once.
	questionBatch = ledger.MaxPage
	// aside is how far the time of an event may be from those beside it in the log: it is made before the commit, and by
	// brokers whose clocks differ.
	aside = time.Minute
)

// questions is the service that answers auditors and responders. It reads, by index and in bounded steps, and what it
// can't say it says.
type questions struct {
	bullav1.UnimplementedQuestionsServer
	*Broker
}

// about is what a question is about. Zero fields select everything.
type about struct {
	principal, secret, device string
	revision                  event.Digest
	since, until              time.Time
	facts                     []policy.Resource // what policy is asked about, one by one
}

// about reads what a question is about, strictly.
func (s questions) about(ctx context.Context, in *bullav1.About) (about, error) {
	var out about
	if in.GetSecret() != "" {
		name, err := secret.ParseName(in.GetSecret())
		if err != nil {
			return about{}, wrong("%v", err)
		}
		t, err := s.target(ctx, ask{name: name})
		if err != nil {
			return about{}, s.unavailable(err)
		}
		out.secret = name.String()
		out.facts = append(out.facts, policy.Resource{Kind: policy.KindSecret, Secret: secretFacts(t)})
	}
	if in.GetPrincipal() != "" {
		id, err := certs.ParseID(in.GetPrincipal())
		if err != nil {
			return about{}, wrong("%v", err)
		}
		out.principal = id.String()
		out.facts = append(out.facts, policy.Resource{Kind: policy.KindSession, Session: &policy.Session{Principal: out.principal}})
	}
	if in.GetDevice() != "" {
		id, err := attest.ParseDeviceID(in.GetDevice())
		if err != nil {
			return about{}, wrong("%v", err)
		}
		out.device = id.String()
		out.facts = append(out.facts, policy.Resource{Kind: policy.KindDevice, Device: &policy.Device{ID: out.device, Kind: string(id.Kind())}})
	}
	if in.GetRevision() != "" {
		if err := out.revision.UnmarshalText([]byte(in.GetRevision())); err != nil || out.revision.IsZero() {
			return about{}, wrong("a digest has 64 hexadecimal digits: `bulla policy list` shows those of the revisions")
		}
		out.facts = append(out.facts, policy.Resource{Kind: policy.KindRevision, Revision: &policy.NewRules{Digest: out.revision.String()}})
	}
	var err error
	out.since, out.until, err = window(in.GetSince(), in.GetUntil())
	return out, err
}

// window reads two times; one that is nil is zero.
func window(since, until *timestamppb.Timestamp) (from, to time.Time, err error) {
	for _, one := range []struct {
		in  *timestamppb.Timestamp
		out *time.Time
	}{{since, &from}, {until, &to}} {
		if one.in == nil {
			continue
		}
		if one.in.CheckValid() != nil {
			return from, to, wrong("a time of the question is no time")
		}
		*one.out = one.in.AsTime()
	}
	if !from.IsZero() && !to.IsZero() && !from.Before(to) {
		return from, to, wrong("the time until which is asked is not after the one since which is")
	}
	return from, to, nil
}

// holds says whether a moment is one that is asked about.
func (a about) holds(at time.Time) bool {
	return (a.since.IsZero() || !at.Before(a.since)) && (a.until.IsZero() || at.Before(a.until))
}

// permit asks policy about each thing that the question names, and records it.
func (s questions) permit(ctx context.Context, action policy.Action, what about) (op operation, err error) {
	facts := what.facts
	if len(facts) == 0 {
		facts = []policy.Resource{{Kind: policy.KindAudit}}
	}
	for _, f := range facts {
		if op, err = s.read(ctx, action, f); err != nil {
			return operation{}, err
		}
	}
	return op, nil
}

// begin takes a slot for a question, and gives it so much time.
func (s questions) begin(ctx context.Context, most time.Duration) (context.Context, func(), error) {
	free, err := slot(ctx, s.asking)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	return ctx, func() { cancel(); free() }, nil
}

// whole takes a slot for a look at the whole ledger.
func (b *Broker) whole(ctx context.Context) (free func(), err error) { return slot(ctx, b.checking) }

// slot waits a little for one of slots.
func slot(ctx context.Context, slots chan struct{}) (free func(), err error) {
	wait := time.NewTimer(pageTime)
	defer wait.Stop()
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-wait.C:
		return nil, refuse(codes.ResourceExhausted, checkLimit, "%d calls of this kind are being answered: try again in a moment", cap(slots))
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// span is a stretch of the log: from an index on, and below another.
type span struct{ from, below int64 }

// spans are the stretches of the log that a question is about, the newest first. Within them each event is still
// compared with what is asked.
func (s questions) spans(ctx context.Context, what about) ([]span, error) {
	size, _ := s.ledger.Committed()
	whole := span{0, size}
	if !what.since.IsZero() {
		at, err := s.ledger.Positions(ctx, what.since.Add(-aside))
		if err != nil {
			return nil, err
		}
		whole.from = at[0]
	}
	if !what.until.IsZero() {
		at, err := s.ledger.Positions(ctx, what.until.Add(aside))
		if err != nil {
			return nil, err
		}
		whole.below = min(size, at[0])
	}
	if what.revision.IsZero() {
		return []span{whole}, nil
	}
	activations, err := s.ledger.Activations(ctx)
	if err != nil {
		return nil, err
	}
	return s.reigns(ctx, what.revision, activations, whole)
}

// reigns are the stretches in which a revision decided, the newest first. Each goes on for a while after the next revision:
// a commit demands that the revision which decided is the active one, but a refusal does not.
func (s questions) reigns(ctx context.Context, revision event.Digest, activations []ledger.Activation, whole span) ([]span, error) {
	var out []span
	for i, a := range activations {
		if a.Digest != revision {
			continue
		}
		reign := span{max(a.Index, whole.from), whole.below}
		if i+1 < len(activations) {
			over, err := s.ledger.Positions(ctx, activations[i+1].At.Time().Add(aside))
			if err != nil {
				return nil, err
			}
			reign.below = min(reign.below, max(over[0], activations[i+1].Index))
		}
		switch last := len(out) - 1; {
		case reign.from >= reign.below:
		case last >= 0 && out[last].below >= reign.from: // it came back soon
			out[last].below = reign.below
		default:
			out = append(out, reign)
		}
	}
	slices.Reverse(out)
	return out, nil
}

// erasedNote says that an answer lacks what was erased; "" where nothing was.
func (s questions) erasedNote(ctx context.Context) (string, error) {
	n, all, err := s.ledger.Erased(ctx)
	if err != nil || n == 0 {
		return "", err
	}
	most := ""
	if !all {
		most = "at least "
	}
	return fmt.Sprintf("%s%d events of the record are erased: deliveries and refusals among them are not in this answer", most, n), nil
}

// errEnough ends a scan.
var errEnough = errors.New("enough")

// scan passes the deliveries that a question is about to f, in no particular order.
func (s questions) scan(ctx context.Context, what about, spans []span, f func(ledger.Brief) error) error {
	revision := ""
	if !what.revision.IsZero() {
		revision = what.revision.String()
	}
	for _, in := range spans {
		err := s.ledger.Scan(ctx, what.sessions(in, 0), func(b ledger.Brief) error {
			if b.Erased != 0 || !what.holds(b.Issued.Time()) || revision != "" && revision != b.Revision {
				return nil
			}
			return f(b)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (a about) sessions(in span, limit int) ledger.SessionQuery {
	return ledger.SessionQuery{Principal: a.principal, Secret: a.secret, Device: a.device, From: in.from, Below: in.below, Max: limit}
}

// scope is by what the denials are looked up that a question is about; which of them are meant is seen in each.
func (a about) scope() (ledger.Scope, string) {
	switch {
	case a.secret != "":
		return ledger.ScopeSecret, a.secret
	case a.device != "":
		return ledger.ScopeDevice, a.device
	case a.principal != "":
		return ledger.ScopePrincipal, a.principal
	}
	return ledger.ScopeAll, ""
}

// pageToken says where an answer goes on: the index below which, and a keyed hash that binds it to the question and to
// who asks.
func (s questions) pageToken(op operation, in *bullav1.QueryRequest, below int64) (string, error) {
	question, ok := proto.Clone(in).(*bullav1.QueryRequest)
	if !ok {
		return "", errors.New("a question can't be copied")
	}
	question.PageToken, question.Limit = "", 0
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(question)
	if err != nil {
		return "", err
	}
	mac := s.ring.NameHash(fmt.Sprintf("page\x00query/v1\x00%s\x00%d\x00%s", op.id, below, text))
	token := binary.BigEndian.AppendUint64(nil, uint64(below))
	return base64.RawURLEncoding.EncodeToString(append(token, mac[:16]...)), nil
}

// pageBelow is the index that a page token names; everything lies below it without one.
func (s questions) pageBelow(op operation, in *bullav1.QueryRequest) (int64, error) {
	if in.GetPageToken() == "" {
		return math.MaxInt64, nil
	}
	refused := wrong("the page token is not of this question and caller: ask again without it")
	raw, err := base64.RawURLEncoding.Strict().DecodeString(in.GetPageToken())
	if err != nil || len(raw) != 24 {
		return 0, refused
	}
	below := int64(binary.BigEndian.Uint64(raw))
	want, err := s.pageToken(op, in, below)
	if err != nil || below < 0 || subtle.ConstantTimeCompare([]byte(want), []byte(in.GetPageToken())) != 1 {
		return 0, refused
	}
	return below, nil
}

// sight remembers what policy lets the caller of one question see.
type sight struct {
	questions
	op    operation
	known map[string]bool
}

func (s questions) sight(op operation) *sight { return &sight{s, op, map[string]bool{}} }

// secret says whether the caller may see that there is this secret.
func (v *sight) secret(ctx context.Context, name string) bool {
	return v.once("secret\x00"+name, func() bool {
		parsed, err := secret.ParseName(name)
		if err != nil {
			return false
		}
		t, err := v.target(ctx, ask{name: parsed})
		return err == nil && v.shows(ctx, v.op, policy.ActionSecretShow, policy.Resource{Kind: policy.KindSecret, Secret: secretFacts(t)})
	})
}

// principal says whether the caller may see sessions of this principal with this secret.
func (v *sight) principal(ctx context.Context, id, name string) bool {
	return v.once("principal\x00"+id+"\x00"+name, func() bool {
		facts := policy.Resource{Kind: policy.KindSession, Session: &policy.Session{Principal: id, Secret: name}}
		return v.shows(ctx, v.op, policy.ActionSessionShow, facts)
	})
}

// device says whether the caller may see this device.
func (v *sight) device(ctx context.Context, text string) bool {
	return v.once("device\x00"+text, func() bool {
		id, err := attest.ParseDeviceID(text)
		facts := policy.Resource{Kind: policy.KindDevice, Device: &policy.Device{ID: text, Kind: string(id.Kind())}}
		return err == nil && v.shows(ctx, v.op, policy.ActionDeviceShow, facts)
	})
}

// maxSeen bounds what a sight remembers.
const maxSeen = 100_000

func (v *sight) once(key string, f func() bool) bool {
	if seen, ok := v.known[key]; ok {
		return seen
	}
	if len(v.known) >= maxSeen {
		clear(v.known)
	}
	v.known[key] = f()
	return v.known[key]
}
