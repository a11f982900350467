// Package sessionproof is the proof of one session in one file: the events that tell of it and those that they rest on,
// each with what opens its leaf and the proof that the log holds it, and a signed checkpoint.
//
// A file has exactly one spelling (JSON with a line for each event), and Parse refuses every other one. Verify needs
// the log's key and nothing else: no broker, no network, no clock. Certificates are judged at the times of the events
// that the log vouches for, by the trust bundles that the log holds, so that a proof is as good in ten years as today.
//
// A proof shows what is in it. That nothing was left out of it, only the whole log can show: see Report.NotShown.
package sessionproof

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/ledger/event"
)

const (
	// Format names the layout of a proof.
	Format = "bulla-session-proof/v1"
	// MaxSize is the largest proof that is read, in bytes.
	MaxSize = 64 << 20
	// MaxEntries is the largest number of events in a proof.
	MaxEntries = 10_100

	maxHashes = 64 // of an inclusion proof: a tree of 2^48 leaves needs no more
)

// Entry is an event with the proof that it is in the log.
type Entry struct {
	audit.Record
	Inclusion []proofs.Hash
}

// Proof is what a file holds.
type Proof struct {
	Session    event.ID
	LogKey     string // in note format; not believed
	Checkpoint []byte // signed, with cosignatures if there are any
	// Since is an older checkpoint, as the log signed it; Consistency shows that Checkpoint extends it. Empty: none.
	Since       []byte
	Consistency []proofs.Hash
	Entries     []Entry // in ascending order of their indexes
}

// headJSON and entryJSON are the parts of a file as they are written.
type headJSON struct {
	Format       string        `json:"format"`
	EventVersion int           `json:"event_version"`
	Session      event.ID      `json:"session"`
	LogKey       string        `json:"log_key"`
	Checkpoint   string        `json:"checkpoint"`
	Since        string        `json:"since"`
	Consistency  []proofs.Hash `json:"consistency"`
}

type entryJSON struct {
	Index     int64           `json:"index"`
	EventSalt event.Digest    `json:"event_salt"`
	ReplySalt event.Digest    `json:"reply_salt"`
	Reply     event.Digest    `json:"reply"`
	Inclusion []proofs.Hash   `json:"inclusion"`
	Event     json.RawMessage `json:"event"`
}

// The parts of a file between its head and its entries, and after them.
const (
	entriesKey = `,"entries":[`
	proofEnd   = "\n]}\n"
)

// Encode returns the canonical encoding: one JSON object, with a line for each event.
func (p Proof) Encode() ([]byte, error) {
	head, err := event.Marshal(headJSON{Format, event.Version, p.Session, p.LogKey, string(p.Checkpoint), string(p.Since), list(p.Consistency)})
	if err != nil {
		return nil, fmt.Errorf("encode session proof: %w", err)
	}
	var out bytes.Buffer
	out.Write(bytes.TrimSuffix(head, []byte("}")))
	out.WriteString(entriesKey)
	for i, e := range p.Entries {
		line, err := event.Marshal(entryJSON{e.Index, event.Digest(e.EventSalt), event.Digest(e.ReplySalt), e.Reply, list(e.Inclusion), e.Encoding})
		if err != nil {
			return nil, fmt.Errorf("encode session proof: event %d: %w", e.Index, err)
		}
		if i > 0 {
			out.WriteByte(',')
		}
		out.WriteByte('\n')
		out.Write(line)
	}
	out.WriteString(proofEnd)
	if out.Len() > MaxSize || len(p.Entries) > MaxEntries {
		return nil, fmt.Errorf("encode session proof: %d events in %d bytes, at most %d in %d are allowed", len(p.Entries), out.Len(), MaxEntries, MaxSize)
	}
	return out.Bytes(), nil
}

// list makes no list an empty one, which is written differently.
func list(hashes []proofs.Hash) []proofs.Hash {
	if hashes == nil {
		return []proofs.Hash{}
	}
	return hashes
}

// Parse reads what Encode writes and nothing else. The error is an *audit.Fault.
func Parse(data []byte) (Proof, error) {
	if len(data) > MaxSize {
		return Proof{}, fault(fileName, "%d bytes, at most %d are allowed", len(data), MaxSize)
	}
	head, rest, found := bytes.Cut(data, []byte(entriesKey))
	lines, ended := bytes.CutSuffix(rest, []byte(proofEnd))
	if !found || !ended {
		return Proof{}, fault(fileName, "it is not a session proof: it has no entries")
	}
	var h headJSON
	if err := event.Unmarshal(append(head[:len(head):len(head)], '}'), &h); err != nil {
		return Proof{}, fault(fileName, "it is not a session proof: %v", err)
	}
	if h.Format != Format || h.EventVersion != event.Version {
		return Proof{}, fault(fileName, "format %.40q with events of version %d, this program reads %q with %d", h.Format, h.EventVersion, Format, event.Version)
	}
	if n := bytes.Count(lines, []byte("\n")); n == 0 || n > MaxEntries || len(h.Consistency) > maxHashes || len(h.Checkpoint) > proofs.MaxCosigned || len(h.Since) > proofs.MaxCheckpoint {
		return Proof{}, fault(fileName, "%d events, %d hashes of consistency and a checkpoint of %d bytes: one of them is none, or too many", n, len(h.Consistency), len(h.Checkpoint))
	}
	p := Proof{Session: h.Session, LogKey: h.LogKey, Checkpoint: []byte(h.Checkpoint), Since: []byte(h.Since), Consistency: h.Consistency}
	// Line by line: what is made of a hostile file is never much larger than the file.
	for line := range bytes.SplitSeq(lines, []byte("\n")) {
		if len(line) == 0 { // before the first one
			continue
		}
		e, err := parseEntry(bytes.TrimSuffix(line, []byte(",")))
		if err != nil {
			return Proof{}, err
		}
		p.Entries = append(p.Entries, e)
	}
	again, err := p.Encode()
	if err != nil {
		return Proof{}, fault(fileName, "%v", err)
	}
	if !bytes.Equal(again, data) {
		return Proof{}, fault(fileName, "it is not in its canonical spelling: line %d differs", 1+commonLines(again, data))
	}
	return p, nil
}

// parseEntry reads the line of an event.
func parseEntry(line []byte) (Entry, error) {
	var e entryJSON
	if err := event.Unmarshal(line, &e); err != nil {
		return Entry{}, fault(fileName, "an entry can't be read: %v", err)
	}
	if len(e.Inclusion) > maxHashes || e.Index < 0 || e.Index > proofs.MaxSize {
		return Entry{}, faultAt(e.Index, "its index or its proof is larger than that of any log")
	}
	return Entry{audit.Record{
		Index: e.Index, Encoding: e.Event, EventSalt: event.Salt(e.EventSalt), ReplySalt: event.Salt(e.ReplySalt), Reply: e.Reply,
	}, e.Inclusion}, nil
}

// commonLines is how many lines at the beginning of a and b are the same.
func commonLines(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			n = i
			break
		}
	}
	return bytes.Count(a[:n], []byte("\n"))
}

// The places of faults that are not about one event.
const (
	fileName       = "proof"
	checkpointName = "checkpoint"
	sinceName      = "since"
	entriesName    = "entries"
)

func fault(where, format string, args ...any) error {
	return &audit.Fault{File: where, Index: -1, What: fmt.Sprintf(format, args...)}
}

func faultAt(index int64, format string, args ...any) error {
	return &audit.Fault{File: entriesName, Index: index, What: fmt.Sprintf(format, args...)}
}
