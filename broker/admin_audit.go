package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/policy"
)

const (
	// auditPage is how many events are read at once.
	auditPage = 256
	// maxPortion is after how many bytes of events a message is full: with one more of the largest it is far from what a
	// client takes, which a page of large events is not.
	maxPortion = 1 << 20
	// recheck is how often a stream that waits looks at its caller's certificate again.
	recheck = time.Second
	// signOfLife is how often long work says that it goes on.
	signOfLife = time.Second
)

// auditor is the service that gives out the record.
type auditor struct {
	bullav1.UnimplementedAuditServer
	*Broker
}

// Tail streams events; with follow it waits for more. At each page, and each second while it waits, the
// caller's certificate is judged again, and so is the permit where another revision decides by now.
func (s auditor) Tail(in *bullav1.TailRequest, out grpc.ServerStreamingServer[bullav1.AuditEvent]) error {
	ctx := out.Context()
	op, err := s.read(ctx, policy.ActionAuditTail, policy.Resource{Kind: policy.KindAudit})
	if err != nil {
		return err
	}
	next := in.GetFrom()
	if next < 0 {
		size, _ := s.ledger.Committed()
		next = max(0, size+next)
	}
	for {
		_, more := s.ledger.Committed()
		entries, err := s.ledger.Events(ctx, next, auditPage)
		if err != nil {
			return s.answer(ctx, op.caller, err)
		}
		if err := s.still(ctx, &op); err != nil {
			return err
		}
		for _, e := range entries {
			if err := out.Send(&bullav1.AuditEvent{Index: e.Index, Event: e.Encoding, Erased: e.Erased}); err != nil {
				return err
			}
			next = e.Index + 1
		}
		if len(entries) == auditPage {
			continue
		}
		if !in.GetFollow() {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(recheck):
		}
	}
}

// still says why a stream's caller may not go on, if so.
func (b *Broker) still(ctx context.Context, op *operation) error {
	if _, err := b.peers.Check(op.conn.chain, b.now()); err != nil {
		return refuse(codes.Unauthenticated, checkIdentity, "the client certificate of this stream does not hold any more: %v; connect again", cause(err))
	}
	active, err := b.current(ctx)
	if err != nil {
		return b.answer(ctx, op.caller, err)
	}
	if active.seq == op.permit.active.seq {
		return nil
	}
	asked := op.permit.signals
	*op, err = b.read(ctx, asked.Action, asked.Resource)
	return err
}

// Export streams the newest checkpoint and all events that it covers.
func (s auditor) Export(_ *bullav1.ExportRequest, out grpc.ServerStreamingServer[bullav1.ExportItem]) error {
	ctx := out.Context()
	op, err := s.read(ctx, policy.ActionAuditExport, policy.Resource{Kind: policy.KindAudit})
	if err != nil {
		return err
	}
	witnessed := s.witnessed() // now, so that it is not larger than the checkpoint
	if _, err := s.tree.Integrate(ctx); err != nil {
		return s.answer(ctx, op.caller, err)
	}
	raw := s.tree.Checkpoint() // it may have grown meanwhile: what is sent goes by what this one signs
	head, err := s.tree.Key().Open(raw)
	if err != nil {
		return s.answer(ctx, op.caller, err)
	}
	err = out.Send(&bullav1.ExportItem{Checkpoint: raw, LogKey: s.tree.Key().String(), Witnessed: witnessed})
	for next := int64(0); err == nil && next < head.Size; {
		var entries []ledger.Entry
		entries, err = s.ledger.Events(ctx, next, auditPage)
		if err == nil && len(entries) == 0 {
			err = fmt.Errorf("event %d is missing", next)
		}
		if err != nil {
			return s.answer(ctx, op.caller, err)
		}
		if err := s.still(ctx, &op); err != nil {
			return err
		}
		for err == nil && len(entries) > 0 {
			var some []ledger.Entry
			some, entries = portion(entries, auditPage)
			item := new(bullav1.ExportItem)
			for _, e := range some {
				next = e.Index + 1
				item.Records = append(item.Records, recordReply(e))
			}
			err = out.Send(item)
		}
	}
	return err
}

