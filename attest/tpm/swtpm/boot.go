package swtpm

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/bulla-project/bulla/attest/tpm/device"
)

// A measurement is one event of the made-up boot: its digest is that of its data.
type measurement struct {
	pcr  uint32
	kind uint32
	data []byte
}

// Event types of the TCG PC Client Platform Firmware Profile.
const (
	evNoAction        = 0x00000003
	evSeparator       = 0x00000004
	evSCRTMVersion    = 0x00000008
	evPlatformConfig  = 0x0000000a
	evIPL             = 0x0000000d
	evEFIVariable     = 0x80000001
	evBootApplication = 0x80000003
	sha256ID          = 0x000b
	firmwarePCRs      = 8
)

// measurements are those of a machine with secure boot on. They are always the same.
func measurements() []measurement {
	boot := []measurement{
		{0, evSCRTMVersion, utf16LE("Bulla software TPM, development boot 1\x00")},
		{1, evPlatformConfig, []byte("development")},
		{7, evEFIVariable, efiVariable("SecureBoot", []byte{1})},
		{7, evEFIVariable, efiVariable("PK", []byte("development platform key"))},
		{7, evEFIVariable, efiVariable("KEK", []byte("development exchange key"))},
		{4, evBootApplication, []byte("no boot loader was measured: this is a software TPM")},
	}
	for p := range uint32(firmwarePCRs) {
		boot = append(boot, measurement{p, evSeparator, []byte{0, 0, 0, 0}})
	}
	return append(boot,
		measurement{8, evIPL, []byte("development command line")},
		measurement{9, evIPL, []byte("development kernel")},
		measurement{14, evIPL, []byte("development machine owner keys")},
	)
}

func utf16LE(s string) []byte {
	var out []byte
	for _, u := range utf16.Encode([]rune(s)) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out
}

// efiVariable is UEFI_VARIABLE_DATA of a variable in the global namespace.
func efiVariable(name string, data []byte) []byte {
	out := []byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	out = binary.LittleEndian.AppendUint64(out, uint64(len(name)))
	out = binary.LittleEndian.AppendUint64(out, uint64(len(data)))
	return append(append(out, utf16LE(name)...), data...)
}

// EventLog is the crypto-agile log of the boot.
func EventLog() []byte {
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2) // platform class, version 2.0, 64 bits
	spec = binary.LittleEndian.AppendUint32(spec, 1)                      // one algorithm
	spec = binary.LittleEndian.AppendUint16(spec, sha256ID)
	spec = binary.LittleEndian.AppendUint16(spec, sha256.Size)
	spec = append(spec, 0) // no vendor information
	out := binary.LittleEndian.AppendUint32(nil, 0)
	out = binary.LittleEndian.AppendUint32(out, evNoAction)
	out = append(out, make([]byte, 20)...) // the SHA-1 digest of an event that is not measured
	out = binary.LittleEndian.AppendUint32(out, uint32(len(spec)))
	out = append(out, spec...)
	for _, m := range measurements() {
		digest := sha256.Sum256(m.data)
		out = binary.LittleEndian.AppendUint32(out, m.pcr)
		out = binary.LittleEndian.AppendUint32(out, m.kind)
		out = binary.LittleEndian.AppendUint32(out, 1)
		out = binary.LittleEndian.AppendUint16(out, sha256ID)
		out = append(out, digest[:]...)
		out = binary.LittleEndian.AppendUint32(out, uint32(len(m.data)))
		out = append(out, m.data...)
	}
	return out
}

// BootPCRs are the SHA-256 PCR values after the made-up boot.
func BootPCRs() map[int][sha256.Size]byte {
	pcrs := map[int][sha256.Size]byte{}
	for _, m := range measurements() {
		value, digest := pcrs[int(m.pcr)], sha256.Sum256(m.data)
		pcrs[int(m.pcr)] = sha256.Sum256(append(value[:], digest[:]...))
	}
	return pcrs
}

// ReferenceYAML gives reference values (see attest.ParseReferences) under which a software TPM whose authority
// is rootPEM is affirmed, and development devices are accepted. They are for development and tests only.
func ReferenceYAML(rootPEM []byte, from, until time.Time) []byte {
	var b strings.Builder
	b.WriteString("version: \"development\"\nsource: \"made by bulla for its own software TPM; not for production\"\n")
	fmt.Fprintf(&b, "valid_from: %s\nvalid_until: %s\n", from.UTC().Format(time.RFC3339), until.UTC().Format(time.RFC3339))
	b.WriteString("development:\n  accept: true\ntpm2:\n")
	if len(rootPEM) > 0 {
		b.WriteString("  ek_roots: |\n")
		for line := range strings.Lines(strings.TrimSpace(string(rootPEM))) {
			b.WriteString("    " + strings.TrimSpace(line) + "\n")
		}
	}
	b.WriteString("  event_log: required\n  features:\n    secure_boot: true\n    separators: true\n")
	b.WriteString("  profiles:\n    - name: \"software-tpm\"\n      pcrs:\n")
	pcrs := BootPCRs()
	for p := range 24 {
		if v, ok := pcrs[p]; ok {
			fmt.Fprintf(&b, "        %d: [\"%s\"]\n", p, hex.EncodeToString(v[:]))
		}
	}
	return []byte(b.String())
}

// boot waits until the TPM answers, measures the boot into it and writes the log beside the socket.
func (t *TPM) boot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	if err := t.waitForSocket(ctx); err != nil {
		return err
	}
	c, err := linuxudstpm.Open(t.socket)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, m := range measurements() {
		if err := extend(c, m); err != nil {
			return fmt.Errorf("measure the boot: %w", err)
		}
	}
	return os.WriteFile(t.socket+device.LogSuffix, EventLog(), 0o600)
}

func extend(c transport.TPM, m measurement) error {
	digest := sha256.Sum256(m.data)
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(m.pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
	}.Execute(c)
	return err
}

func (t *TPM) waitForSocket(ctx context.Context) error {
	for {
		// A connection that is closed at once leaves nothing behind; a socket that is only bound refuses it.
		if c, err := new(net.Dialer).DialContext(ctx, "unix", t.socket); err == nil {
			return c.Close()
		}
		select {
		case <-t.done:
			return errors.New("swtpm ended at once; see swtpm.log in that directory")
		case <-ctx.Done():
			return fmt.Errorf("swtpm does not open its socket: %w", ctx.Err())
		case <-time.After(pollPause):
		}
	}
}
