package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
)

const (
	// proposalLife is how long one person's word waits for a second one's.
	proposalLife = 24 * time.Hour
	// maxStaged is how many bundles one principal may stage in an hour: each is kept as long as the log.
	maxStaged = 256
)

// The outcomes of a change.
const (
	outcomeStaged   = "staged"
	outcomeProposed = "proposed"
	outcomeActive   = "active"
)

// revisions is the service that changes the policy.
type revisions struct {
	bullav1.UnimplementedRevisionsServer
	*Broker
}

// bundleKeys are the keys under which bundles may be signed. Once the ledger had one, nothing unsigned is activated any
// more, also if all are retired by now.
type bundleKeys struct {
	required bool
	live     []policy.BundleKey
}

func newBundleKeys(ctx context.Context, l *ledger.Ledger) (bundleKeys, error) {
	var out bundleKeys
	known, err := l.Keys(ctx)
	if err != nil {
		return out, err
	}
	for _, k := range known {
		if k.Use != event.UseBundle {
			continue
		}
		out.required = true
		if !k.Retired.IsZero() {
			continue
		}
		key, err := policy.NewBundleKey(k.Public)
		if err != nil {
			return out, fmt.Errorf("bundle key %s: %w", k.ID, err)
		}
		out.live = append(out.live, key)
	}
	return out, nil
}

// verify returns the key under which a bundle is signed, "" where none has to be.
func (k bundleKeys) verify(archive, signature []byte) (string, error) {
	if !k.required {
		return "", nil
	}
	return policy.VerifySignature(archive, signature, k.live)
}

// Stage checks a bundle with everything that Load knows, and keeps it.
func (s revisions) Stage(ctx context.Context, in *bullav1.StageRequest) (*bullav1.RevisionChange, error) {
	if len(in.GetNote()) > maxReason {
		return nil, wrong("a note has at most %d bytes", maxReason)
	}
	return twice(func() (*bullav1.RevisionChange, error) { return s.stage(ctx, in) })
}

func (s revisions) stage(ctx context.Context, in *bullav1.StageRequest) (*bullav1.RevisionChange, error) {
	digest := event.Digest(policy.ArchiveDigest(in.GetArchive()))
	op, err := s.authorise(ctx, policy.ActionPolicyPush, policy.Resource{Kind: policy.KindRevision, Revision: &policy.NewRules{Digest: digest.String()}})
	if err != nil {
		return nil, err
	}
	loaded, key, err := s.checked(ctx, in.GetArchive(), in.GetSignature())
	if err != nil {
		if err := s.permitted(ctx, op); err != nil { // who tried it, and with what
			return nil, err
		}
		return nil, wrong("the bundle was refused, the active revision stays:\n%v", err)
	}
	staged, err := s.keep(ctx, op, loaded, event.RevisionStaged{
		Digest: digest, Name: loaded.revision.Name(), Source: "push by " + op.id.String(), Note: in.GetNote(), Signature: in.GetSignature(), Key: key, By: op.by(),
	})
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	if in.GetOnly() || s.bundleKeys.required {
		return &bullav1.RevisionChange{Revision: stagedReply(staged), Outcome: outcomeStaged}, nil
	}
	was, _, err := s.ledger.Revision(ctx, digest.String())
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return nil, s.answer(ctx, op.caller, err)
	}
	if digest == op.permit.active.digest {
		return &bullav1.RevisionChange{Revision: revisionReply(was, true), Outcome: outcomeActive}, nil
	}
	return s.promote(ctx, change{digest: digest, rollback: err == nil, note: in.GetNote(), oneStep: true, loaded: &loaded})
}

// checked loads a bundle and checks who signed it.
func (b *Broker) checked(ctx context.Context, archive, signature []byte) (candidate, string, error) {
	key, err := b.bundleKeys.verify(archive, signature)
	if err != nil {
		return candidate{}, "", err
	}
	loaded, err := b.load(ctx, archive)
	return loaded, key, err
}

