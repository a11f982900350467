// Package witness has the checkpoints of a log cosigned by others (C2SP tlog-witness and tlog-cosignature), so that
// the log can't show different histories to different people without those noticing.
//
// A Circle asks all its witnesses at the same time for the same checkpoint, in the background, and keeps the newest one
// that enough of them cosigned. Nothing waits for it: a witness that is slow, away or hostile costs a bounded request now
// and then. What a witness answers is believed only as far as its key signed it.
//
// The package serves nothing and is no witness itself; package xtest below it holds one for tests.
package witness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/internal/outward"
)

const (
	// DefaultTimeout is how long a witness may take to answer.
	DefaultTimeout = 5 * time.Second
	// maxAnswer is the largest answer that is read, in bytes.
	maxAnswer = 16 << 10
	// maxProofLines is how many lines of consistency a request may have, by the specification.
	maxProofLines = 63
)

// The outcomes that an operator has to tell apart from a witness that is merely away.
var (
	// ErrAhead: the witness has seen a larger log of this name and key than there is here.
	ErrAhead = errors.New("the witness has cosigned a larger log than this one: was the data directory restored, or does somebody else sign for this log?")
	// ErrForked: the witness has seen a log of this name and key with another history.
	ErrForked = errors.New("the witness knows another history of this log: does somebody else sign for it?")
)

// Witness is one witness as it is configured.
type Witness struct {
	Key     proofs.WitnessKey
	URL     string        // submission prefix: https, or http of this machine
	Timeout time.Duration // 0: DefaultTimeout
	CAFile  string        // PEM; "": the system's authorities
}

// peer speaks to one witness. Its fields belong to the goroutine that asks.
type peer struct {
	Witness
	client *http.Client
	known  int64 // size of the newest tree that the witness cosigned, as far as is known
}

func newPeer(w Witness) (*peer, error) {
	if w.Key.IsZero() {
		return nil, fmt.Errorf("witness %s: it has no key", w.URL)
	}
	if err := outward.CheckURL(w.URL); err != nil {
		return nil, fmt.Errorf("witness %s: %w", w.Key.Name(), err)
	}
	if w.Timeout == 0 {
		w.Timeout = DefaultTimeout
	}
	client, err := outward.Client(w.CAFile, w.Timeout)
	if err != nil {
		return nil, fmt.Errorf("witness %s: %w", w.Key.Name(), err)
	}
	return &peer{Witness: w, client: client}, nil
}

// cosign has the witness cosign a checkpoint of log, and returns the lines of its answer. It asks a second time where the
// witness knows the log at another size than was thought.
func (p *peer) cosign(ctx context.Context, log *audit.Log, checkpoint []byte, size int64) ([]byte, error) {
	for try := range 2 {
		p.known = min(p.known, size)
		answer, known, err := p.ask(ctx, log, checkpoint, size)
		switch {
		case err != nil:
			return nil, err
		case answer != nil:
			p.known = size
			return answer, nil
		case known > size:
			return nil, fmt.Errorf("%w (%d entries, here %d)", ErrAhead, known, size)
		case try > 0 && known == p.known:
			return nil, fmt.Errorf("%w (at %d entries)", ErrForked, known)
		}
		p.known = known
	}
	return nil, errors.New("the witness changes its mind about the size of the log that it knows")
}

// ask makes one request. Without an answer the witness knows the log at the size known.
func (p *peer) ask(ctx context.Context, log *audit.Log, checkpoint []byte, size int64) (answer []byte, known int64, err error) {
	body, err := p.request(log, checkpoint, size)
	if err != nil {
		return nil, 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(p.URL, "/")+"/add-checkpoint", bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := outward.ReadAll(resp.Body, maxAnswer)
	if err != nil {
		return nil, 0, fmt.Errorf("read the answer: %w", err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return text, 0, nil
	case http.StatusConflict:
		known, err := parseSize(resp.Header.Get("Content-Type"), string(text))
		return nil, known, err
	case http.StatusUnprocessableEntity:
		return nil, 0, ErrForked
	case http.StatusNotFound:
		return nil, 0, errors.New("the witness does not know this log (404): its operator has to add the log's key")
	case http.StatusForbidden:
		return nil, 0, errors.New("the witness knows this log under another key (403)")
	}
	return nil, 0, fmt.Errorf("the witness answers with status %d", resp.StatusCode)
}

// request is the body: what the witness knows, the proof from there, and the checkpoint.
func (p *peer) request(log *audit.Log, checkpoint []byte, size int64) ([]byte, error) {
	proof, err := log.ProveConsistency(p.known, size)
	if err != nil {
		return nil, err
	}
	if len(proof.Hashes) > maxProofLines {
		return nil, fmt.Errorf("the proof of consistency has %d lines, at most %d are allowed", len(proof.Hashes), maxProofLines)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "old %d\n", p.known)
	for _, h := range proof.Hashes {
		b.WriteString(h.String() + "\n")
	}
	b.WriteString("\n")
	b.Write(checkpoint)
	return b.Bytes(), nil
}

// parseSize reads the body of a 409.
func parseSize(contentType, text string) (int64, error) {
	kind, _, err := mime.ParseMediaType(contentType)
	if err != nil || kind != "text/x.tlog.size" {
		return 0, errors.New("the witness answers with status 409 and no size")
	}
	digits, ok := strings.CutSuffix(text, "\n")
	size, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || size < 0 || size > proofs.MaxSize || strconv.FormatInt(size, 10) != digits {
		return 0, fmt.Errorf("the witness answers with status 409 and %.40q, which is no size", text)
	}
	return size, nil
}
