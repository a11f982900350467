package xtest

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm/evidence"
)

// Tamper parses evidence, changes it, and encodes it again.
func Tamper(t testing.TB, ev []byte, change func(*evidence.Evidence)) []byte {
	t.Helper()
	parsed, err := evidence.Parse(bytes.Clone(ev))
	if err != nil {
		t.Fatal(err)
	}
	change(&parsed)
	return parsed.Marshal()
}

// A Forgery is evidence that must be refused as unauthentic, made from evidence that holds.
type Forgery struct {
	Name    string // begins with the row of the list of abuses that it belongs to
	Because string // part of the reason that a verifier gives
	Forge   func(t testing.TB, ev []byte) []byte
}

// Forgeries are all ways to spoil evidence that need no second device.
func Forgeries() []Forgery {
	tamper := func(change func(*evidence.Evidence)) func(testing.TB, []byte) []byte {
		return func(t testing.TB, ev []byte) []byte { return Tamper(t, ev, change) }
	}
	return []Forgery{
		{"A14_huge_log", "bytes, want at most", tamper(func(e *evidence.Evidence) { e.EventLog = make([]byte, evidence.MaxEventLog+1) })},
		{"A14_many_algorithms", "60000 hash algorithms", tamper(func(e *evidence.Evidence) { e.EventLog = ManyAlgorithmsLog() })},
		{"A14_nested", "labelled", func(_ testing.TB, ev []byte) []byte { return Nested(ev, 10_000) }},
		{"A14_length_lie", "4294967295 bytes, want at most", func(_ testing.TB, ev []byte) []byte { return LengthLie(ev) }},
		{"A15_pcrs_zeroed", "not those that were quoted", tamper(func(e *evidence.Evidence) {
			for p := range e.PCRs {
				e.PCRs[p] = [32]byte{}
			}
		})},
		{"A15_pcr_left_out", "whose value is missing", tamper(func(e *evidence.Evidence) { delete(e.PCRs, 7) })},
		{"A15_pcr_added", "but the quote covers", tamper(func(e *evidence.Evidence) { e.PCRs[23] = [32]byte{} })},
		{"A15_log_without_events", "nothing explains the value of PCR 0", tamper(func(e *evidence.Evidence) { e.EventLog = e.EventLog[:logHeader(e.EventLog)] })},
		{"A15_log_cut", "event log", tamper(func(e *evidence.Evidence) { e.EventLog = e.EventLog[:len(e.EventLog)/2] })},
		{"A16_rsa_signature_tagged_ecdsa", "signature", tamper(func(e *evidence.Evidence) { e.Signature = ECDSASignature(make([]byte, 32), make([]byte, 32)) })},
		{"A16_ecdsa_signature_tagged_rsa", "signature", tamper(func(e *evidence.Evidence) { binary.BigEndian.PutUint16(e.Signature, uint16(tpm2.TPMAlgRSASSA)) })},
		{"A16_signature_of_unknown_scheme", "signature", tamper(func(e *evidence.Evidence) { binary.BigEndian.PutUint16(e.Signature, 0x7fff) })},
		{"signature_with_tail", "not in canonical form", tamper(func(e *evidence.Evidence) { e.Signature = append(bytes.Clone(e.Signature), 0) })},
		{"quote_bit", "does not verify", tamper(func(e *evidence.Evidence) {
			e.Quote = bytes.Clone(e.Quote)
			e.Quote[len(e.Quote)-1] ^= 1
		})},
		{"no_quote", "attestation of 0 bytes", tamper(func(e *evidence.Evidence) { e.Quote, e.Signature = nil, nil })},
		{"tail", "after the last field", func(_ testing.TB, ev []byte) []byte { return append(bytes.Clone(ev), 0) }},
		{"empty", "labelled", func(testing.TB, []byte) []byte { return nil }},
	}
}

// logHeader is the length of the first event of a log.
func logHeader(log []byte) int {
	const fixed = 32
	if len(log) < fixed {
		return 0
	}
	return fixed + int(binary.LittleEndian.Uint32(log[fixed-4:]))
}

// ManyAlgorithmsLog announces so many hash algorithms that looking up each digest among them costs dearly.
func ManyAlgorithmsLog() []byte {
	const algorithms = 60_000
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	spec = binary.LittleEndian.AppendUint32(spec, algorithms)
	for range algorithms {
		spec = append(spec, 0x0b, 0, 32, 0)
	}
	spec = append(spec, 0)
	log := append([]byte{0, 0, 0, 0, 3, 0, 0, 0}, make([]byte, 20)...)
	log = binary.LittleEndian.AppendUint32(log, uint32(len(spec)))
	return append(log, spec...)
}

// UnknownEventLog is log with one more event, of a type that nobody knows, that changes no firmware PCR.
func UnknownEventLog(log []byte) []byte {
	out := binary.LittleEndian.AppendUint32(bytes.Clone(log), 16)
	out = binary.LittleEndian.AppendUint32(out, 0xdeadbeef)
	out = binary.LittleEndian.AppendUint32(out, 1)
	out = append(append(out, 0x0b, 0), make([]byte, 32)...)
	return append(out, 0, 0, 0, 0)
}

// Nested puts frames into frames, depth deep.
func Nested(ev []byte, depth int) []byte {
	out := ev
	for range depth {
		out = append(binary.BigEndian.AppendUint32([]byte{0, 1, 'x'}, uint32(len(out))), out...)
		if len(out) > 1<<20 {
			break
		}
	}
	return out
}

// LengthLie announces a first field of 4 GiB.
func LengthLie(ev []byte) []byte {
	out := bytes.Clone(ev)
	binary.BigEndian.PutUint32(out[2+len(attest.Label(out)):], 0xffffffff)
	return out
}
