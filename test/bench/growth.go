package main

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	_ "modernc.org/sqlite" // the store of the broker that is filled

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/session"
)

const (
	grownOthers     = 10_000 // secrets, and grants; no more than sessions
	grownPrincipals = 1000
	growthCallers   = 8
	growthRounds    = 5
)

// grown is what a broker with an empty store took, and one with a full one.
type grown struct {
	sessions      int
	filled        time.Duration
	names         [2]string
	ready         [2]time.Duration
	rows          [2]row // medians
	resident      [2]int64
	rounds, calls int
}

// growth compares a broker with an empty store and one with many sessions, secrets and grants. Both run at
// the same time and are loaded in turn, so that what else the machine does falls on both; the medians count.
func growth(ctx context.Context, binary, dir string, sessions, rounds int, length time.Duration) (g grown, err error) {
	g = grown{sessions: sessions, names: [2]string{"empty", "full"}, rounds: rounds, calls: growthCallers}
	empty, err := startBroker(ctx, binary, filepath.Join(dir, "empty"))
	if err != nil {
		return g, err
	}
	defer func() { err = errors.Join(err, empty.stop()) }()
	full, filled, err := startFull(ctx, binary, filepath.Join(dir, "full"), sessions)
	if err != nil {
		return g, err
	}
	defer func() { err = errors.Join(err, full.stop()) }()
	g.filled = filled
	brokers, rows := [2]*process{empty, full}, [2][]row{}
	for i, p := range brokers {
		g.ready[i] = p.ready
		if err := putSecret(ctx, p); err != nil {
			return g, err
		}
	}
	for range rounds {
		for i, p := range brokers {
			r, err := measureBroker(ctx, p, growthCallers, length)
			if err != nil {
				return g, err
			}
			rows[i] = append(rows[i], r)
		}
	}
	for i, p := range brokers {
		g.rows[i], g.resident[i] = middle(rows[i]), p.resident()
	}
	return g, nil
}

func (g grown) print(w io.Writer) {
	fmt.Fprintf(w, "%d sessions, %d secrets, %d grants, filled in %s; %d callers, medians of %d rounds\n\n",
		g.sessions, others(g.sessions), others(g.sessions), g.filled.Round(time.Second), g.calls, g.rounds)
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "store\tready after\tdelivery p50\tCPU\tgated use p50\tCPU\tresident")
	for i, r := range g.rows {
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\t%s\t%d MiB\n", g.names[i], short(g.ready[i]), short(r.deliver.p50), short(r.deliver.cpu), short(r.use.p50),
			short(r.use.cpu), g.resident[i]>>20)
	}
	a, b := g.rows[0], g.rows[1]
	fmt.Fprintf(out, "ratio\t\t%.2f\t%.2f\t%.2f\t%.2f\n", ratio(b.deliver.p50, a.deliver.p50), ratio(b.deliver.cpu, a.deliver.cpu),
		ratio(b.use.p50, a.use.p50), ratio(b.use.cpu, a.use.cpu))
	_ = out.Flush() // to the terminal: nothing to do about it
}

