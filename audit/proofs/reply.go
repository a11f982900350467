package proofs

import (
	"bytes"
	"fmt"

	"github.com/bulla-project/bulla/ledger/event"
)

const (
	replyFormat = "bulla-reply/v1"
	// MaxReply is the largest encoded reply, in bytes.
	MaxReply = 4 << 10
)

// Reply is what a client keeps of a delivery, to hold it against the record later: it needs nothing secret, and opens
// nothing but the commitment to this very reply.
type Reply struct {
	Session         event.ID
	Index           int64 // of the event that records the delivery
	EnvelopeDigest  event.Digest
	ReplySalt       event.Salt
	EventCommitment event.Digest // the leaf's first half, as the broker showed it
}

// replyJSON is a reply as it is written.
type replyJSON struct {
	Format          string       `json:"format"`
	Session         event.ID     `json:"session"`
	Index           int64        `json:"index"`
	EnvelopeDigest  event.Digest `json:"envelope_digest"`
	ReplySalt       event.Digest `json:"reply_salt"`
	EventCommitment event.Digest `json:"event_commitment"`
}

// Leaf is the leaf that the log has to hold at Index.
func (r Reply) Leaf() event.Leaf {
	return event.Leaf{Event: r.EventCommitment, Reply: event.CommitReply(r.EnvelopeDigest, r.ReplySalt)}
}

// Encode returns the canonical encoding: one line of JSON.
func (r Reply) Encode() ([]byte, error) {
	out, err := event.Marshal(replyJSON{replyFormat, r.Session, r.Index, r.EnvelopeDigest, event.Digest(r.ReplySalt), r.EventCommitment})
	if err != nil {
		return nil, fmt.Errorf("encode reply: %w", err)
	}
	return append(out, '\n'), nil
}

// ParseReply reads what Encode writes and nothing else.
func ParseReply(data []byte) (Reply, error) {
	if len(data) > MaxReply {
		return Reply{}, refuse("a reply of %d bytes, at most %d are allowed", len(data), MaxReply)
	}
	var j replyJSON
	if err := event.Unmarshal(bytes.TrimSuffix(data, []byte("\n")), &j); err != nil {
		return Reply{}, refuse("not a kept reply: %v", err)
	}
	r := Reply{j.Session, j.Index, j.EnvelopeDigest, event.Salt(j.ReplySalt), j.EventCommitment}
	again, err := r.Encode()
	if err != nil || j.Format != replyFormat || r.Session.IsZero() || r.Index < 0 || r.EnvelopeDigest.IsZero() || !bytes.Equal(again, data) {
		return Reply{}, refuse("not a kept reply of format %s in its canonical spelling", replyFormat)
	}
	return r, nil
}
