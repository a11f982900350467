package proofs

import (
	"bytes"
	"strconv"
	"strings"
)

// A ledger that was restored from a backup goes on in a log of another name, with another key: the name of the first log
// and the number of the ledger's life, which is its incarnation. Nobody else's log may have such a name.
const incarnationMark = "/incarnation-"

// MaxIncarnation is the largest number that a name carries.
const MaxIncarnation = 1 << 20

// Incarnation returns the name of a log's nth incarnation. The first one has the name base itself.
func Incarnation(base string, n uint32) string {
	if n <= 1 {
		return base
	}
	return base + incarnationMark + strconv.FormatUint(uint64(n), 10)
}

// SplitIncarnation returns the name of the first log, and which incarnation origin names: 1 for every name that
// Incarnation does not make from another one.
func SplitIncarnation(origin string) (base string, n uint32) {
	at := strings.LastIndex(origin, incarnationMark)
	if at <= 0 {
		return origin, 1
	}
	number, err := strconv.ParseUint(origin[at+len(incarnationMark):], 10, 32)
	if err != nil || number < 2 || number > MaxIncarnation || Incarnation(origin[:at], uint32(number)) != origin {
		return origin, 1
	}
	return origin[:at], uint32(number)
}

// Peek reads what a checkpoint says, with cosignatures or without, and checks no signature: for words about one that no
// known key has signed.
func Peek(raw []byte) (Checkpoint, error) {
	if len(raw) > MaxCosigned {
		return Checkpoint{}, refuse("checkpoint of %d bytes, at most %d are allowed", len(raw), MaxCosigned)
	}
	text, _, found := bytes.Cut(raw, []byte("\n\n"))
	if !found {
		return Checkpoint{}, refuse("the checkpoint is not a signed note")
	}
	return parseText(string(text) + "\n")
}

// another says that what origin names is another incarnation of the log that k is of; "" if it is not.
func (k Key) another(origin string) string {
	base, have := SplitIncarnation(k.Origin())
	its, n := SplitIncarnation(origin)
	switch {
	case its != base || n == have:
		return ""
	case n < have:
		return "the checkpoint is of log " + origin + ", and the key is that of " + k.Origin() + ", in which the ledger goes on since a restore: verify it with the key of its own log, or compare an export of the new log with it"
	}
	return "the checkpoint is of log " + origin + ", and the key is that of " + k.Origin() + ": somebody says that the ledger was restored from a backup, and what was recorded since may be lost. " +
		"Ask those who run the broker whether, why and what; keep what you have of the old log, and take the new log's key (log.pub) from them only then"
}