// portion cuts off what goes into one message: at most so many events, and no more after maxPortion bytes of them.
func portion(entries []ledger.Entry, most int) (first, rest []ledger.Entry) {
	n, size := 0, 0
	for ; n < min(most, len(entries)) && size < maxPortion; n++ {
		size += len(entries[n].Encoding)
	}
	return entries[:n], entries[n:]
}

func recordReply(e ledger.Entry) *bullav1.AuditRecord {
	if e.Erased != 0 {
		return &bullav1.AuditRecord{Index: e.Index, Erased: e.Erased, Leaf: e.Leaf.Bytes()}
	}
	r := &bullav1.AuditRecord{Index: e.Index, Encoding: e.Encoding, EventSalt: e.EventSalt[:], ReplySalt: e.ReplySalt[:]}
	if !e.Reply.IsZero() {
		r.Reply = e.Reply[:]
	}
	return r
}

// CheckRebuild makes the state again from the events of one snapshot, and compares. Its caller hears now and then that
// it goes on.
func (s auditor) CheckRebuild(_ *bullav1.CheckRebuildRequest, out grpc.ServerStreamingServer[bullav1.CheckRebuildReply]) error {
	ctx := out.Context()
	op, err := s.read(ctx, policy.ActionAuditRebuild, policy.Resource{Kind: policy.KindAudit})
	if err != nil {
		return err
	}
	free, err := s.whole(ctx)
	if err != nil {
		return err
	}
	defer free()
	said := time.Now()
	report, err := s.ledger.Check(ctx, func(done, total int64) {
		if time.Since(said) > signOfLife {
			said = time.Now()
			_ = out.Send(&bullav1.CheckRebuildReply{Events: done, Of: total}) // a caller that went away ends ctx
		}
	})
	if err != nil {
		return s.answer(ctx, op.caller, err)
	}
	reply := &bullav1.CheckRebuildReply{Events: report.Events, Rows: report.Rows, Of: report.Events, Report: true}
	for _, d := range report.Differences {
		reply.Differences = append(reply.Differences, d.Where+": "+d.What)
	}
	return out.Send(reply)
}

// Prove gives inclusion and consistency proofs to every member of an allowed trust domain: they hold hashes,
// and a workload needs them to find its own deliveries.
func (s auditor) Prove(ctx context.Context, in *bullav1.ProveRequest) (*bullav1.ProveReply, error) {
	who, err := s.caller(ctx, s.now())
	if err != nil {
		return nil, err
	}
	if size, _ := s.ledger.Committed(); in.GetIndex() >= s.tree.Size() && in.GetIndex() < size {
		if _, err := s.tree.Integrate(ctx); err != nil {
			return nil, s.answer(ctx, who, err)
		}
	}
	raw := s.tree.Checkpoint()
	head, err := s.tree.Key().Open(raw)
	if err != nil {
		return nil, s.answer(ctx, who, err)
	}
	if in.GetIndex() < 0 || in.GetIndex() >= head.Size || in.GetOldSize() < 0 || in.GetOldSize() > head.Size {
		return nil, wrong("the log has %d entries", head.Size)
	}
	inclusion, err := s.tree.ProveInclusion(in.GetIndex(), head.Size)
	if err != nil {
		return nil, s.answer(ctx, who, err)
	}
	out := &bullav1.ProveReply{Checkpoint: raw, Inclusion: inclusion.Encode()}
	if in.GetOldSize() > 0 {
		var consistency proofs.ConsistencyProof
		if consistency, err = s.tree.ProveConsistency(in.GetOldSize(), head.Size); err != nil {
			return nil, s.answer(ctx, who, err)
		}
		out.Consistency = consistency.Encode()
	}
	return out, nil
}

