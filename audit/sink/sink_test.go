package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
)

const testOrigin = "secrets.example.org/bulla"

var at = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// log is a source: a list of events, and what is to go wrong.
type log struct {
	mu     sync.Mutex // guards all below
	events []event.Event
	grown  chan struct{}
	fail   int // so many reads
	reads  int
	end    bool // io.EOF after the last one
}

func newLog(n int) *log {
	l := &log{grown: make(chan struct{})}
	l.add(n)
	return l
}

func (l *log) add(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for range n {
		// Ids that are the same in each process of a test.
		id := event.ID{6: 0x70, 8: 0x80, 14: byte(len(l.events) >> 8), 15: byte(len(l.events) + 1)}
		l.events = append(l.events, event.Event{ID: id, Time: event.NewTime(at.Add(time.Duration(len(l.events)) * time.Second)), Body: event.RoundExpired{Round: id}})
	}
	close(l.grown)
	l.grown = make(chan struct{})
}

func (l *log) size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(len(l.events))
}

// Next implements Source.
func (l *log) Next(ctx context.Context, from int64, most int) ([]Entry, error) {
	for {
		l.mu.Lock()
		l.reads++
		var out []Entry
		for i := from; i < int64(len(l.events)) && len(out) < most; i++ {
			out = append(out, Entry{i, l.events[i]})
		}
		grown, end, fail := l.grown, l.end, l.fail > 0
		l.fail--
		l.mu.Unlock()
		switch {
		case fail:
			return nil, errors.New("the source has a fault")
		case len(out) > 0:
			return out, nil
		case end:
			return nil, io.EOF
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-grown:
		}
	}
}

// memory is a sink that keeps what came, and does what it is told instead.
type memory struct {
	mu     sync.Mutex // guards all below
	got    []Line
	fail   int           // so many writes, after they took half of the lines
	hang   chan struct{} // closed: goes on
	refuse map[int64]bool
	most   int // lines in one write
	closed bool
}

// Write implements Sink.
func (m *memory) Write(_ context.Context, lines []Line) (refused []Refusal, err error) {
	m.mu.Lock()
	hang := m.hang
	m.mu.Unlock()
	if hang != nil {
		<-hang // whatever its context says
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.most = max(m.most, len(lines))
	if m.fail > 0 {
		m.fail--
		m.got = append(m.got, lines[:len(lines)/2]...)
		return nil, errors.New("the sink has a fault")
	}
	for _, l := range lines {
		if m.refuse[l.Index] {
			refused = append(refused, Refusal{l.Index, "too old"})
			continue
		}
		m.got = append(m.got, l)
	}
	return refused, nil
}

// Close implements Sink.
func (m *memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

// arrived checks that every index up to n is there, the first time in order, and returns how many lines came.
func (m *memory) arrived(t *testing.T, n int64) int {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	next := int64(0)
	for _, l := range m.got {
		if l.Index > next {
			t.Fatalf("event %d came before event %d", l.Index, next)
		}
		if l.Index == next {
			next++
		}
	}
	if next != n {
		t.Fatalf("%d events arrived, want %d", next, n)
	}
	return len(m.got)
}

func TestPumpToTheEnd(t *testing.T) {
	l, m := newLog(1000), &memory{fail: 1, refuse: map[int64]bool{}}
	l.end, l.fail = true, 1
	state := filepath.Join(t.TempDir(), "pos")
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{Source: l, Sink: m, Origin: testOrigin, State: state, Attempts: 3, Size: l.size})
		if err := p.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := p.Status(time.Now()); s.Next != 1000 || s.Written != 1000 || s.Behind != 0 || s.Err != nil || !s.Ended {
			t.Errorf("%+v", s)
		}
	})
	if n := m.arrived(t, 1000); n != 1000+pageSize/2 || m.most > pageSize || !m.closed {
		t.Errorf("%d lines, %d at once, closed %v", n, m.most, m.closed)
	}
	// The next run goes on, and writes nothing twice.
	l.add(5)
	again := &memory{}
	if err := New(Config{Source: l, Sink: again, Origin: testOrigin, State: state}).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(again.got) != 5 || again.got[0].Index != 1000 {
		t.Errorf("%d lines from %d", len(again.got), again.got[0].Index)
	}
}

func TestPumpGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(3)
		m := &memory{fail: 5}
		if err := New(Config{Source: l, Sink: m, Origin: testOrigin, Attempts: 3}).Run(t.Context()); err == nil || m.fail != 2 || !m.closed {
			t.Errorf("%v, %d failures left", err, m.fail)
		}
		if l.reads != 1 {
			t.Errorf("%d reads: what did not arrive is read again", l.reads)
		}
		l.fail = 1
		m = &memory{}
		if err := New(Config{Source: final2{l}, Sink: m, Origin: testOrigin}).Run(t.Context()); err == nil || len(m.got) > 0 {
			t.Errorf("a final fault is tried again: %v", err)
		}
	})
}

// cutShort fails once, in the way in which what it writes to ends.
type cutShort struct {
	memory
	failed bool
}

func (c *cutShort) Write(ctx context.Context, lines []Line) ([]Refusal, error) {
	if !c.failed {
		c.failed = true
		return nil, fmt.Errorf("read the end of the file: %w", io.EOF)
	}
	return c.memory.Write(ctx, lines)
}

// An end that the sink meets is a fault like any other: the export does not end with it as if everything had arrived.
func TestPumpGoesOnAfterTheEndOfASink(t *testing.T) {
	l, s := newLog(3), &cutShort{}
	l.end = true
	synctest.Test(t, func(t *testing.T) {
		if err := New(Config{Source: l, Sink: s, Origin: testOrigin}).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	s.arrived(t, 3)
}

// A source that was away may come back with another history: a follower that goes on in it by the index would leave out
// what the restored ledger wrote below that.
func TestPumpNoticesARestoreWhileItRuns(t *testing.T) {
	m := &memory{}
	synctest.Test(t, func(t *testing.T) {
		l, ended := newLog(3), make(chan error)
		go func() { ended <- New(Config{Source: l, Sink: m, Origin: testOrigin}).Run(t.Context()) }()
		synctest.Wait()
		m.arrived(t, 3)
		l.mu.Lock()
		l.events, l.fail = l.events[:1], 1
		l.mu.Unlock()
		l.add(4)
		l.mu.Lock()
		for i := range l.events[1:] {
			l.events[i+1].ID[13] = 1
		}
		l.end = true
		l.mu.Unlock()
		if err := <-ended; !errors.Is(err, ErrPosition) {
			t.Errorf("%v", err)
		}
	})
	m.arrived(t, 3)
}

// final2 makes the faults of a log final.
type final2 struct{ *log }

func (f final2) Next(ctx context.Context, from int64, most int) ([]Entry, error) {
	out, err := f.log.Next(ctx, from, most)
	if err != nil && !errors.Is(err, io.EOF) {
		err = Final(err)
	}
	return out, err
}

// TestSinkIsDownForLong: the pump waits longer and longer, holds one page (read again now and then), says how far it is behind, and catches up.
func TestSinkIsDownForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, m := newLog(10), &memory{fail: 1 << 30}
		p := New(Config{Source: l, Sink: m, Origin: testOrigin, State: filepath.Join(t.TempDir(), "pos"), Size: l.size, Gather: time.Second, Gentle: true})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		time.Sleep(time.Hour)
		l.add(5000)
		time.Sleep(time.Hour)
		s := p.Status(at.Add(2 * time.Hour))
		if s.Behind != 5010 || s.Lag != 2*time.Hour || s.Err == nil || s.Next != 0 || s.Ended {
			t.Errorf("%+v", s)
		}
		if m.most > pageSize || l.reads > int(2*time.Hour/stale) || 1<<30-m.fail > 300 {
			t.Errorf("%d lines at once, %d reads, %d writes in two hours", m.most, l.reads, 1<<30-m.fail)
		}
		m.mu.Lock()
		m.fail = 0
		m.mu.Unlock()
		time.Sleep(10 * time.Minute)
		m.arrived(t, 5010)
		if s := p.Status(time.Now()); s.Behind != 0 || s.Lag != 0 || s.Err != nil {
			t.Errorf("%+v", s)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestSinkHangs: a sink that does not come back, not even at the end, is seen and left behind; nothing is lost.
func TestSinkHangs(t *testing.T) {
	state := filepath.Join(t.TempDir(), "pos")
	l := newLog(600)
	synctest.Test(t, func(t *testing.T) {
		m := &memory{hang: make(chan struct{})}
		p := New(Config{Source: l, Sink: m, Origin: testOrigin, State: state, Size: l.size})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		time.Sleep(time.Minute)
		if s := p.Status(time.Now()); s.Err == nil || !strings.Contains(s.Err.Error(), "not answered for 1m0s") || s.Behind != 600 {
			t.Errorf("%+v", s)
		}
		began := time.Now()
		stop()
		if err := <-done; err != nil || time.Since(began) != stopGrace || m.closed {
			t.Errorf("%v after %s, closed %v", err, time.Since(began), m.closed)
		}
		close(m.hang) // and what it was given may arrive late
	})
	l.end = true
	m := &memory{}
	if err := New(Config{Source: l, Sink: m, Origin: testOrigin, State: state}).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.arrived(t, 600)
}

func TestRefusalsAreCounted(t *testing.T) {
	l, m := newLog(10), &memory{refuse: map[int64]bool{3: true, 7: true}}
	l.end = true
	p := New(Config{Source: l, Sink: m, Origin: testOrigin})
	err := p.Run(t.Context())
	if s := p.Status(time.Now()); err != nil || s.Refused != 2 || s.Written != 8 || s.Last != (Refusal{7, "too old"}) || s.Next != 10 {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestShorterLogIsFollowed: a log that ends before the position, as after a restore, is not waited for in silence.
func TestShorterLogIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, state := newLog(10), filepath.Join(t.TempDir(), "pos")
		l.end = true
		if err := New(Config{Source: l, Sink: &memory{}, Origin: testOrigin, State: state}).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.events, l.end = l.events[:5], false
		p := New(Config{Source: l, Sink: &memory{}, Origin: testOrigin, State: state})
		done := make(chan error, 1)
		go func() { done <- p.Run(t.Context()) }()
		time.Sleep(patience + time.Second)
		if s := p.Status(time.Now()); s.Err == nil || !strings.Contains(s.Err.Error(), "event 9, before the position") {
			t.Errorf("%+v", s)
		}
		other := newLog(12)
		other.events[9].ID[0] = 1
		l.mu.Lock()
		l.events = other.events
		close(l.grown)
		l.mu.Unlock()
		if err := <-done; !errors.Is(err, ErrPosition) {
			t.Errorf("another history: %v", err)
		}
	})
}

// TestAnotherLog: a position that is not of this log ends the export, instead of leaving out what is at those indexes now.
func TestAnotherLog(t *testing.T) {
	run := func(state string, edit func(*log, *Config)) error {
		l := newLog(10)
		l.end = true
		c := Config{Source: l, Sink: &memory{}, Origin: testOrigin, State: state}
		if edit != nil {
			edit(l, &c)
		}
		return New(c).Run(t.Context())
	}
	for name, edit := range map[string]func(*log, *Config){
		"another name":         func(_ *log, c *Config) { c.Origin = "else.example.org" },
		"shorter":              func(l *log, _ *Config) { l.events = l.events[:9] },
		"shorter, and it says": func(l *log, c *Config) { l.events, l.end, c.Size = l.events[:9], false, func() int64 { return 9 } },
		"another history":      func(l *log, _ *Config) { l.events[9].ID[0] = 1 },
	} {
		state := filepath.Join(t.TempDir(), "pos")
		if err := run(state, nil); err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadFile(state)
		if err != nil {
			t.Fatal(err)
		}
		if err := run(state, edit); !errors.Is(err, ErrPosition) {
			t.Errorf("%s: %v", name, err)
		}
		if after, err := os.ReadFile(state); err != nil || string(after) != string(before) {
			t.Errorf("%s: the position has changed: %s, %v", name, after, err)
		}
	}
	state := filepath.Join(t.TempDir(), "pos")
	if err := os.WriteFile(state, []byte(`{"v":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(state, nil); !errors.Is(err, ErrPosition) {
		t.Errorf("damaged: %v", err)
	}
}

func TestGapInTheSource(t *testing.T) {
	l := newLog(4)
	if err := New(Config{Source: gap{l}, Sink: &memory{}, Origin: testOrigin, Attempts: 1}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "event 1 is missing") {
		t.Error(err)
	}
}

type gap struct{ *log }

func (g gap) Next(ctx context.Context, from int64, most int) ([]Entry, error) {
	out, err := g.log.Next(ctx, from, most)
	return append(out[:1:1], out[2:]...), err
}

func TestOneProcessAPosition(t *testing.T) {
	state := filepath.Join(t.TempDir(), "pos")
	k, err := openKeeper(state)
	if err != nil {
		t.Fatal(err)
	}
	if err := New(Config{Source: newLog(1), Sink: &memory{}, Origin: testOrigin, State: state}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Error(err)
	}
	if err := k.close(); err != nil {
		t.Fatal(err)
	}
}

func FuzzParsePosition(f *testing.F) {
	f.Add([]byte("{\"v\":1,\"origin\":\"a.example/b\",\"next\":0}\n"))
	f.Add([]byte("{\"v\":1,\"origin\":\"a.example/b\",\"next\":3,\"last\":\"01a22769-ce38-7000-bc1b-6d53b01c87f6\"}\n"))
	f.Add([]byte("{\"v\":1,\"origin\":\"a\",\"next\":-1}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parsePosition(data)
		if err != nil {
			return
		}
		if again, err := p.encode(); err != nil || string(again) != string(data) || p.Next < 0 {
			t.Errorf("%q became %q, %v", data, again, err)
		}
	})
}

// The process that is killed is this test binary, started again with these variables.
const (
	childFile  = "BULLA_TEST_SINK_FILE"
	childKills = "BULLA_TEST_SINK_KILLS"
	childSize  = 700
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childFile); path != "" {
		l := newLog(childSize)
		l.end = true
		var to Sink = NewFile(path)
		if os.Getenv(childKills) != "" {
			to = killer{to}
		}
		if err := New(Config{Source: l, Sink: to, Origin: testOrigin, State: path + ".pos"}).Run(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// killer ends the process after the lines are on the disk and before the position is.
type killer struct{ Sink }

func (k killer) Write(ctx context.Context, lines []Line) ([]Refusal, error) {
	if _, err := k.Sink.Write(ctx, lines); err != nil {
		return nil, err
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// TestKilledBetweenWriteAndPosition: after kill -9 at the worst moment every event is there, the first time in order.
func TestKilledBetweenWriteAndPosition(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	start := func(kills string) error {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childFile+"="+path, childKills+"="+kills)
		out, err := cmd.CombinedOutput()
		if len(out) > 0 {
			t.Errorf("%s", out)
		}
		return err
	}
	for range 2 {
		if err := start("1"); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("it was not killed: %v", err)
		}
	}
	if err := start(""); err != nil {
		t.Fatal(err)
	}
	m := new(memory)
	for _, i := range sequences(t, path) {
		m.got = append(m.got, Line{Index: i})
	}
	if n := m.arrived(t, childSize); n != childSize+2*pageSize {
		t.Errorf("%d lines, want the first page three times", n)
	}
}
