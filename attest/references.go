package attest

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Limits of reference values.
const (
	maxReferences = 1 << 20
	maxProfiles   = 256
	maxValues     = 256 // values of one PCR in one profile
	numPCRs       = 24
)

// References are reference values: what the operator says a good device looks like. The zero value accepts
// nothing. They are read by [ParseReferences] from the policy bundle and never changed.
type References struct {
	version     string
	source      string
	from, until time.Time
	roots       []*x509.Certificate
	ekHashes    []string
	required    []int
	zero        []int
	eventLog    bool
	features    []feature
	firmware    map[string]uint64
	profiles    []profile
	development bool
	machines    map[Kind]machines
	digest      [sha256.Size]byte
}

type feature struct {
	name string
	want Tri
}

type profile struct {
	name string
	pcrs map[int][][sha256.Size]byte
}

// referencesFile is the YAML form.
type referencesFile struct {
	Version    string    `yaml:"version"`
	Source     string    `yaml:"source"`
	ValidFrom  time.Time `yaml:"valid_from"`
	ValidUntil time.Time `yaml:"valid_until"`
	TPM2       struct {
		EKRoots         string            `yaml:"ek_roots"`
		EKHashes        []string          `yaml:"ek_hashes"`
		RequiredPCRs    []int             `yaml:"required_pcrs"`
		ZeroPCRs        []int             `yaml:"zero_pcrs"`
		EventLog        string            `yaml:"event_log"`
		Features        map[string]bool   `yaml:"features"`
		MinimumFirmware map[string]string `yaml:"minimum_firmware"`
		Profiles        []struct {
			Name string           `yaml:"name"`
			PCRs map[int][]string `yaml:"pcrs"`
		} `yaml:"profiles"`
	} `yaml:"tpm2"`
	Development struct {
		Accept bool `yaml:"accept"`
	} `yaml:"development"`
	Nitro  machinesFile `yaml:"nitro"`
	SEVSNP machinesFile `yaml:"sev_snp"`
	TDX    machinesFile `yaml:"tdx"`
}

// ParseReferences reads reference values. Unknown and repeated keys are refused, with their line; faults of
// values are all reported at once, with their path. Fields:
//
//	version, source            text, both needed
//	valid_from, valid_until    RFC 3339
//	tpm2.ek_roots              PEM certificates of the makers that vouch for endorsement keys
//	tpm2.ek_hashes             endorsement keys taken without a certificate: hex SHA-256 of the key in PKIX DER
//	tpm2.required_pcrs         PCRs that each quote must cover; default 0 to 7
//	tpm2.zero_pcrs             those of them that may be untouched
//	tpm2.event_log             required (default) or optional
//	tpm2.features              name → wanted value: measured_boot, separators, secure_boot, firmware_debugger
//	tpm2.minimum_firmware      TPM maker as in the certificate ("id:…", "*" for any) → hexadecimal version
//	tpm2.profiles              name and pcrs: number → allowed hex SHA-256 values; a device must match one
//	development.accept         whether development devices are taken at all
//
// and for each of nitro, sev_snp and tdx:
//
//	roots                      PEM certificates below which evidence must be signed: without any, none is taken
//	profiles                   name and values: name of a measurement → allowed hexadecimal values; a machine
//	                           must match one, and each names at least what images of the kind are made of
//	minimum_tcb                (not nitro) product → part → lowest security versions, for every part
//	allow_migration            (not nitro) whether a machine that may be migrated is tolerated
//	intermediates, max_vmpl    (sev_snp) PEM certificates of ASK and ASVK; lowest privilege level, default 0
func ParseReferences(b []byte) (References, error) {
	if len(b) > maxReferences {
		return References{}, fmt.Errorf("%w: reference values of %d bytes, want at most %d", ErrMalformed, len(b), maxReferences)
	}
	// Aliases could make a small file large. None are needed, so none are read.
	if err := refuseAliases(b); err != nil {
		return References{}, fmt.Errorf("%w: reference values: %w", ErrMalformed, err)
	}
	var file referencesFile
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		return References{}, fmt.Errorf("%w: reference values: %w", ErrMalformed, plain(err))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return References{}, fmt.Errorf("%w: reference values: more than one YAML document", ErrMalformed)
	}
	r := References{digest: sha256.Sum256(b)}
	if err := r.fill(file); err != nil {
		return References{}, fmt.Errorf("%w: reference values: %w", ErrMalformed, err)
	}
	return r, nil
}

