// Package epoch holds the keys of the present. An epoch key is random, lives in the memory of one process for at
// most an hour, and is never written anywhere: what depends on it (the use shares of gated sessions) can't be
// recovered after its end from any disk, database or backup. A process that ends takes its epochs with it.
//
// Use shares are derived, not stored: there is no row to destroy, to restore from a backup, or to find in a
// write-ahead log. Which of them were given out is counted by the ledger.
//
// It does not decide who gets a share, and seals nothing.
package epoch

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"sync"
	"time"
)

const (
	// Life is how long an epoch key exists.
	Life = time.Hour
	// Step is how long new sessions begin in the same epoch; a session so has between Life-Step and Life.
	Step = 30 * time.Minute

	tolerance = time.Minute
	label     = "bulla-use-share/v1"
)

// ErrGone says that the epoch is over, or was another process's: nothing of it can be opened any more.
var ErrGone = errors.New("the epoch of this session is over")

// Keys are the epochs that live. The zero value has none, and is ready. Safe for concurrent use.
type Keys struct {
	mu  sync.Mutex // guards all
	all []key      // the newest last
}

type key struct {
	id      string
	secret  [32]byte
	started time.Time
}

// Current returns the epoch in which a session that begins at now begins, and its end, by which the session has to
// be over. It starts one where the newest is older than Step.
func (k *Keys) Current(now time.Time) (id string, end time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sweep(now)
	if n := len(k.all); n > 0 && now.Sub(k.all[n-1].started) < Step {
		return k.all[n-1].id, k.all[n-1].started.Add(Life)
	}
	fresh := key{id: rand.Text(), started: now}
	_, _ = rand.Read(fresh.secret[:]) // never fails since Go 1.24
	k.all = append(k.all, fresh)
	return fresh.id, now.Add(Life)
}

// Shares returns the function that gives the shares of a session, by the number of the use, from 1. It errs with
// ErrGone where the epoch is not, or no more, here. The function holds no key beyond the end of the call that
// asked for it: use it at once, and let it go.
func (k *Keys) Shares(now time.Time, id, session string) (func(number uint32) [32]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sweep(now)
	for i := range k.all {
		if k.all[i].id == id {
			h := hmac.New(sha256.New, k.all[i].secret[:])
			h.Write([]byte(label + "\x00" + session))
			own := h.Sum(nil)
			return func(number uint32) [32]byte {
				h := hmac.New(sha256.New, own)
				h.Write(binary.BigEndian.AppendUint32(nil, number))
				return [32]byte(h.Sum(nil))
			}, nil
		}
	}
	return nil, ErrGone
}

// Sweep destroys the keys of epochs that are over. Current and Shares do it as well; call it now and then, so
// that a key does not outlive its epoch because nobody asks.
func (k *Keys) Sweep(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sweep(now)
}

func (k *Keys) sweep(now time.Time) {
	kept := k.all[:0]
	for _, e := range k.all {
		// Calls beside each other may come in another order than their clocks; one that is far ahead is one of a
		// clock that went back, and might never end.
		if age := now.Sub(e.started); age > -tolerance && age < Life {
			kept = append(kept, e)
		}
	}
	for i := len(kept); i < len(k.all); i++ {
		k.all[i] = key{}
	}
	k.all = kept
}
