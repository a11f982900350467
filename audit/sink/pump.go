package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/bulla-project/bulla/audit/ocsf"
)

const (
	// pageSize is how many events are read and written at once; no more are ever held.
	pageSize = 256
	// The first and the longest wait after a failure.
	firstWait   = 200 * time.Millisecond
	longestWait = 30 * time.Second
	// longestPause is how long a pump that is behind rests at most after each page. It rests as long as it worked, so
	// that catching up takes at most half of a core.
	longestPause = time.Second
	// stopGrace is how long a sink may go on after the pump was told to stop.
	stopGrace = 2 * time.Second
	// stale is how long a page that does not arrive is kept: then it is read again, since events may be erased meanwhile.
	stale = time.Minute
	// silence is after how long without an answer a sink is said to hang.
	silence = 15 * time.Second
	// patience is after how long the event before the position is said to be away; a source that knows better says so before.
	patience = time.Minute
)

// Config is what a pump is made of.
type Config struct {
	Source Source
	Sink   Sink
	Origin string // the log's name
	// State is the file that keeps how far the pump came; "": it begins at From each time.
	State string
	// From is the first index, where State has none yet.
	From int64
	// Gather is how long a pump that is up to date waits for events to come together: each page costs syncs of a disk.
	Gather time.Duration
	// Gentle has a pump that is behind rest as long as it worked.
	Gentle bool
	// Attempts is after how many failures in a row the pump gives up; 0: never.
	Attempts int
	// Size is the number of events in the log, to compare with; nil: not known.
	Size func() int64
	Log  *slog.Logger // nil: silent
}

// Pump moves events from a source to a sink.
type Pump struct {
	cfg   Config
	known bool // the event before the position is in this log, as long as the source does not fail; owned by Run
	page  page // what was read and has not arrived; owned by Run

	mu      sync.Mutex // guards all below
	status  Status
	oldest  time.Time // of the events that are read and not written; zero: none
	writing time.Time // since when the sink has not answered; zero: it has
}

// page is some lines, and where the pump is when they have arrived.
type page struct {
	lines []Line
	read  time.Time
	next  position
	full  bool // there is more
}

// Status is how far a pump is.
type Status struct {
	Next    int64 // the first index that has not arrived
	Written uint64
	Refused uint64 // by the far side, for good
	// Last is the newest refusal.
	Last Refusal
	// Behind is how many events have not arrived, and Lag the age of the oldest of them.
	Behind int64
	Lag    time.Duration
	// Err is what keeps the pump from going on; nil: nothing.
	Err error
	// Ended says that it does not try any more.
	Ended bool
}

// New makes a pump; Run runs it.
func New(cfg Config) *Pump {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Pump{cfg: cfg}
	p.status.Next = cfg.From
	return p
}

// Status says how it is at now.
func (p *Pump) Status(now time.Time) Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.status
	if p.cfg.Size != nil {
		s.Behind = max(0, p.cfg.Size()-s.Next)
	}
	if s.Behind > 0 && !p.oldest.IsZero() {
		s.Lag = max(0, now.Sub(p.oldest))
	}
	if since := now.Sub(p.writing); s.Err == nil && !p.writing.IsZero() && since > silence {
		s.Err = fmt.Errorf("the sink has not answered for %s", since.Truncate(time.Second))
	}
	return s
}

// Run moves events until ctx ends or the source does; both are no error. It closes the sink. A sink that does not answer
// even then is left behind, with what it was given: it arrives again at the next start.
func (p *Pump) Run(ctx context.Context) error {
	err := p.run(ctx)
	if !errors.Is(err, errAbandoned) {
		err = errors.Join(err, p.cfg.Sink.Close())
	}
	if ctx.Err() != nil && !errors.Is(err, ErrPosition) {
		return nil
	}
	p.mu.Lock()
	p.status.Err, p.status.Ended = err, true
	p.mu.Unlock()
	return err
}

