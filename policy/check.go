package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/format"
)

func isTest(name string) bool { return strings.HasSuffix(name, "_test.rego") }

// CheckDir checks a bundle in a directory as an author wants it: the form of each file, the format of the
// Rego as opa fmt writes it, strict compilation against the schema of the input, tests, canaries and the
// invariants that hold for every site. It returns the faults, or an error if the directory can't be read.
func CheckDir(ctx context.Context, dir string) ([]Fault, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("policy bundle: %w", err)
	}
	defer func() { _ = root.Close() }() // nothing was written
	return CheckFS(ctx, root.FS())
}

// CheckFS is CheckDir for a file system.
func CheckFS(ctx context.Context, fsys fs.FS) ([]Fault, error) {
	archive, err := Pack(fsys)
	if err != nil {
		return nil, err
	}
	files, err := Unpack(archive)
	if err != nil {
		return nil, err
	}
	faults := checkFormat(files)
	_, err = Load(ctx, archive, Invariants{})
	var refused *LoadError
	switch {
	case errors.As(err, &refused):
		return append(faults, refused.Faults...), nil
	case err != nil:
		return nil, err
	}
	return faults, nil
}

func checkFormat(files map[string][]byte) []Fault {
	var faults []Fault
	for _, name := range sortedNames(files) {
		if !regoName.MatchString(name) || len(files[name]) > maxRegoSize {
			continue
		}
		want, err := format.SourceWithOpts(name, files[name], format.Opts{RegoVersion: ast.RegoV1})
		if err != nil {
			continue // Load reports what does not parse
		}
		if !bytes.Equal(want, files[name]) {
			faults = append(faults, Fault{
				File: name, Line: firstDifference(want, files[name]), Check: "format",
				Message: "not in the form that opa fmt writes",
			})
		}
	}
	return faults
}

func firstDifference(a, b []byte) int {
	line := 1
	for i := 0; i < len(a) && i < len(b) && a[i] == b[i]; i++ {
		if a[i] == '\n' {
			line++
		}
	}
	return line
}

// TestDir runs the tests of a bundle in a directory and measures how much of the policy they reach. A bundle
// that can't be tested because it is malformed gives a *LoadError.
func TestDir(ctx context.Context, dir string) (TestReport, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return TestReport{}, fmt.Errorf("policy bundle: %w", err)
	}
	defer func() { _ = root.Close() }() // nothing was written
	return TestFS(ctx, root.FS())
}

// TestFS is TestDir for a file system.
func TestFS(ctx context.Context, fsys fs.FS) (TestReport, error) {
	archive, err := Pack(fsys)
	if err != nil {
		return TestReport{}, err
	}
	files, err := Unpack(archive)
	if err != nil {
		return TestReport{}, err
	}
	b, faults := readBundle(files)
	if len(faults) > 0 {
		return TestReport{}, refuse(faults...)
	}
	ctx, cancel := context.WithTimeout(ctx, loadLimit)
	defer cancel()
	report, faults := b.runTests(ctx, cover.New())
	if len(faults) > 0 {
		return report, refuse(faults...)
	}
	return report, nil
}