// keep stages a bundle that was checked. The newest staging of a bundle counts, with its signature.
func (s revisions) keep(ctx context.Context, op operation, loaded candidate, body event.RevisionStaged) (ledger.Staged, error) {
	commit := ledgerCommit(event.New(op.now, op.id.String(), body))
	commit.Require = []ledger.Precondition{op.permit.active.unchanged()}
	commit.Blob = revisionBlob(loaded)
	commit.Counters = []ledger.Counter{{Key: "staged/" + op.id.String(), Window: op.now.Truncate(time.Hour), Length: time.Hour, Max: maxStaged}}
	if _, err := s.ledger.Commit(ctx, commit); err != nil {
		return ledger.Staged{}, err
	}
	s.logger.Info("policy revision staged", "digest", body.Digest.String(), "source", body.Source, "key", body.Key)
	staged, _, err := s.ledger.Staged(ctx, body.Digest.String())
	return staged, err
}

// Promote activates a bundle, or proposes it to a second person.
func (s revisions) Promote(ctx context.Context, in *bullav1.PromoteRequest) (*bullav1.RevisionChange, error) {
	c := change{rollback: in.GetRollback(), note: in.GetNote()}
	if err := c.digest.UnmarshalText([]byte(in.GetDigest())); err != nil || c.digest.IsZero() {
		return nil, wrong("a digest has 64 hexadecimal digits")
	}
	if len(c.note) > maxReason {
		return nil, wrong("a note has at most %d bytes", maxReason)
	}
	var err error
	if c.grounds, err = groundsOf(in); err != nil {
		return nil, err
	}
	return twice(func() (*bullav1.RevisionChange, error) { return s.promote(ctx, c) })
}

// change is what a promotion or a rollback asks for.
type change struct {
	digest   event.Digest
	rollback bool
	note     string
	grounds  grounds
	oneStep  bool       // as part of a push
	loaded   *candidate // nil: it has to be loaded
}

func (c change) action() policy.Action {
	if c.rollback {
		return policy.ActionPolicyRollback
	}
	return policy.ActionPolicyPromote
}

func (s revisions) promote(ctx context.Context, c change) (*bullav1.RevisionChange, error) {
	now := s.now()
	who, err := s.caller(ctx, now)
	if err != nil {
		return nil, err
	}
	active, err := s.current(ctx)
	if err != nil {
		return nil, s.answer(ctx, who, err)
	}
	proposal, err := s.proposal(ctx, now, active)
	if err != nil {
		return nil, s.answer(ctx, who, err)
	}
	row, name := s.rowOf(ctx, c.digest)
	facts := s.adminSignals(now, who, c.action(), policy.Resource{Kind: policy.KindRevision, Revision: &policy.NewRules{Digest: c.digest.String(), Name: name}})
	if proposal.fits(c, who.id.String()) {
		facts.Approvals = []policy.Approval{{Principal: proposal.By, At: proposal.At.Time().UnixMicro()}}
	}
	v, err := s.decide(ctx, active, facts, external{})
	if err != nil {
		return nil, s.answer(ctx, who, err)
	}
	permit, denied := v.permit()
	if denied != nil && !wantsSecond(v.decision) {
		return nil, s.forbidden(ctx, now, who, denied)
	}
	op := operation{caller: who, now: now, permit: permit}
	loaded, key, err := s.candidate(ctx, c, row, active)
	if err == nil {
		c.grounds, err = c.grounds.about(c.digest, active)
	}
	if err != nil {
		if err := s.tried(ctx, op, denied); err != nil {
			return nil, err
		}
		return nil, err
	}
	if denied != nil {
		return s.propose(ctx, now, who, v, c)
	}
	a := activation{next: loaded, source: c.source(who), note: c.note, rollback: c.rollback, key: key, grounds: c.grounds, op: &op, require: []ledger.Precondition{row.unchanged(c)}}
	if len(facts.Approvals) > 0 {
		a.proposal, a.require = proposal.ID, append(a.require, proposal.unchanged())
		if a.grounds.digest.IsZero() {
			a.grounds.digest = proposal.Report
		}
	}
	activated, err := s.activate(ctx, now, a)
	if err != nil {
		return nil, s.answer(ctx, who, err)
	}
	return &bullav1.RevisionChange{Revision: revisionReply(activated, true), Outcome: outcomeActive}, nil
}