// Doctor says how the broker is, and what to do about what is not well.
func (s auditor) Doctor(ctx context.Context, _ *bullav1.DoctorRequest) (*bullav1.DoctorReply, error) {
	if _, err := s.read(ctx, policy.ActionDoctor, policy.Resource{Kind: policy.KindSystem}); err != nil {
		return nil, err
	}
	out := new(bullav1.DoctorReply)
	checks := append(s.Health(ctx), s.whereabouts()...)
	checks = append(checks, s.sweepCheck(ctx)...)
	if c, ok := s.signalCheck(ctx); ok {
		checks = append(checks, c)
	}
	if s.outward != nil {
		checks = append(checks, s.outward()...)
	}
	for _, c := range checks {
		out.Checks = append(out.Checks, &bullav1.DoctorCheck{Name: c.Name, Ok: c.Err == nil, Detail: c.Detail(), Hint: c.Hint})
	}
	return out, nil
}

// whereabouts says by what the broker knows where its callers are. None of it keeps it from serving: an older
// database is better than none.
func (b *Broker) whereabouts() []Check {
	proxies := Check{Name: "proxies", Fine: "none: each peer is who its connection says"}
	if len(b.proxies) > 0 {
		proxies.Fine = "PROXY headers are believed, and demanded, from " + strings.Join(texts(b.proxies), ", ")
	}
	places := Check{Name: "place", Fine: "no database is configured: places are not known"}
	if b.places != nil {
		d := b.places.Database()
		places.Err = b.places.Fault()
		places.Fine = fmt.Sprintf("%s, built %s, %d days old, SHA-256 %s", d.Type(), d.Built().Format(time.DateOnly), int64(b.now().Sub(d.Built())/(24*time.Hour)), d.Digest())
		places.Hint = "in use until then: " + places.Fine
	}
	return []Check{proxies, places}
}

func texts[T fmt.Stringer](all []T) []string {
	out := make([]string, len(all))
	for i, one := range all {
		out[i] = one.String()
	}
	return out
}

// Check is one thing that has to be well for the broker to serve.
type Check struct {
	Name string
	Err  error
	Fine string // what to say when it is well
	Hint string // what to do when it is not
}

// Detail says how it is.
func (c Check) Detail() string {
	if c.Err != nil {
		return c.Err.Error()
	}
	return c.Fine
}

// Drain makes Health, and with it /ready, say that the broker is about to stop, so that nobody sends it new work. It
// ends the streams of those who watch, who would keep it from stopping.
func (b *Broker) Drain() {
	b.draining.Store(true)
	b.hub.close()
}

// Health judges what the broker needs to serve.
func (b *Broker) Health(ctx context.Context) []Check {
	size, _ := b.ledger.Committed()
	var draining error
	if b.draining.Load() {
		draining = errors.New("the broker is stopping")
	}
	checks := []Check{
		{Name: "serving", Err: draining, Hint: "wait for its successor"},
		{Name: "identity", Err: b.source.Health(), Fine: b.id.String(), Hint: "is the SPIRE agent running, and is there an entry for the broker?"},
		{Name: "ledger", Err: b.ledger.Health(ctx), Fine: fmt.Sprintf("%d events", size), Hint: "is the disk full or read-only? The broker goes on by itself once it can write"},
		{Name: "log", Err: b.tree.Health(), Fine: fmt.Sprintf("%d entries signed", b.tree.Size()), Hint: "was the data directory restored from a backup? See docs/operations.md"},
	}
	active, err := b.current(ctx)
	fine := ""
	if err == nil {
		fine = fmt.Sprintf("revision %d, %s", active.sequence, active.digest)
		now := b.now()
		from, until := active.references.Window()
		if !active.references.ValidAt(now) {
			err = fmt.Errorf("the reference values of revision %d are valid from %s to %s", active.sequence, from.Format(time.RFC3339), until.Format(time.RFC3339))
		}
	}
	checks = append(checks, Check{Name: "policy", Err: err, Fine: fine, Hint: "push a revision with `bulla policy push`"})
	svid, err := b.source.GetX509SVID()
	if err == nil && len(svid.Certificates) > 0 {
		left := svid.Certificates[0].NotAfter.Sub(b.now()).Truncate(time.Second)
		checks = append(checks, Check{Name: "svid", Fine: "valid for " + left.String()})
	} else if err != nil && !errors.Is(err, certs.ErrClosed) {
		checks = append(checks, Check{Name: "svid", Err: err, Hint: "compare the clocks of this machine and of the SPIRE server"})
	}
	return checks
}
