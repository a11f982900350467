package policy

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"

	"github.com/bulla-project/bulla/risk"
)

// ErrRefused says that a revision may not be activated; errors.As with *LoadError gives the faults.
var ErrRefused = errors.New("policy revision refused")

// Entrypoint is the one rule that is asked.
const Entrypoint = "data.bulla.decision"

// Revision is a bundle that passed every check of Load. It never changes and may be shared.
type Revision struct {
	name       string
	archive    []byte
	digest     [sha256.Size]byte
	digestHex  string
	references []byte
	zones      zones
	model      risk.Model
	modelID    string
	persons    persons
	query      rego.PreparedEvalQuery
}

// Name returns the name in the manifest, for people; the digest identifies a revision.
func (r *Revision) Name() string { return r.name }

// Digest returns the SHA-256 of the archive.
func (r *Revision) Digest() [sha256.Size]byte { return r.digest }

// Archive returns the canonical archive; the caller must not change it.
func (r *Revision) Archive() []byte { return r.archive }

// References returns references.yaml, which package attest parses; the caller must not change it.
func (r *Revision) References() []byte { return r.references }

// ModelDigest returns the digest of the risk model in hexadecimal.
func (r *Revision) ModelDigest() string { return r.modelID }

// Fault is one reason why a bundle was refused. Line is 0 if the fault is not at a line.
type Fault struct {
	File    string
	Line    int
	Check   string // format, files, risk, zones, data, canaries, compile, tests, invariants
	Message string
}

func (f Fault) String() string {
	switch {
	case f.File == "":
		return f.Check + ": " + f.Message
	case f.Line == 0:
		return f.File + ": " + f.Check + ": " + f.Message
	}
	return fmt.Sprintf("%s:%d: %s: %s", f.File, f.Line, f.Check, f.Message)
}

// LoadError holds every fault that was found. It wraps ErrRefused.
type LoadError struct{ Faults []Fault }

func (e *LoadError) Error() string {
	lines := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		lines[i] = f.String()
	}
	return ErrRefused.Error() + ": " + strings.Join(lines, "; ")
}

// Unwrap makes errors.Is(err, ErrRefused) hold.
func (e *LoadError) Unwrap() error { return ErrRefused }

// ArchiveDigest returns what Revision.Digest would, also for an archive that Load would refuse.
func ArchiveDigest(archive []byte) [sha256.Size]byte { return sha256.Sum256(archive) }

// bundle is what the files of an archive say, before Rego is compiled.
type bundle struct {
	name     string
	files    map[string][]byte
	zones    zones
	model    risk.Model
	data     ast.Object
	persons  persons
	canaries []canary
	policy   map[string]*ast.Module // without tests
	tests    map[string]*ast.Module
}

type manifest struct {
	Format int    `yaml:"format"`
	Name   string `yaml:"name"`
}

// readBundle parses every file and reports all faults.
func readBundle(files map[string][]byte) (*bundle, []Fault) {
	b := &bundle{files: files, data: ast.NewObject(), policy: map[string]*ast.Module{}, tests: map[string]*ast.Module{}}
	var faults []Fault
	fail := func(file, check string, err error) {
		faults = append(faults, Fault{File: file, Check: check, Message: err.Error()})
	}
	var m manifest
	if err := strictYAML(files[fileManifest], &m); err != nil {
		fail(fileManifest, "files", err)
	} else if m.Format != 1 || !zoneName.MatchString(m.Name) {
		fail(fileManifest, "files", errors.New("want format: 1 and a name of a-z, 0-9, _ and -"))
	}
	b.name = m.Name
	var err error
	if b.model, err = risk.ParseModel(files[fileRisk]); err != nil {
		fail(fileRisk, "risk", err)
	}
	if b.zones, err = parseZones(files[fileZones]); err != nil {
		fail(fileZones, "zones", err)
	} else if b.model.Digest() != "" {
		for _, zone := range b.zones.names {
			if !b.model.Weighs(zone) {
				fail(fileZones, "zones", fmt.Errorf("zone %q has no severity in %s", zone, fileRisk))
			}
		}
	}
	if b.canaries, err = parseCanaries(files[fileCanaries]); err != nil {
		fail(fileCanaries, "canaries", err)
	}
	for _, name := range sortedNames(files) {
		switch {
		case dataName.MatchString(name):
			b.addData(name, fail)
		case regoName.MatchString(name):
			faults = append(faults, b.addModule(name)...)
		}
	}
	if b.persons, err = readPersons(b.data); err != nil {
		fail(filePersons, "data", err)
	}
	return b, faults
}

func (b *bundle) addData(name string, fail func(file, check string, err error)) {
	root := dataName.FindStringSubmatch(name)[1]
	if root == "bulla" {
		fail(name, "data", errors.New("the name bulla is for the policy's own package"))
		return
	}
	v, err := dataValue(b.files[name])
	if err != nil {
		fail(name, "data", err)
		return
	}
	b.data.Insert(ast.StringTerm(root), ast.NewTerm(v))
}

func (b *bundle) addModule(name string) []Fault {
	text := b.files[name]
	if len(text) > maxRegoSize {
		return []Fault{{File: name, Check: "compile", Message: fmt.Sprintf("it has %d bytes, at most %d are allowed", len(text), maxRegoSize)}}
	}
	m, err := ast.ParseModuleWithOpts(name, string(text), ast.ParserOptions{
		RegoVersion: ast.RegoV1, Capabilities: capabilities(), ProcessAnnotation: true,
	})
	if err != nil {
		return regoFaults(name, err)
	}
	path := m.Package.Path
	if len(path) < 2 || !path[1].Equal(ast.StringTerm("bulla")) {
		return []Fault{{File: name, Line: m.Package.Location.Row, Check: "compile", Message: "the package must be bulla or below it"}}
	}
	if strings.HasSuffix(name, "_test.rego") {
		b.tests[name] = m
	} else {
		b.policy[name] = m
	}
	return nil
}

// regoFaults turns errors of the parser and the compiler into faults with their places.
func regoFaults(file string, err error) []Fault {
	var list ast.Errors
	if !errors.As(err, &list) {
		return []Fault{{File: file, Check: "compile", Message: err.Error()}}
	}
	out := make([]Fault, 0, len(list))
	for _, e := range list {
		f := Fault{File: file, Check: "compile", Message: e.Message}
		if e.Location != nil {
			f.File, f.Line = e.Location.File, e.Location.Row
		}
		out = append(out, f)
	}
	return out
}