// middle takes the median of each figure for itself.
func middle(rows []row) (m row) {
	pick := func(of func(row) time.Duration) time.Duration {
		all := make([]time.Duration, len(rows))
		for i, r := range rows {
			all[i] = of(r)
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	m.deliver.p50, m.deliver.cpu = pick(func(r row) time.Duration { return r.deliver.p50 }), pick(func(r row) time.Duration { return r.deliver.cpu })
	m.use.p50, m.use.cpu = pick(func(r row) time.Duration { return r.use.p50 }), pick(func(r row) time.Duration { return r.use.cpu })
	return m
}

// startFull starts a broker, fills its stopped store, and starts it twice more: once so that the log integrates what was
// filled in, and once as a broker that has always had it.
func startFull(ctx context.Context, binary, dir string, sessions int) (*process, time.Duration, error) {
	p, err := startBroker(ctx, binary, dir)
	if err != nil {
		return nil, 0, err
	}
	if err := p.stop(); err != nil {
		return nil, 0, err
	}
	start := time.Now()
	if err := errors.Join(fill(ctx, filepath.Join(dir, "broker", "ledger.db"), sessions, spread(sessions)), grant(filepath.Join(dir, "policy", "data", "grants.yaml"), others(sessions))); err != nil {
		return nil, 0, fmt.Errorf("fill the store: %w", err)
	}
	filled := time.Since(start)
	if p, err = startBroker(ctx, binary, dir); err == nil {
		err = p.stop()
	}
	if err != nil {
		return nil, 0, err
	}
	p, err = startBroker(ctx, binary, dir)
	return p, filled, err
}

// others is how many secrets and grants there are beside the sessions.
func others(sessions int) int { return min(sessions, grownOthers) }

// grant adds grants for principals that never call.
func grant(path string, n int) error {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "spiffe://dev.bulla.test/app/%d: {read: {app/%d/: true}, devices: [\"*\"]}\n", i, i)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(b.String())
	return errors.Join(err, f.Close())
}

// fill puts live sessions with their events and idempotency rows, and secrets, into the tables, past the ledger: rows
// like its own in everything that is read while the broker serves, with short bodies and replies that nobody reads.
func fill(ctx context.Context, path string, sessions int, secretOf func(i int) string) error {
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=synchronous(OFF)&_pragma=cache_size(-262144)")
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if err := fillSecrets(ctx, tx, others(sessions)); err != nil {
		return err
	}
	if err := fillSessions(ctx, tx, sessions, secretOf); err != nil {
		return err
	}
	return tx.Commit()
}

func fillSecrets(ctx context.Context, tx *sql.Tx, n int) error {
	put, err := tx.PrepareContext(ctx, "INSERT INTO states (kind, key, seq, value) VALUES ('secret', ?, 1, ?)")
	if err != nil {
		return err
	}
	defer put.Close()
	for i := range n {
		name := secretName(i)
		value, err := event.Marshal(ledger.Secret{Name: name, Class: "standard", Versions: []ledger.SecretVersion{{
			Version: 1, Stage: secret.StageCurrent, RecordID: event.NewID(time.Now()), Class: "standard", Owner: "spiffe://dev.bulla.test/operator",
			CiphertextDigest: event.Digest{1}, Created: event.NewTime(time.Now()),
		}}})
		if err != nil {
			return err
		}
		if _, err := put.ExecContext(ctx, name, value); err != nil {
			return err
		}
	}
	return nil
}

func secretName(i int) string { return fmt.Sprintf("demo/grown/%d", i) }

func fillSessions(ctx context.Context, tx *sql.Tx, sessions int, secretOf func(i int) string) error {
	stmts := map[string]*sql.Stmt{}
	for name, text := range map[string]string{
		"event":   "INSERT INTO events (idx, id, leaf, subject, body) VALUES (?, ?, ?, ?, zeroblob(200))",
		"session": "INSERT INTO sessions (idx, id, seq, principal, secret, device, state, due, receipt_due, value) VALUES (?, ?, ?, ?, ?, '', ?, ?, NULL, ?)",
		"request": "INSERT INTO requests (idx, key, owner, reply, expires, session) VALUES (?, ?, zeroblob(32), zeroblob(200), ?, ?)",
	} {
		s, err := tx.PrepareContext(ctx, text)
		if err != nil {
			return err
		}
		defer s.Close()
		stmts[name] = s
	}
	var next int64
	if err := tx.QueryRowContext(ctx, "SELECT max(idx) + 1 FROM events").Scan(&next); err != nil {
		return err
	}
	issued := time.Now().Add(-2 * time.Hour) // before the last epoch, as most are
	for i := range sessions {
		at := issued.Add(time.Duration(i) * time.Microsecond)
		s := session.Session{
			ID: event.NewID(at), State: session.Confirmed, RequestID: event.NewID(at).String(), Principal: fmt.Sprintf("spiffe://dev.bulla.test/app/%d", i%grownPrincipals),
			Instance: "QvM2CwHvQ7F3oqHkR0TjZrR8yQ8X1mC2nJ5wq7sYfGk", Secret: secretOf(i), Version: 1, Class: "standard", Grade: "open",
			Suite: "HPKE-9-KE", KeyID: "filled", EnvelopeDigest: event.Digest{1}, ReceiptLock: event.Digest{2}, Issued: event.NewTime(at),
			Expires: event.NewTime(at.Add(24 * time.Hour)), ConfirmedAt: event.NewTime(at), Revision: event.Digest{3},
		}
		value, err := event.Marshal(s)
		if err != nil {
			return err
		}
		index, due := next+int64(i), s.Expires.Time().UnixMicro()
		leaf := event.Leaf{Event: sha256.Sum256(s.ID[:])}
		_, err1 := stmts["event"].ExecContext(ctx, index, s.ID[:], leaf.Bytes(), s.Principal)
		_, err2 := stmts["session"].ExecContext(ctx, index, s.ID.String(), index+1, s.Principal, s.Secret, string(s.State), due, value)
		_, err3 := stmts["request"].ExecContext(ctx, index, "deliver/"+s.RequestID+"/"+s.Principal, due, s.ID[:])
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
	}
	return nil
}

// spread gives each session a secret so that all secrets have about as many.
func spread(sessions int) func(i int) string {
	return func(i int) string { return secretName(i * 7919 % others(sessions)) }
}