func (p *Pump) run(ctx context.Context) (err error) {
	k, err := openKeeper(p.cfg.State)
	if err != nil {
		return fmt.Errorf("position: %w", err)
	}
	defer func() { err = errors.Join(err, k.close()) }()
	at, err := p.start(k)
	if err != nil {
		return err
	}
	failures, wait := 0, firstWait
	for ctx.Err() == nil {
		began := time.Now()
		next, full, err := p.step(ctx, k, at)
		at = next
		switch {
		case errors.Is(err, errEnd):
			return nil
		case err == nil:
			p.failed(nil)
			failures, wait = 0, firstWait
			p.rest(ctx, full, time.Since(began))
			continue
		case ctx.Err() != nil && !errors.Is(err, errAbandoned):
			return nil
		}
		p.failed(err)
		failures++
		if isFinal(err) || errors.Is(err, errAbandoned) || errors.Is(err, ErrPosition) || failures == p.cfg.Attempts {
			return err
		}
		sleep(ctx, wait)
		wait = min(2*wait, longestWait)
	}
	return nil
}

// start says where to begin.
func (p *Pump) start(k *keeper) (position, error) {
	at, kept, err := k.load()
	if err != nil {
		return position{}, fmt.Errorf("position: %w", err)
	}
	if !kept {
		at = position{Version: positionVersion, Origin: p.cfg.Origin, Next: p.cfg.From}
	}
	if at.Origin != p.cfg.Origin {
		return position{}, fmt.Errorf("%w: %s is of the log %q, and this is %q: name another file", ErrPosition, k.path, at.Origin, p.cfg.Origin)
	}
	if p.cfg.Size != nil && kept && p.cfg.Size() < at.Next {
		return position{}, p.misfit(at, "the log ends before it")
	}
	p.mu.Lock()
	p.status.Next = at.Next
	p.mu.Unlock()
	return at, nil
}

func (p *Pump) misfit(at position, why string) error {
	return fmt.Errorf("%w: %s has index %d, and %s: was the ledger restored from a backup? Remove the file to write every event again", ErrPosition, p.cfg.State, at.Next, why)
}

// step moves one page, and keeps that it did. A page that did not arrive is there for the next step, for a while. full says
// that there is more.
func (p *Pump) step(ctx context.Context, k *keeper, at position) (next position, full bool, err error) {
	if len(p.page.lines) == 0 || time.Since(p.page.read) > stale {
		if p.page, err = p.read(ctx, at); err != nil || len(p.page.lines) == 0 {
			return at, false, err
		}
	}
	refused, err := p.write(ctx, p.page.lines)
	if err != nil {
		return at, false, err
	}
	arrived := p.page
	p.page = page{}
	p.written(arrived, refused)
	if err := k.save(arrived.next); err != nil {
		// The next page tries again to keep how far it is.
		return arrived.next, false, fmt.Errorf("keep the position in %s: %w", k.path, err)
	}
	return arrived.next, arrived.full, nil
}

// read reads a page. The first one after a start, or a failure of the source, begins with the event before it, to see that
// the log is the same.
func (p *Pump) read(ctx context.Context, at position) (page, error) {
	check, from := !at.Last.IsZero() && !p.known, at.Next
	if check {
		from--
	}
	entries, err := p.next(ctx, from, check)
	switch {
	case errors.Is(err, io.EOF) && check:
		return page{}, p.misfit(at, "the log ends before it")
	case errors.Is(err, io.EOF):
		return page{}, errEnd
	case err != nil:
		p.known = false // it may come back with another log
		return page{}, fmt.Errorf("read events: %w", err)
	}
	if err := inOrder(entries, from); err != nil || len(entries) == 0 {
		return page{}, err
	}
	out := page{read: time.Now(), full: len(entries) == pageSize}
	if check {
		if first := entries[0].Event; first.ID != at.Last && (first.Body != nil || !first.ID.IsZero()) {
			return page{}, p.misfit(at, "the event before it is another one")
		}
		entries = entries[1:]
	}
	p.known = true
	if len(entries) == 0 {
		return page{}, nil
	}
	if out.lines, err = p.lines(entries); err != nil {
		return page{}, err
	}
	last := entries[len(entries)-1]
	out.next = position{positionVersion, p.cfg.Origin, last.Index + 1, last.Event.ID}
	p.mu.Lock()
	p.oldest = firstTime(entries)
	p.mu.Unlock()
	return out, nil
}