func (c change) source(who caller) string {
	switch {
	case c.oneStep:
		return "push by " + who.id.String()
	case c.rollback:
		return "rollback by " + who.id.String()
	}
	return "promote by " + who.id.String()
}

// wantsSecond says whether the word of a second person is all that is missing.
func wantsSecond(d policy.Decision) bool {
	r := d.Requires
	return d.Effect == policy.StepUp && d.Covered && r.Approval != nil && r.Approval.Count == 1 && r.Factor == nil && r.Attestation == nil
}

// tried records a change that was permitted, or proposed, and could not be done.
func (s revisions) tried(ctx context.Context, op operation, denied *verdict) error {
	if denied == nil {
		return s.permitted(ctx, op)
	}
	_, err := s.denial(ctx, op.now, op.caller, "", denied, "the bundle can't be activated")
	if err != nil {
		return s.answer(ctx, op.caller, err)
	}
	return nil
}

// known is what the ledger has on a bundle.
type known struct {
	staged    ledger.Staged
	stagedErr error
	active    ledger.Revision
	seq       int64 // of the row that says when it was last activated; 0: never
	err       error
}

// rowOf looks a bundle up, and gives its name for the policy.
func (b *Broker) rowOf(ctx context.Context, digest event.Digest) (known, string) {
	var k known
	k.staged, _, k.stagedErr = b.ledger.Staged(ctx, digest.String())
	k.active, k.seq, k.err = b.ledger.Revision(ctx, digest.String())
	return k, k.staged.Name
}

// unchanged demands that the bundle is still as new, or as old, as it was.
func (k known) unchanged(c change) ledger.Precondition {
	return ledger.Precondition{RowKey: ledger.RowKey{Kind: ledger.KindRevision, Key: c.digest.String()}, Seq: k.seq}
}

// candidate checks the bundle again: what is older needs a rollback, what is new must not be one, its signature has to
// verify under the keys of now, and it has to load under the rules of this site.
func (s revisions) candidate(ctx context.Context, c change, k known, active *active) (candidate, string, error) {
	for _, err := range []error{k.stagedErr, k.err} {
		if err != nil && !errors.Is(err, ledger.ErrNotFound) {
			return candidate{}, "", s.unavailable(err)
		}
	}
	was := k.err == nil
	switch {
	case c.digest == active.digest:
		return candidate{}, "", wrong("revision %s is active already, as revision %d", c.digest, active.sequence)
	case k.stagedErr != nil && !was:
		return candidate{}, "", missing("there is no revision %s: push it first, see `bulla policy list`", c.digest)
	case was && !c.rollback:
		return candidate{}, "", wrong("revision %s is older than the active one: it was active before, as revision %d; to go back is an action of its own, `bulla policy rollback`", c.digest, k.active.Sequence)
	case !was && c.rollback:
		return candidate{}, "", wrong("revision %s was never active: use `bulla policy promote`", c.digest)
	}
	if c.loaded != nil {
		return *c.loaded, "", nil
	}
	archive, err := s.ledger.Blob(ctx, ledger.RevisionBlob(c.digest), c.digest)
	if err != nil {
		return candidate{}, "", s.unavailable(err)
	}
	loaded, key, err := s.checked(ctx, archive, k.staged.Signature)
	if errors.Is(err, policy.ErrSignature) {
		return candidate{}, "", wrong("revision %s can't be activated: %v; sign it anew and push it again", c.digest, err)
	}
	if err != nil {
		return candidate{}, "", wrong("revision %s is refused by now, the active revision stays:\n%v", c.digest, err)
	}
	return loaded, key, nil
}

// proposed is a proposal that waits, and the row that says so; the zero value stands for none.
type proposed struct {
	ledger.Proposal
	seq int64
}

