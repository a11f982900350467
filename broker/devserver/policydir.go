package devserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/bulla-project/bulla/attest/tpm/swtpm"
	"github.com/bulla-project/bulla/internal/durable"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/rego"
)

const (
	referencesFile = "references.yaml"
	manifestFile   = "manifest.yaml" // written last: without it the bundle was not written whole
	referencesLife = 10 * 365 * 24 * time.Hour
)

// writePolicy writes the development policy on a first start. Later it touches one file only, references.yaml,
// and that only while nobody has edited it: when a software TPM came in whose authority is not in it.
func (s *Server) writePolicy() error {
	if _, err := os.Stat(s.paths.policyFile(manifestFile)); errors.Is(err, fs.ErrNotExist) {
		if err := s.copyPolicy(); err != nil {
			return fmt.Errorf("write the development policy: %w", err)
		}
	} else if err != nil {
		return err
	}
	if s.tpm == nil {
		return nil
	}
	return s.writeReferences()
}

// copyPolicy writes the shipped bundle. What is there already stays.
func (s *Server) copyPolicy() error {
	bundle := rego.Development()
	write := func(name string) error {
		text, err := fs.ReadFile(bundle, name)
		if err != nil {
			return err
		}
		path := s.paths.policyFile(name)
		if err := mkdir(filepath.Dir(path)); err != nil {
			return err
		}
		if err := durable.CreateFile(path, text, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if name != referencesFile {
			return nil
		}
		return s.keep(func(st *state) { st.References = digestOf(text) })
	}
	err := fs.WalkDir(bundle, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || name == manifestFile {
			return err
		}
		return write(name)
	})
	if err != nil {
		return err
	}
	return write(manifestFile)
}

// writeReferences adds the authority of the software TPM to the reference values.
func (s *Server) writeReferences() error {
	root, err := s.tpm.EKRootPEM()
	if err != nil {
		return err
	}
	path := s.paths.policyFile(referencesFile)
	now, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if bytes.Contains(squeeze(now), squeeze(root)) {
		return nil
	}
	if s.kept().References != digestOf(now) {
		s.cfg.Log.Warn("references.yaml was edited and does not hold the authority of the software TPM: its evidence will not pass", "file", path)
		return nil
	}
	from := time.Now().Add(-time.Hour)
	text := swtpm.ReferenceYAML(root, from, from.Add(referencesLife))
	if err := s.keep(func(st *state) { st.References = digestOf(text) }); err != nil {
		return err
	}
	return durable.WriteFile(path, text, 0o600)
}

// squeeze takes out what indentation changes.
func squeeze(text []byte) []byte { return bytes.Join(bytes.Fields(text), []byte("\n")) }

func digestOf(text []byte) string {
	sum := sha256.Sum256(text)
	return event.Digest(sum).String()
}

// readPolicy reads the directory as it is now.
func readPolicy(dir string) (archive []byte, digest string, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = root.Close() }() // nothing was written
	if archive, err = policy.Pack(root.FS()); err != nil {
		return nil, "", err
	}
	return archive, event.Digest(policy.ArchiveDigest(archive)).String(), nil
}

func policyDigest(dir string) (string, error) {
	_, digest, err := readPolicy(dir)
	return digest, err
}

// reload takes up the directory if its content is another than when it was last taken up, and returns how it
// looked before it was read. A revision that was pushed meanwhile stays while nobody edits the directory.
func (s *Server) reload(ctx context.Context) look {
	seen := lookAt(s.paths.policy())
	archive, digest, err := readPolicy(s.paths.policy())
	if err == nil && digest == s.kept().Policy {
		return seen
	}
	if err == nil {
		err = s.broker.Broker.Reload(ctx, archive, "directory "+s.paths.policy())
	}
	if err == nil {
		err = s.keep(func(st *state) { st.Policy = digest })
	}
	if err != nil && ctx.Err() == nil {
		s.refused(err)
	}
	return seen
}

// refused logs why an edit was not taken up: each fault with its file and line.
func (s *Server) refused(err error) {
	var faults *policy.LoadError
	if !errors.As(err, &faults) {
		s.cfg.Log.Error("the policy directory was not taken up: the active revision stays", "dir", s.paths.policy(), "error", err)
		return
	}
	for _, f := range faults.Faults {
		file := filepath.Join(s.paths.policy(), filepath.FromSlash(f.File))
		if f.Line > 0 {
			file = fmt.Sprintf("%s:%d", file, f.Line)
		}
		s.cfg.Log.Error("the policy directory was not taken up: the active revision stays", "file", file, "check", f.Check, "error", f.Message)
	}
}

// look is what can be seen of a directory without reading its files.
type look map[string]glance

type glance struct {
	size     int64
	modified time.Time
}

// lookAt never fails: what can't be seen now is seen later, and differs then.
func lookAt(dir string) look {
	seen := look{}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			seen[path] = glance{size: -1}
			return nil
		}
		if info, err := d.Info(); err == nil && !d.IsDir() {
			seen[path] = glance{info.Size(), info.ModTime()}
		}
		return nil
	})
	return seen
}

// watchPolicy takes up edits until ctx ends. It waits until the directory holds still for one look, so that
// an edit of several files is one revision.
func (s *Server) watchPolicy(ctx context.Context, taken look) {
	tick := time.NewTicker(s.cfg.PolicyPoll)
	defer tick.Stop()
	for last := taken; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := lookAt(s.paths.policy())
		if still := maps.Equal(now, last); still && !maps.Equal(now, taken) {
			taken = s.reload(ctx)
		}
		last = now
	}
}