// next asks the source. The event before the position has been there, so that only a log that ends before it, or is away,
// makes one wait for it: that is said, and not waited out in silence.
func (p *Pump) next(ctx context.Context, from int64, check bool) ([]Entry, error) {
	if !check {
		return p.cfg.Source.Next(ctx, from, pageSize)
	}
	soon, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	entries, err := p.cfg.Source.Next(soon, from, pageSize)
	if err != nil && soon.Err() != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("event %d, before the position in %s, has not come for %s: was the ledger restored from a backup? Remove the file to write every event again", from, p.cfg.State, patience)
	}
	return entries, err
}

func (p *Pump) lines(entries []Entry) ([]Line, error) {
	mapper, out := ocsf.Mapper{Origin: p.cfg.Origin}, make([]Line, len(entries))
	at := firstTime(entries)
	for i, e := range entries {
		var line []byte
		var err error
		if e.Event.Body == nil {
			if !e.Event.ID.IsZero() {
				at = e.Event.ID.Time()
			}
			line, err = mapper.Erased(e.Index, at)
		} else {
			at = e.Event.Time.Time()
			line, err = mapper.Line(e.Index, e.Event)
		}
		if err != nil {
			return nil, Final(err)
		}
		out[i] = Line{e.Index, at, line}
	}
	return out, nil
}

// firstTime is when the first of the entries was of which that is known: an erased one has the time of its neighbour.
func firstTime(entries []Entry) time.Time {
	for _, e := range entries {
		switch {
		case e.Event.Body != nil:
			return e.Event.Time.Time()
		case !e.Event.ID.IsZero():
			return e.Event.ID.Time()
		}
	}
	return time.Now()
}

// write waits for the sink, but after the end of ctx not for ever: a sink may hang in a system call.
func (p *Pump) write(ctx context.Context, lines []Line) ([]Refusal, error) {
	p.mu.Lock()
	p.writing = time.Now()
	p.mu.Unlock()
	type answer struct {
		refused []Refusal
		err     error
	}
	done := make(chan answer, 1)
	go func() {
		refused, err := p.cfg.Sink.Write(ctx, lines)
		done <- answer{refused, err}
	}()
	var a answer
	select {
	case a = <-done:
	case <-ctx.Done():
		grace := time.NewTimer(stopGrace)
		defer grace.Stop()
		select {
		case a = <-done:
		case <-grace.C:
			a.err = errAbandoned
		}
	}
	p.mu.Lock()
	p.writing = time.Time{}
	p.mu.Unlock()
	return a.refused, a.err
}

func (p *Pump) written(arrived page, refused []Refusal) {
	p.mu.Lock()
	p.status.Next, p.oldest = arrived.next.Next, time.Time{}
	p.status.Written += uint64(len(arrived.lines) - len(refused))
	p.status.Refused += uint64(len(refused))
	if len(refused) > 0 {
		p.status.Last = refused[len(refused)-1]
	}
	p.mu.Unlock()
	for _, r := range refused {
		p.cfg.Log.Error("the sink refused an event for good", "index", r.Index, "reason", r.Reason)
	}
}

// failed remembers what is wrong, and logs what was not said before.
func (p *Pump) failed(err error) {
	p.mu.Lock()
	before := p.status.Err
	p.status.Err = err
	p.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		p.cfg.Log.Warn("the export waits", "error", err)
	case err == nil && before != nil:
		p.cfg.Log.Info("the export goes on")
	}
}

func (p *Pump) rest(ctx context.Context, full bool, worked time.Duration) {
	switch {
	case !full:
		sleep(ctx, p.cfg.Gather)
	case p.cfg.Gentle:
		sleep(ctx, min(worked, longestPause))
	}
}

func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
