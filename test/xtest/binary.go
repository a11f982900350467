package xtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// BinaryEnv names a bulla binary that is already built. test/run sets it, so that the packages which start
// the program link it once between them and not once each.
const BinaryEnv = "BULLA_TEST_BINARY"

// built is the one binary of this test process. It is written once, under the sync.Once inside.
var built = sync.OnceValues(buildBinary)

// Binary gives the absolute path of a bulla binary built without cgo from this tree. The first call in a
// test process builds it, unless BULLA_TEST_BINARY names one.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Root gives the absolute path of the repository: the folder of the product's go.mod.
func Root(t testing.TB) string {
	t.Helper()
	root, err := repositoryRoot()
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func buildBinary() (string, error) {
	if path := os.Getenv(BinaryEnv); path != "" {
		return namedBinary(path)
	}
	root, err := repositoryRoot()
	if err != nil {
		return "", err
	}
	// One place per checkout and not a new temporary folder per process: nothing is left over by a test
	// that was killed, and a second run links nothing when nothing changed.
	dir := filepath.Join(root, "dist", "test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make a folder for the test binary: %w", err)
	}
	tmp, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return "", fmt.Errorf("make a folder for the test binary: %w", err)
	}
	defer os.RemoveAll(tmp)
	fresh := filepath.Join(tmp, "bulla")
	// The flags of `go test`, so that everything but the link comes from the build cache.
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", fresh, "./cmd/bulla")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build ./cmd/bulla: %w\n%s", err, out)
	}
	// Renamed into place, because another test process may be running the previous one.
	path := filepath.Join(dir, "bulla")
	if err := os.Rename(fresh, path); err != nil {
		return "", fmt.Errorf("put the test binary in place: %w", err)
	}
	return path, nil
}

func namedBinary(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("resolve %s=%q: %w", BinaryEnv, path, err)
	}
	info, err := os.Stat(abs)
	if err != nil {
		return "", fmt.Errorf("%s names no program: %w", BinaryEnv, err)
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return "", fmt.Errorf("%s=%q is not an executable file", BinaryEnv, path)
	}
	return abs, nil
}

// repositoryRoot goes by the place of this source file, and asks the go command where the tests were built
// with -trimpath, which takes the place away.
func repositoryRoot() (string, error) {
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		return filepath.Dir(filepath.Dir(filepath.Dir(file))), nil
	}
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}
