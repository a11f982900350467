package broker

import (
	"context"
	"crypto/sha256"
	"sync"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/risk"
)

// maxPairs bounds how many (principal, secret) pairs are remembered as not novel; what is forgotten is
// looked up in the ledger again.
const maxPairs = 65536

// history keeps the aggregates that risk looks at: rates and denials per principal and device, in memory
// (what was computed from them stands recorded in each decision), and which principal had which secret.
type history struct {
	ledger *ledger.Ledger

	mu    sync.Mutex // guards what follows
	all   map[string]risk.History
	pairs map[[2]string]struct{}
}

func newHistory(l *ledger.Ledger) *history {
	return &history{ledger: l, all: map[string]risk.History{}, pairs: map[[2]string]struct{}{}}
}

// key is per device where there is one. Without one it is per principal, not per instance: a new instance
// key costs nothing, and would wash a bad history off.
func historyKey(principal, device string) string { return principal + "#" + device }

// signals counts one request and returns the aggregates at now.
func (h *history) signals(ctx context.Context, principal, device, secret string, now time.Time) *policy.History {
	micros, key := now.UnixMicro(), historyKey(principal, device)
	h.mu.Lock()
	seen := h.all[key].Requested(micros)
	h.put(key, seen, micros)
	base := h.all[historyKey(principal, "")]
	_, known := h.pairs[[2]string{principal, secret}]
	h.mu.Unlock()
	return &policy.History{
		RateMilli: seen.RateMilli(micros), DenialsMilli: max(seen.DenialsMilli(micros), base.DenialsMilli(micros)),
		UnconfirmedMilli: max(seen.UnconfirmedMilli(micros), base.UnconfirmedMilli(micros)), Novel: !known && h.novel(ctx, principal, secret),
	}
}

// novel asks the ledger; what can't be found out counts as novel.
func (h *history) novel(ctx context.Context, principal, secret string) bool {
	had, err := h.ledger.Sessions(ctx, ledger.SessionQuery{Principal: principal, Secret: secret, Max: 1})
	if err != nil || len(had) == 0 {
		return true
	}
	h.remember(principal, secret)
	return false
}

func (h *history) remember(principal, secret string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.pairs) >= maxPairs {
		clear(h.pairs)
	}
	h.pairs[[2]string{principal, secret}] = struct{}{}
}

// delivered remembers that principal had secret.
func (h *history) delivered(principal, secret string) { h.remember(principal, secret) }

func (h *history) denied(principal string, now time.Time) {
	h.update(principal, now, risk.History.Denied)
}

func (h *history) unconfirmed(principal string, now time.Time) {
	h.update(principal, now, risk.History.LeftUnconfirmed)
}

func (h *history) update(principal string, now time.Time, f func(risk.History, int64) risk.History) {
	micros, key := now.UnixMicro(), historyKey(principal, "")
	h.mu.Lock()
	defer h.mu.Unlock()
	h.put(key, f(h.all[key], micros), micros)
}

// put stores a history; when there are too many, those with nothing left in them go. The caller holds mu.
func (h *history) put(key string, v risk.History, now int64) {
	if _, there := h.all[key]; !there && len(h.all) >= maxPrincipals {
		for k, old := range h.all {
			if old.Idle(now) {
				delete(h.all, k)
			}
		}
		for k := range h.all {
			if len(h.all) < maxPrincipals {
				break
			}
			delete(h.all, k)
		}
	}
	h.all[key] = v
}

// remembered is a bounded set of digests: which bindings are in the ledger already.
type remembered struct {
	mu  sync.Mutex // guards set
	set map[[sha256.Size]byte]struct{}
}

func newRemembered() *remembered { return &remembered{set: map[[sha256.Size]byte]struct{}{}} }

// clear forgets all: bindings that were erased have to be recorded again when they are used again.
func (r *remembered) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.set)
}

func (r *remembered) known(d [sha256.Size]byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.set[d]
	return ok
}

func (r *remembered) remember(d [sha256.Size]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.set) >= maxPrincipals {
		clear(r.set)
	}
	r.set[d] = struct{}{}
}