// plain says in the reader's words what the decoder says in those of Go.
func plain(err error) error {
	var faults *yaml.TypeError
	if !errors.As(err, &faults) {
		return err
	}
	var lines []error
	for _, text := range faults.Errors {
		line, key, found := strings.Cut(text, ": field ")
		if key, _, isKey := strings.Cut(key, " not found in type "); found && isKey {
			text = line + ": unknown key " + clip(key)
		}
		lines = append(lines, errors.New(text))
	}
	return errors.Join(lines...)
}

func refuseAliases(b []byte) error {
	var node yaml.Node
	if err := yaml.Unmarshal(b, &node); err != nil {
		return err
	}
	var walk func(n *yaml.Node, depth int) error
	walk = func(n *yaml.Node, depth int) error {
		switch {
		case n.Kind == yaml.AliasNode:
			return fmt.Errorf("line %d: aliases are not allowed", n.Line)
		case depth > 16:
			return fmt.Errorf("line %d: nested too deeply", n.Line)
		}
		for _, c := range n.Content {
			if err := walk(c, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(&node, 0)
}

func (r *References) fill(f referencesFile) error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if f.Version == "" || f.Source == "" {
		fault("version and source must be given")
	}
	if f.ValidFrom.IsZero() || f.ValidUntil.IsZero() || !f.ValidFrom.Before(f.ValidUntil) {
		fault("valid_from and valid_until must be given, in this order")
	}
	r.version, r.source = f.Version, f.Source
	r.from, r.until = f.ValidFrom.UTC(), f.ValidUntil.UTC()
	r.development = f.Development.Accept
	t := f.TPM2
	var err error
	r.machines = map[Kind]machines{}
	for _, m := range []struct {
		key  string
		kind Kind
		file machinesFile
	}{{"nitro", KindNitro, f.Nitro}, {"sev_snp", KindSEVSNP, f.SEVSNP}, {"tdx", KindTDX, f.TDX}} {
		if r.machines[m.kind], err = parseMachines(m.kind, m.file); err != nil {
			fault("%s: %w", m.key, err)
		}
	}
	if r.roots, err = parseRoots(t.EKRoots); err != nil {
		fault("tpm2.ek_roots: %w", err)
	}
	for _, h := range t.EKHashes {
		if !isDigest(h) {
			fault("tpm2.ek_hashes: %q is not a SHA-256 in lower-case hexadecimal", clip(h))
		}
	}
	r.ekHashes = t.EKHashes
	r.required = t.RequiredPCRs
	if r.required == nil {
		r.required = []int{0, 1, 2, 3, 4, 5, 6, 7}
	}
	r.zero = t.ZeroPCRs
	for _, p := range slices.Concat(r.required, r.zero) {
		if p < 0 || p >= numPCRs {
			fault("tpm2: PCR %d, want 0 to %d", p, numPCRs-1)
		}
	}
	switch t.EventLog {
	case "", "required":
		r.eventLog = true
	case "optional":
	default:
		fault("tpm2.event_log: %q, want required or optional", clip(t.EventLog))
	}
	if r.features, err = parseFeatures(t.Features); err != nil {
		fault("tpm2.features: %w", err)
	}
	if r.firmware, err = parseFirmware(t.MinimumFirmware); err != nil {
		fault("tpm2.minimum_firmware: %w", err)
	}
	if len(t.Profiles) > maxProfiles {
		fault("tpm2.profiles: %d, want at most %d", len(t.Profiles), maxProfiles)
	}
	for i, p := range t.Profiles {
		parsed, err := parseProfile(p.Name, p.PCRs)
		if err != nil {
			fault("tpm2.profiles[%d]: %w", i, err)
		}
		if slices.ContainsFunc(r.profiles, func(q profile) bool { return q.name == p.Name }) {
			fault("tpm2.profiles[%d]: a second profile %q", i, clip(p.Name))
		}
		r.profiles = append(r.profiles, parsed)
	}
	return errors.Join(faults...)
}

func parseFeatures(wanted map[string]bool) ([]feature, error) {
	var features []feature
	for name, want := range wanted {
		if _, known := (Features{}).get(name); !known {
			return nil, fmt.Errorf("unknown feature %q", clip(name))
		}
		features = append(features, feature{name, TriOf(want)})
	}
	slices.SortFunc(features, func(a, b feature) int { return strings.Compare(a.name, b.name) })
	return features, nil
}

func parseFirmware(versions map[string]string) (map[string]uint64, error) {
	least := map[string]uint64{}
	for maker, text := range versions {
		v, err := strconv.ParseUint(strings.TrimPrefix(text, "0x"), 16, 64)
		if err != nil || maker == "" {
			return nil, fmt.Errorf("%q: %q, want a maker and a hexadecimal version of up to 16 digits", clip(maker), clip(text))
		}
		least[maker] = v
	}
	return least, nil
}

func parseRoots(text string) ([]*x509.Certificate, error) {
	var roots []*x509.Certificate
	rest := []byte(text)
	for {
		block, after := pem.Decode(rest)
		if block == nil {
			break
		}
		rest = after
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil || block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %d is not a certificate", len(roots)+1)
		}
		roots = append(roots, cert)
	}
	if len(bytes.TrimSpace(rest)) != 0 {
		return nil, fmt.Errorf("text after PEM block %d that is no PEM block", len(roots))
	}
	return roots, nil
}

func parseProfile(name string, pcrs map[int][]string) (profile, error) {
	if name == "" || len(pcrs) == 0 {
		return profile{}, errors.New("a profile needs a name and at least one PCR")
	}
	p := profile{name, map[int][][sha256.Size]byte{}}
	for n, values := range pcrs {
		if n < 0 || n >= numPCRs {
			return profile{}, fmt.Errorf("PCR %d, want 0 to %d", n, numPCRs-1)
		}
		if len(values) == 0 || len(values) > maxValues {
			return profile{}, fmt.Errorf("PCR %d: %d values, want 1 to %d", n, len(values), maxValues)
		}
		for _, v := range values {
			if !isDigest(v) {
				return profile{}, fmt.Errorf("PCR %d: %q is not a SHA-256 in lower-case hexadecimal", n, clip(v))
			}
			raw, err := hex.DecodeString(v)
			if err != nil {
				return profile{}, fmt.Errorf("PCR %d: %w", n, err)
			}
			p.pcrs[n] = append(p.pcrs[n], [sha256.Size]byte(raw))
		}
	}
	return p, nil
}

// Version is the operator's name of this edition.
func (r References) Version() string { return r.version }

// Source says where the values come from.
func (r References) Source() string { return r.source }

// Digest is the SHA-256 of the file.
func (r References) Digest() [sha256.Size]byte { return r.digest }

// Window is the time in which the values may be used.
func (r References) Window() (from, until time.Time) { return r.from, r.until }

// ValidAt says whether now lies in the window.
func (r References) ValidAt(now time.Time) bool { return !now.Before(r.from) && now.Before(r.until) }

// EKRoots gives the certificates of makers that may vouch for endorsement keys.
func (r References) EKRoots() []*x509.Certificate { return slices.Clone(r.roots) }

// AllowsEK says whether the endorsement key with this hex SHA-256 (of its PKIX form) needs no certificate.
func (r References) AllowsEK(hash string) bool { return slices.Contains(r.ekHashes, hash) }

// AcceptsDevelopment says whether development devices are taken.
func (r References) AcceptsDevelopment() bool { return r.development }

// stillAnchored says whether what vouched for a device at enrolment is still trusted.
func (r References) stillAnchored(d Device) bool {
	if d.Anchor == "" {
		return r.AllowsEK(d.IdentityHash)
	}
	return slices.ContainsFunc(r.roots, func(c *x509.Certificate) bool {
		sum := sha256.Sum256(c.Raw)
		return hex.EncodeToString(sum[:]) == d.Anchor
	})
}