func (p proposed) unchanged() ledger.Precondition {
	return ledger.Precondition{RowKey: ledger.RowKey{Kind: ledger.KindProposal, Key: ledger.ActiveRevision}, Seq: p.seq}
}

// fits says whether somebody else asked for the very same change before. Whether that one is another person, and
// counts, is for the policy to say. A report that is only named must be the one that was named before; a what-if is made
// anew by each, on what is recorded by then.
func (p proposed) fits(c change, caller string) bool {
	same := c.grounds.digest.IsZero() || len(c.grounds.text) > 0 || c.grounds.digest == p.Report
	return p.seq != 0 && p.Digest == c.digest && p.Rollback == c.rollback && p.By != caller && same
}

// proposal returns the newest proposal if it is one for the next revision after the active one, and not over.
func (b *Broker) proposal(ctx context.Context, now time.Time, active *active) (proposed, error) {
	p, seq, err := b.ledger.Proposal(ctx)
	if errors.Is(err, ledger.ErrNotFound) {
		return proposed{}, nil
	}
	if err != nil {
		return proposed{}, err
	}
	if p.Sequence != active.sequence+1 || !now.Before(p.Expires.Time()) {
		return proposed{}, nil
	}
	return proposed{p, seq}, nil
}

// propose records one person's word. It takes the place of a proposal that waits.
func (s revisions) propose(ctx context.Context, now time.Time, who caller, v verdict, c change) (*bullav1.RevisionChange, error) {
	decision := v.record("")
	commit := ledgerCommit(event.New(now, who.id.String(), event.RevisionProposed{
		Digest: c.digest, Sequence: v.active.sequence + 1, Rollback: c.rollback, Report: c.grounds.digest, Note: c.note,
		Expires: event.NewTime(now.Add(proposalLife)), By: &decision, Text: c.grounds.text, NoReport: c.grounds.none,
	}))
	commit.Require = []ledger.Precondition{v.active.unchanged()}
	if _, err := s.ledger.Commit(ctx, commit); err != nil {
		return nil, s.answer(ctx, who, err)
	}
	p, _, err := s.ledger.Proposal(ctx)
	if err != nil {
		return nil, s.answer(ctx, who, err)
	}
	reply := &bullav1.RevisionChange{Outcome: outcomeProposed, Proposal: proposalReply(p), Revision: &bullav1.Revision{Digest: c.digest.String()}}
	reply.Proposal.Role = v.decision.Requires.Approval.Role
	if row, _ := s.rowOf(ctx, c.digest); row.stagedErr == nil {
		reply.Revision = stagedReply(row.staged)
	}
	return reply, nil
}

func proposalReply(p ledger.Proposal) *bullav1.Proposal {
	return &bullav1.Proposal{
		Digest: p.Digest.String(), Rollback: p.Rollback, By: p.By, At: stamp(p.At), ExpiresAt: stamp(p.Expires), Note: p.Note, ReportDigest: p.Report.String(),
		ReportKept: p.Kept, NoReport: p.NoReport,
	}
}

// ListStaged lists what was never active, and the proposal that waits.
func (s revisions) ListStaged(ctx context.Context, in *bullav1.ListStagedRequest) (*bullav1.ListStagedReply, error) {
	op, err := s.read(ctx, policy.ActionPolicyList, policy.Resource{Kind: policy.KindRevision})
	if err != nil {
		return nil, err
	}
	rows, err := s.ledger.AllStaged(ctx, maxPage)
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	out := new(bullav1.ListStagedReply)
	for _, r := range rows {
		if len(out.GetStaged()) >= page(in.GetLimit()) {
			break
		}
		if _, _, err := s.ledger.Revision(ctx, r.Digest.String()); errors.Is(err, ledger.ErrNotFound) {
			out.Staged = append(out.Staged, stagedReply(r))
		}
	}
	p, err := s.proposal(ctx, op.now, op.permit.active)
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	if p.seq != 0 {
		out.Proposal = proposalReply(p.Proposal)
	}
	return out, nil
}
