package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
)

// verdict compares what a caller was told with what the ledger holds.
func verdict(ctx context.Context, l *ledger.Ledger, c ledger.Commit, res ledger.Result, told error) error {
	found, err := l.Find(ctx, c.Event.ID)
	there := err == nil
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return err
	}
	switch {
	case told == nil && (!there || found.Index != res.Index || found.Leaf != res.Leaf || found.ReplySalt != res.ReplySalt):
		return fmt.Errorf("acknowledged as event %d, but it is not there", res.Index)
	case told != nil && there && (errors.Is(told, ledger.ErrNotApplied) || !errors.Is(told, ledger.ErrUnavailable)):
		return fmt.Errorf("said not to be applied, but it is event %d: %w", found.Index, told)
	}
	if c.Request != nil && told == nil {
		if r, err := l.Request(ctx, c.Request.Key); err != nil || r.Index != res.Index {
			return fmt.Errorf("its request is not there: %w", err)
		}
	}
	return nil
}

// load lets n callers issue sessions and confirm them, and returns how many answers of each sort there were.
func load(t *testing.T, l *ledger.Ledger, n, each int, change func(*ledger.Commit)) (done, refused, unknown int) {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex // guards the counts
	for range n {
		wg.Go(func() {
			for range each {
				c := Issue(Start, time.Hour, time.Minute)
				if change != nil {
					change(&c)
				}
				told := commitAndJudge(t, l, c)
				if told == nil {
					told = commitAndJudge(t, l, Plain(Principal, event.SessionConfirmed{Session: SessionOf(c), R: []byte("r")}))
				}
				mu.Lock()
				switch {
				case told == nil:
					done++
				case errors.Is(told, ledger.ErrUnavailable) && !errors.Is(told, ledger.ErrNotApplied):
					unknown++
				default:
					refused++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return done, refused, unknown
}

func commitAndJudge(t *testing.T, l *ledger.Ledger, c ledger.Commit) error {
	res, told := l.Commit(t.Context(), c)
	if err := verdict(t.Context(), l, c, res, told); err != nil {
		t.Errorf("%s: %v", c.Event.Body.EventType(), err)
	}
	return told
}

// Each fault, met at random by half of the batches of 8 callers.
func abuseA27(t *testing.T, store ledger.Store) {
	h := NewHostile(store, func([]ledger.Record) Fault { return FaultNone })
	l := Founded(t, h, Ring(t))
	for _, fault := range Faults() {
		source := rand.New(rand.NewPCG(1, uint64(fault)))
		h.Plan(func([]ledger.Record) Fault {
			if source.IntN(2) == 0 {
				return fault
			}
			return FaultNone
		})
		done, refused, unknown := load(t, l, 8, 10, nil)
		t.Logf("%v: %d done, %d refused, %d unknown, %d appends so far", fault, done, refused, unknown, h.Appends())
		if unknown != 0 {
			t.Errorf("%v: %d outcomes were not found out, although the store recovered", fault, unknown)
		}
		if done == 0 {
			t.Errorf("%v: nothing was done", fault)
		}
	}
	h.Plan(func([]ledger.Record) Fault { return FaultNone })
	MustCheck(t, l)
	if err := l.Health(t.Context()); err != nil {
		t.Error(err)
	}
}

// A disk that is full stops everything, and health says so; when there is room again the ledger goes on by
// itself.
func abuseA27Full(t *testing.T, store ledger.Store) {
	h := NewHostile(store, func([]ledger.Record) Fault { return FaultFull })
	ring := Ring(t)
	h.Plan(func([]ledger.Record) Fault { return FaultNone })
	l := Founded(t, h, ring)
	h.Plan(func([]ledger.Record) Fault { return FaultFull })
	c := Issue(Start, time.Hour, 0)
	_, told := l.Commit(t.Context(), c)
	if err := l.Health(t.Context()); !errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("health when the first caller was refused: %v", err)
	}
	if !errors.Is(told, ledger.ErrUnavailable) || !errors.Is(told, ledger.ErrNotApplied) {
		t.Fatalf("commit on a full disk: %v", told)
	}
	appends := h.Appends()
	done, _, unknown := load(t, l, 8, 3, nil)
	if done != 0 || unknown != 0 || h.Appends() != appends {
		t.Errorf("%d done, %d unknown, %d appends on a full disk", done, unknown, h.Appends()-appends)
	}
	if err := l.Health(t.Context()); !errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("health: %v", err)
	}
	if _, err := l.Size(t.Context()); err != nil {
		t.Errorf("reading on a full disk: %v", err)
	}
	h.Plan(func([]ledger.Record) Fault { return FaultNone })
	h.Heal()
	retry := time.NewTicker(10 * time.Millisecond)
	defer retry.Stop()
	for l.Health(t.Context()) != nil {
		select {
		case <-t.Context().Done():
			t.Fatal("it did not recover")
		case <-retry.C:
		}
	}
	c.Event.ID = event.NewID(Start)
	Commit(t, l, c)
	MustCheck(t, l)
}

// 15,000 sessions that end together are recorded in chunks, and commits get in between.
func abuseA33(t *testing.T, store ledger.Store) {
	n := 15000
	if _, memory := store.(*Memory); memory || testing.Short() {
		n = 1500
	}
	l := Founded(t, store, Ring(t))
	for begun := 0; begun < n; begun += 500 {
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for range 10 {
					if _, err := l.Commit(t.Context(), Issue(Start, time.Minute, 0)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
	now := Start.Add(time.Minute)
	swept := make(chan int, 1)
	go func() {
		total := 0
		for {
			n, err := l.ExpireSessions(t.Context(), now, 250)
			if err != nil {
				t.Error(err)
			}
			if total += n; n < 250 {
				swept <- total
				return
			}
		}
	}()
	delivered, slowest := 0, time.Duration(0)
	for {
		select {
		case total := <-swept:
			if total != n {
				t.Errorf("%d of %d sessions expired", total, n)
			}
			if delivered < n/1000 {
				t.Errorf("only %d deliveries got in between", delivered)
			}
			t.Logf("%d deliveries meanwhile, the slowest took %v", delivered, slowest)
			MustCheck(t, l)
			return
		default:
		}
		begin := time.Now()
		Commit(t, l, Issue(now, time.Hour, 0))
		slowest = max(slowest, time.Since(begin))
		delivered++
		if err := l.Health(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// What a decision relied on changes between decision and commit.
func abuseA46(t *testing.T, store ledger.Store) {
	l := Founded(t, store, Ring(t))
	ctx := t.Context()
	Commit(t, l, Issue(Start, time.Hour, 0)) // marks the exposure
	basis := func() []ledger.Precondition {
		_, secret, err1 := l.Secret(ctx, Secret)
		_, active, err2 := l.ActiveRevision(ctx)
		_, device, err3 := l.Device(ctx, Device)
		_, pass, err4 := l.Passport(ctx, ledger.InstanceKey(Principal, Instance))
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			t.Fatal(err)
		}
		return []ledger.Precondition{
			{RowKey: ledger.RowKey{Kind: ledger.KindSecret, Key: Secret}, Seq: secret},
			{RowKey: ledger.RowKey{Kind: ledger.KindRevision, Key: ledger.ActiveRevision}, Seq: active},
			{RowKey: ledger.RowKey{Kind: ledger.KindDevice, Key: Device}, Seq: device},
			{RowKey: ledger.RowKey{Kind: ledger.KindPassport, Key: ledger.InstanceKey(Principal, Instance)}, Seq: pass},
		}
	}
	active, _, err := l.ActiveRevision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]ledger.Commit{
		"rotation": SecretVersion(Secret, 2), "promotion": Revision(2, active.Digest, []byte("policy 2")), "appraisal": Appraisal(2),
		"device revoked": Plain(Operator, event.DeviceRevoked{Device: Device, Reason: "test"}),
	} {
		c := Issue(Start, time.Hour, 0)
		c.Require = basis()
		Commit(t, l, change)
		if told := commitAndJudge(t, l, c); !errors.Is(told, ledger.ErrPrecondition) {
			t.Errorf("%s between decision and commit: %v", name, told)
		}
		c.Require = basis()
		Commit(t, l, c)
		c = Issue(Start, time.Hour, 0)
		c.Require = basis()
		Commit(t, l, Issue(Start, time.Hour, 0)) // another delivery changes nothing that this one relies on
		Commit(t, l, c)
	}
	MustCheck(t, l)
}

// 64 deliveries at once past a limit of 20, also when answers are lost.
func abuseA47(t *testing.T, store ledger.Store) {
	h := NewHostile(store, func([]ledger.Record) Fault { return FaultNone })
	l := Founded(t, h, Ring(t))
	for i, fault := range append(Faults(), FaultNone) {
		source := rand.New(rand.NewPCG(2, uint64(fault)))
		h.Plan(func([]ledger.Record) Fault {
			if source.IntN(3) == 0 {
				return fault
			}
			return FaultNone
		})
		key := fmt.Sprintf("limit %d", i)
		before, err := l.Sessions(t.Context(), ledger.SessionQuery{})
		if err != nil {
			t.Fatal(err)
		}
		done, refused, unknown := load(t, l, 64, 1, func(c *ledger.Commit) {
			c.Counters = []ledger.Counter{{Key: key, Window: Start, Length: time.Hour, Max: 20}}
		})
		after, err := l.Sessions(t.Context(), ledger.SessionQuery{})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(after) - len(before); n > 20 || fault == FaultNone && (n != 20 || done != 20 || refused != 44) {
			t.Errorf("%v: %d sessions at a limit of 20 (%d done, %d refused, %d unknown)", fault, n, done, refused, unknown)
		}
	}
	h.Plan(func([]ledger.Record) Fault { return FaultNone })
	MustCheck(t, l)
}

// Whoever follows the indexes sees every event, in order, while 16 callers commit.
func abuseA51(t *testing.T, store ledger.Store) {
	l := Founded(t, store, Ring(t))
	stop, result := make(chan struct{}), make(chan []event.Leaf, 1)
	go func() {
		var leaves []event.Leaf
		for {
			_, more := l.Committed()
			got, err := l.Leaves(t.Context(), int64(len(leaves)), 7)
			if err != nil {
				t.Error(err)
			}
			if leaves = append(leaves, got...); len(got) > 0 {
				continue
			}
			select {
			case <-more:
			case <-stop:
				if size, err := l.Size(t.Context()); err != nil || int64(len(leaves)) >= size {
					result <- leaves
					return
				}
			}
		}
	}()
	load(t, l, 16, 10, nil)
	close(stop)
	leaves := <-result
	if report := MustCheck(t, l); report.Events != int64(len(leaves)) {
		t.Errorf("%d of %d events were seen", len(leaves), report.Events)
	}
	entries, err := l.Events(t.Context(), 0, ledger.MaxPage)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range entries {
		if e.Leaf != leaves[i] {
			t.Fatalf("leaf %d is another one", i)
		}
	}
}
