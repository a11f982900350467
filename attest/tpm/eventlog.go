package tpm

import (
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"

	eventlog "github.com/google/go-attestation/attest"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm/evidence"
)

// Event types of the TCG PC Client Platform Firmware Profile that are looked at. Types are not measured, so
// each is believed only with data that hashes to the measured digest.
const (
	evNoAction     = 0x00000003
	evSCRTMVersion = 0x00000008
	evEFIVariable  = 0x80000001 // EV_EFI_VARIABLE_DRIVER_CONFIG
	secureBootPCR  = 7
	maxAlgorithms  = 8 // hash algorithms of a log: each digest is looked up among them
	specIDName     = "Spec ID Event03\x00"
	legacyHeader   = 32 // PCR, type, SHA-1 digest, size
	specIDFixed    = 24 // signature, platform class, version, size of UINTN
	uefiVariable   = 32 // GUID, two lengths
	debuggerAction = "UEFI Debug Mode"
)

// boot is what an event log proves.
type boot struct {
	features attest.Features
	firmware string
}

// replay checks that the log explains the quoted PCRs 0 to 7, and reads from it what can be believed. Without a
// log everything is unknown.
func replay(log []byte, quoted map[int][sha256.Size]byte) (boot, error) {
	if len(log) == 0 {
		return boot{}, nil
	}
	if err := precheck(log); err != nil {
		return boot{}, unauthentic("event log: %w", err)
	}
	var pcrs []eventlog.PCR
	for p := range firmwarePCRs {
		value := quoted[p]
		pcrs = append(pcrs, eventlog.PCR{Index: p, Digest: value[:], DigestAlg: crypto.SHA256})
	}
	events, err := parseAndVerify(log, pcrs)
	if err != nil {
		return boot{}, unauthentic("event log: %w", err)
	}
	var of [firmwarePCRs][]eventlog.Event
	for _, e := range events {
		if e.Index < 0 || e.Index >= firmwarePCRs {
			return boot{}, unauthentic("event log: an event of PCR %d was replayed", e.Index)
		}
		of[e.Index] = append(of[e.Index], e)
	}
	for p := range firmwarePCRs {
		// The library takes a PCR without events for replayed, whatever its value.
		if value := quoted[p]; len(of[p]) == 0 && !pcrZero(value) {
			return boot{}, unauthentic("event log: nothing explains the value of PCR %d", p)
		}
	}
	return boot{features: features(of), firmware: firmwareVersion(of[0])}, nil
}

// precheck refuses logs whose header would make parsing dear, or that can't have SHA-256 digests.
func precheck(log []byte) error {
	if len(log) > evidence.MaxEventLog {
		return fmt.Errorf("%d bytes, want at most %d", len(log), evidence.MaxEventLog)
	}
	if len(log) < legacyHeader+specIDFixed+4 {
		return errors.New("too short for its header")
	}
	if binary.LittleEndian.Uint32(log[4:]) != evNoAction || string(log[legacyHeader:legacyHeader+len(specIDName)]) != specIDName {
		return errors.New("not a crypto-agile TPM 2.0 log (a SHA-1 log proves nothing)")
	}
	if n := binary.LittleEndian.Uint32(log[legacyHeader+specIDFixed:]); n == 0 || n > maxAlgorithms {
		return fmt.Errorf("%d hash algorithms, want 1 to %d", n, maxAlgorithms)
	}
	return nil
}

// parseAndVerify calls the library, which works on bytes from outside: its panics become errors.
func parseAndVerify(log []byte, pcrs []eventlog.PCR) (events []eventlog.Event, err error) {
	defer func() {
		if p := recover(); p != nil {
			events, err = nil, fmt.Errorf("can't be parsed: %v", p)
		}
	}()
	parsed, err := eventlog.ParseEventLog(log)
	if err != nil {
		return nil, fmt.Errorf("can't be parsed: %w", err)
	}
	events, err = parsed.Verify(pcrs)
	var mismatch eventlog.ReplayError
	if errors.As(err, &mismatch) {
		return nil, fmt.Errorf("does not replay to the quoted PCRs %v", mismatch.InvalidPCRs)
	}
	return events, err
}

// believed says whether the data of e is what was measured.
func believed(e eventlog.Event) bool {
	sum := sha256.Sum256(e.Data)
	return slices.Equal(sum[:], e.Digest)
}

// separator says whether e is what the firmware measures when it hands over (its type may be a lie, its digest
// is not): four bytes of zeros, or of ones.
func separator(e eventlog.Event) bool {
	zeros, ones := sha256.Sum256([]byte{0, 0, 0, 0}), sha256.Sum256([]byte{0xff, 0xff, 0xff, 0xff})
	return slices.Equal(e.Digest, zeros[:]) || slices.Equal(e.Digest, ones[:])
}

func features(of [firmwarePCRs][]eventlog.Event) attest.Features {
	f := attest.Features{MeasuredBoot: attest.True, Separators: attest.True}
	for _, events := range of {
		if !slices.ContainsFunc(events, separator) {
			f.Separators = attest.False
		}
	}
	f.SecureBoot, f.FirmwareDebugger = secureBoot(of[secureBootPCR])
	return f
}

// secureBoot reads PCR 7 up to its separator: what comes later may be the operating system's own invention.
// Both answers are unknown unless every event before it can be believed.
func secureBoot(events []eventlog.Event) (enabled, debugger attest.Tri) {
	end := slices.IndexFunc(events, separator)
	if end < 0 {
		return attest.Unknown, attest.Unknown
	}
	enabled, debugger = attest.Unknown, attest.False
	for _, e := range events[:end] {
		if !believed(e) {
			return attest.Unknown, attest.Unknown
		}
		if strings.HasPrefix(string(e.Data), debuggerAction) {
			debugger = attest.True
		}
		value, ok := secureBootVariable(e)
		if !ok {
			continue
		}
		if enabled != attest.Unknown {
			return attest.Unknown, debugger // measured twice: which one holds can't be told
		}
		enabled = attest.TriOf(value)
	}
	return enabled, debugger
}

// secureBootVariable reads the UEFI_VARIABLE_DATA of the global variable SecureBoot.
func secureBootVariable(e eventlog.Event) (value, ok bool) {
	d := e.Data
	if e.Type != evEFIVariable || len(d) < uefiVariable {
		return false, false
	}
	globalVariable := []byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	nameLen, dataLen := binary.LittleEndian.Uint64(d[16:]), binary.LittleEndian.Uint64(d[24:])
	const name = "SecureBoot"
	if !slices.Equal(d[:16], globalVariable) || nameLen != uint64(len(name)) || dataLen != 1 || len(d) != uefiVariable+2*len(name)+1 {
		return false, false
	}
	for i, c := range []byte(name) {
		if d[uefiVariable+2*i] != c || d[uefiVariable+2*i+1] != 0 {
			return false, false
		}
	}
	last := d[len(d)-1]
	return last == 1, last <= 1
}

// firmwareVersion is the S-CRTM version as text, "" if it isn't there or isn't text.
func firmwareVersion(events []eventlog.Event) string {
	const maxVersion = 128
	for _, e := range events {
		if e.Type != evSCRTMVersion || !believed(e) {
			continue
		}
		if len(e.Data)%2 != 0 || len(e.Data) > 2*maxVersion {
			return ""
		}
		var units []uint16
		for i := 0; i < len(e.Data); i += 2 {
			units = append(units, binary.LittleEndian.Uint16(e.Data[i:]))
		}
		text := strings.TrimRight(string(utf16.Decode(units)), "\x00")
		if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
			return ""
		}
		return text
	}
	return ""
}
