package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"time"

	_ "modernc.org/sqlite" // the driver of the ledger's store
)

const (
	eventSize  = 2600 // of a use, in bytes
	answerSize = 120  // what is kept of a reply
)

// store is a database in which a use is one transaction: an event is added, the count of the session goes up if it may, and
// the reply is kept under the request's key. It has the three rows and nothing else, in pages and with the durability that
// the ledger's store has.
type store struct {
	db                     *sql.DB
	event, count, answered *sql.Stmt
}

// sessionsOfStore is how many sessions there are, each of which has uses left.
const sessionsOfStore = 64

func newStore(ctx context.Context, path string) (*store, error) {
	pragmas := url.Values{"_pragma": {"page_size(8192)", "journal_mode(WAL)", "synchronous(FULL)"}}
	db, err := sql.Open("sqlite", "file:"+path+"?"+pragmas.Encode())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	_, err = db.ExecContext(ctx, `CREATE TABLE events (idx INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE sessions (id INTEGER PRIMARY KEY, used INTEGER NOT NULL, most INTEGER NOT NULL);
CREATE TABLE answers (key BLOB PRIMARY KEY, reply BLOB NOT NULL) WITHOUT ROWID`)
	for id := range sessionsOfStore {
		if err == nil {
			_, err = db.ExecContext(ctx, "INSERT INTO sessions VALUES (?, 0, 1000000000)", id)
		}
	}
	s := &store{db: db}
	for text, into := range map[string]**sql.Stmt{
		"INSERT INTO events (body) VALUES (?)":                             &s.event,
		"UPDATE sessions SET used = used + 1 WHERE id = ? AND used < most": &s.count,
		"INSERT INTO answers VALUES (?, ?)":                                &s.answered,
	} {
		if err == nil {
			*into, err = db.PrepareContext(ctx, text)
		}
	}
	return s, err
}

// commit writes a group and waits until it is durable.
func (s *store) commit(ctx context.Context, sessions []int) (err error) {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tx.Rollback())
		}
	}()
	event, count, answered := tx.StmtContext(ctx, s.event), tx.StmtContext(ctx, s.count), tx.StmtContext(ctx, s.answered)
	body, reply := make([]byte, eventSize), make([]byte, answerSize)
	for _, id := range sessions {
		if _, err := event.ExecContext(ctx, body); err != nil {
			return err
		}
		done, err := count.ExecContext(ctx, id)
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err != nil || n != 1 {
			return fmt.Errorf("%d sessions counted a use: %w", n, err)
		}
		key := make([]byte, 32) // as of a request id: ascending, with chance behind
		binary.BigEndian.PutUint64(key, uint64(time.Now().UnixNano()))
		if _, err := rand.Read(key[8:]); err != nil {
			return err
		}
		if _, err := answered.ExecContext(ctx, key, reply); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// transactions is the CPU time of one use in groups of 64, in a new database.
func transactions(ctx context.Context, path string) (time.Duration, error) {
	s, err := newStore(ctx, path)
	if err != nil {
		return 0, err
	}
	defer s.db.Close()
	const callers, rounds = 64, 100
	group := make([]int, callers)
	for i := range group {
		group[i] = i % sessionsOfStore
	}
	before := cpuOfSelf()
	for range rounds {
		if err := s.commit(ctx, group); err != nil {
			return 0, err
		}
	}
	return (cpuOfSelf() - before) / (callers * rounds), nil
}
