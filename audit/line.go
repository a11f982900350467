package audit

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strconv"

	"github.com/bulla-project/bulla/ledger/event"
)

// An event file holds a line for each record, in the order of their indexes:
//
//	{"index":7,"event_salt":"<64 hex>","reply_salt":"<64 hex>","reply":"<64 hex, or empty>","event":{…}}
//
// Of an event that was erased there is its index, and that of the event that says so:
//
//	{"index":7,"erased":31}
//
// It is JSON for whoever reads it, with exactly one spelling: this order, no space, lower-case digits, and the
// event's own canonical encoding.
const (
	lineIndex     = `{"index":`
	lineEventSalt = `,"event_salt":"`
	lineReplySalt = `","reply_salt":"`
	lineReply     = `","reply":"`
	lineEvent     = `","event":`
	lineEnd       = "}\n"
	lineErased    = `,"erased":`

	// maxLine is the longest line, in bytes.
	maxLine = event.MaxSize + 512
	// maxErasedLine is the longest one of an event that was erased. Of another one, this is index and salt.
	maxErasedLine = 64
)

// appendLine adds the line of r to out.
func appendLine(out []byte, r Record) []byte {
	out = append(out, lineIndex...)
	out = strconv.AppendInt(out, r.Index, 10)
	if r.Erased != 0 {
		out = append(out, lineErased...)
		return append(strconv.AppendInt(out, r.Erased, 10), lineEnd...)
	}
	out = append(out, lineEventSalt...)
	out = hex.AppendEncode(out, r.EventSalt[:])
	out = append(out, lineReplySalt...)
	out = hex.AppendEncode(out, r.ReplySalt[:])
	out = append(out, lineReply...)
	if !r.Reply.IsZero() {
		out = hex.AppendEncode(out, r.Reply[:])
	}
	out = append(out, lineEvent...)
	out = append(out, r.Encoding...)
	return append(out, lineEnd...)
}

// parseLine reads what appendLine writes. The record's encoding shares the memory of line; whether it is an event
// is not looked at.
func parseLine(line []byte) (Record, error) {
	if len(line) > maxLine {
		return Record{}, fmt.Errorf("line of %d bytes, at most %d are allowed", len(line), maxLine)
	}
	if bytes.Contains(line[:min(len(line), maxErasedLine)], []byte(lineErased)) {
		return parseErased(line)
	}
	p := lineParser{rest: line}
	p.expect(lineIndex)
	digits := p.until(lineEventSalt)
	eventSalt := p.digest(lineReplySalt)
	replySalt := p.digest(lineReply)
	var reply event.Digest
	if !bytes.HasPrefix(p.rest, []byte(lineEvent)) {
		reply = event.Digest(p.digest(lineEvent))
		p.bad = p.bad || reply.IsZero() // no reply is the empty text
	} else {
		p.expect(lineEvent)
	}
	encoding, ok := bytes.CutSuffix(p.rest, []byte(lineEnd))
	index, err := strconv.ParseInt(string(digits), 10, 64)
	if p.bad || !ok || err != nil || index < 0 || strconv.FormatInt(index, 10) != string(digits) {
		return Record{}, fmt.Errorf("not a line of an event file in its canonical spelling")
	}
	return Record{Index: index, Encoding: encoding, EventSalt: eventSalt, ReplySalt: replySalt, Reply: reply}, nil
}

// parseErased reads the line of an event that was erased.
func parseErased(line []byte) (Record, error) {
	p := lineParser{rest: line}
	p.expect(lineIndex)
	index, err := strconv.ParseInt(string(p.until(lineErased)), 10, 64)
	by, byErr := strconv.ParseInt(string(p.until(lineEnd)), 10, 64)
	r := Record{Index: index, Erased: by}
	if p.bad || err != nil || byErr != nil || index < 0 || by <= index || !bytes.Equal(appendLine(nil, r), line) {
		return Record{}, fmt.Errorf("not a line of an event file in its canonical spelling")
	}
	return r, nil
}

// lineParser takes a line apart from its start; bad stays set after the first mismatch.
type lineParser struct {
	rest []byte
	bad  bool
}

func (p *lineParser) expect(s string) {
	rest, ok := bytes.CutPrefix(p.rest, []byte(s))
	p.rest, p.bad = rest, p.bad || !ok
}

// until returns the digits before s, and goes on after it.
func (p *lineParser) until(s string) []byte {
	head, rest, ok := bytes.Cut(p.rest[:min(len(p.rest), 64)], []byte(s))
	if !ok {
		p.bad = true
		return nil
	}
	p.rest = p.rest[len(p.rest[:min(len(p.rest), 64)])-len(rest):]
	return head
}

// digest reads 64 lower-case hexadecimal digits and the text after them.
func (p *lineParser) digest(after string) (d [32]byte) {
	if len(p.rest) < hex.EncodedLen(len(d)) {
		p.bad = true
		return d
	}
	text := p.rest[:hex.EncodedLen(len(d))]
	if _, err := hex.Decode(d[:], text); err != nil || bytes.ContainsAny(text, "ABCDEF") {
		p.bad = true
	}
	p.rest = p.rest[len(text):]
	p.expect(after)
	return d
}
