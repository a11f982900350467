// Package tsm gets evidence for confidential machines from the Linux kernel: reports of AMD SEV-SNP and quotes of
// Intel TDX through configfs-tsm (Documentation/ABI/testing/configfs-tsm-report).
//
// It is the client side of packages attest/sevsnp and attest/tdx, and light: it reads and writes files, and
// parses nothing of what the hardware says. It was written by the kernel's documentation and tried on directories
// that imitate it, not on such hardware. AWS Nitro enclaves have no configfs-tsm: a program in one hands its own
// [github.com/bulla-project/bulla/client.Evidence] to the client.
package tsm

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/bulla-project/bulla/attest"
)

// Dir is where the kernel has its reports.
const Dir = "/sys/kernel/config/tsm/report"

// ErrUnavailable says that this machine gives no reports, or not to this process.
var ErrUnavailable = errors.New("no report of a confidential machine can be had")

// tries is how often a report is asked for when somebody else uses the same entry.
const tries = 5

// Config says where reports come from.
type Config struct {
	// Dir is the directory of reports, or an entry in it that was made for this process (by root, since only
	// root can make one). "": Dir.
	Dir string
	// Certificates in PEM are sent along with reports of SEV-SNP, where the host does not give them.
	Certificates []byte
}

// A Device makes evidence of this machine. It is safe for concurrent use.
type Device struct {
	dir   string
	certs [][]byte
	kind  attest.Kind
	mkdir func(name string, perm os.FileMode) error
}

// Open finds out which kind of machine this is. It needs a process that may read the entries.
func Open(c Config) (*Device, error) { return open(c, os.Mkdir) }

func open(c Config, mkdir func(string, os.FileMode) error) (*Device, error) {
	d := &Device{dir: c.Dir, mkdir: mkdir}
	if d.dir == "" {
		d.dir = Dir
	}
	for rest := c.Certificates; len(bytes.TrimSpace(rest)) > 0; {
		block, after := pem.Decode(rest)
		if block == nil || block.Type != "CERTIFICATE" || len(d.certs) == maxCertificates || len(block.Bytes) > maxCertificate {
			return nil, fmt.Errorf("certificates to send along: PEM block %d is not a certificate, too large or too many", len(d.certs)+1)
		}
		d.certs, rest = append(d.certs, block.Bytes), after
	}
	entry, done, err := d.entry()
	if err != nil {
		return nil, err
	}
	provider, err := read(filepath.Join(entry, "provider"), 64)
	if err := errors.Join(err, done()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	switch name := strings.TrimSpace(string(provider)); name {
	case "sev_guest":
		d.kind = attest.KindSEVSNP
	case "tdx_guest":
		d.kind = attest.KindTDX
	default:
		return nil, fmt.Errorf("%w: reports come from %q, and only those of sev_guest and tdx_guest can be verified", ErrUnavailable, name)
	}
	return d, nil
}

// Kind is the kind of evidence that this machine makes.
func (d *Device) Kind() attest.Kind { return d.kind }

// Attest makes evidence for b.
func (d *Device) Attest(ctx context.Context, b attest.Binding) (evidence []byte, err error) {
	entry, done, err := d.entry()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	data := b.ReportData()
	for range tries {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("ask for a report: %w", err)
		}
		report, table, ok, err := ask(entry, data[:])
		switch {
		case err != nil:
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		case !ok: // another process has written to the entry in between
			continue
		case d.kind == attest.KindSEVSNP:
			return SEVSNP{Report: report, Table: table, Certificates: d.certs}.Marshal(), nil
		}
		return report, nil
	}
	return nil, fmt.Errorf("%w: others use the entry %s all the time", ErrUnavailable, entry)
}

// entry is the one that was made for this process, or a new one, which done removes.
func (d *Device) entry() (path string, done func() error, err error) {
	if _, err := os.Stat(filepath.Join(d.dir, "inblob")); err == nil {
		return d.dir, func() error { return nil }, nil
	}
	for n := range tries * tries {
		path = filepath.Join(d.dir, "bulla-"+strconv.Itoa(os.Getpid())+"-"+strconv.Itoa(n))
		err = d.mkdir(path, 0o700)
		if err == nil {
			return path, func() error { return os.Remove(path) }, nil
		}
		if !errors.Is(err, os.ErrExist) {
			break
		}
	}
	return "", nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// ask writes data and reads what comes of it. ok is false where the generation shows that somebody else wrote.
func ask(entry string, data []byte) (report, table []byte, ok bool, err error) {
	before, err := generation(entry)
	if err != nil {
		return nil, nil, false, err
	}
	in, err := os.OpenFile(filepath.Join(entry, "inblob"), os.O_WRONLY, 0)
	if err != nil {
		return nil, nil, false, err
	}
	_, err = in.Write(data)
	if err := errors.Join(err, in.Close()); err != nil {
		return nil, nil, false, err
	}
	if report, err = read(filepath.Join(entry, "outblob"), MaxReport); err != nil {
		return nil, nil, false, err
	}
	table, err = read(filepath.Join(entry, "auxblob"), maxTable)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // not every provider has one
		return nil, nil, false, err
	}
	after, err := generation(entry)
	return report, table, after == before+1, err
}

func generation(entry string) (uint64, error) {
	text, err := read(filepath.Join(entry, "generation"), 32)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}

func read(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return b, err
}
