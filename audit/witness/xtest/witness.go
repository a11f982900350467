// Package xtest is a witness for tests: an HTTP server that speaks C2SP tlog-witness as the specification has it, with the
// cosignatures of another implementation (filippo.io/torchwood). It keeps its state in memory. Imported by tests alone.
package xtest

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// maxProof is how many lines of consistency a request may have.
const maxProof = 63

// Witness is a running witness.
type Witness struct {
	URL  string
	Key  string // verifier key, as an operator publishes it
	logs note.Verifiers
	sign *torchwood.CosignatureSigner

	mu     sync.Mutex // guards what follows
	trees  map[string]tlog.Tree
	broken func(w http.ResponseWriter, r *http.Request) bool
	calls  int
}

// Start runs a witness of this name, which knows the logs with these keys, until the test ends.
func Start(t testing.TB, name string, logKeys ...string) *Witness {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &Witness{trees: map[string]tlog.Tree{}}
	if w.sign, err = torchwood.NewCosignatureSigner(name, private); err != nil {
		t.Fatal(err)
	}
	w.Key = w.sign.Verifier().String()
	w.Know(t, logKeys...)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /prefix/add-checkpoint", w.serve)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	w.URL = server.URL + "/prefix"
	return w
}

// Know has the witness know the logs with these keys, and no others.
func (w *Witness) Know(t testing.TB, logKeys ...string) {
	t.Helper()
	var all []note.Verifier
	for _, k := range logKeys {
		v, err := note.NewVerifier(k)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.logs = note.VerifierList(all...)
}

// Break has f answer in place of the witness, where f returns true; nil ends that.
func (w *Witness) Break(f func(w http.ResponseWriter, r *http.Request) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = f
}

// Calls is how often the witness was asked.
func (w *Witness) Calls() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls
}

// Tree is the newest tree of a log that the witness cosigned.
func (w *Witness) Tree(origin string) tlog.Tree {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.trees[origin]
}

// SetTree has the witness believe that it cosigned a tree.
func (w *Witness) SetTree(origin string, tree tlog.Tree) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trees[origin] = tree
}

// status is a refusal by its HTTP status.
type status int

func (s status) Error() string { return http.StatusText(int(s)) }

// conflict says which size the witness knows.
type conflict int64

func (c conflict) Error() string { return "conflict" }

func (w *Witness) serve(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	w.calls++
	instead := w.broken
	w.mu.Unlock()
	if instead != nil && instead(rw, r) {
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<16))
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	answer, err := w.add(body)
	var known conflict
	var code status
	switch {
	case errors.As(err, &known):
		rw.Header().Set("Content-Type", "text/x.tlog.size")
		rw.WriteHeader(http.StatusConflict)
		_, _ = fmt.Fprintf(rw, "%d\n", int64(known))
	case errors.As(err, &code):
		http.Error(rw, err.Error(), int(code))
	case err != nil:
		http.Error(rw, err.Error(), http.StatusInternalServerError)
	default:
		_, _ = rw.Write(answer)
	}
}

// add is add-checkpoint, in the order of the specification.
func (w *Witness) add(body []byte) ([]byte, error) {
	head, signed, ok := bytes.Cut(body, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	digits, isOld := strings.CutPrefix(lines[0], "old ")
	old, err := strconv.ParseInt(digits, 10, 64)
	if !ok || !isOld || err != nil || old < 0 || strconv.FormatInt(old, 10) != digits || len(lines)-1 > maxProof {
		return nil, status(http.StatusBadRequest)
	}
	var proof tlog.TreeProof
	for _, line := range lines[1:] {
		h, err := tlog.ParseHash(line)
		if err != nil {
			return nil, status(http.StatusBadRequest)
		}
		proof = append(proof, h)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := note.Open(signed, w.logs)
	if unverified := (*note.UnverifiedNoteError)(nil); errors.As(err, &unverified) {
		return nil, status(http.StatusNotFound)
	}
	if err != nil {
		return nil, status(http.StatusForbidden)
	}
	c, err := torchwood.ParseCheckpoint(n.Text)
	if err != nil || old > c.N {
		return nil, status(http.StatusBadRequest)
	}
	known := w.trees[c.Origin]
	switch {
	case known.N != old:
		return nil, conflict(known.N)
	case old == c.N && c.Hash != known.Hash:
		return nil, conflict(known.N)
	case old == 0 && len(proof) > 0, old > 0 && old < c.N && tlog.CheckTree(proof, c.N, c.Hash, old, known.Hash) != nil:
		return nil, status(http.StatusUnprocessableEntity)
	}
	w.trees[c.Origin] = c.Tree
	cosigned, err := note.Sign(&note.Note{Text: n.Text}, w.sign)
	if err != nil {
		return nil, err
	}
	return cosigned[bytes.LastIndex(cosigned, []byte("\n\n"))+2:], nil
}
