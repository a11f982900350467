package story_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"

	"github.com/bulla-project/bulla/broker/devserver"
	"github.com/bulla-project/bulla/cmd/bulla/internal/story"
)

// TestAStepThatDoesNotHoldEndsTheStory breaks the export in two ways: the step that notices it fails, the later
// ones are not claimed, and everything is cleared away all the same.
func TestAStepThatDoesNotHoldEndsTheStory(t *testing.T) {
	broken := errors.New("no export")
	for name, export := range map[string]func(context.Context, *grpc.ClientConn, string) error{
		"no export":      func(context.Context, *grpc.ClientConn, string) error { return broken },
		"another export": func(_ context.Context, _ *grpc.ClientConn, dir string) error { return forge(dir) },
	} {
		t.Run(name, func(t *testing.T) {
			temp := t.TempDir()
			t.Setenv("TMPDIR", temp)
			told := 0
			steps := story.Tell(t.Context(), story.Config{TPM: devserver.TPMOff, Export: export, Say: func(story.Step) { told++ }})
			if story.Held(steps) {
				t.Error("every step is said to have held")
			}
			if told != len(steps) {
				t.Errorf("%d of %d steps were told", told, len(steps))
			}
			for _, s := range steps {
				if want := s.Name != "verify-log" && s.Name != "detect-tampering"; s.OK != want {
					t.Errorf("%s: ok %t: %s", s.Name, s.OK, s.Detail)
				}
			}
			if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v %v", left, err)
			}
		})
	}
}

// forge writes something that is no export.
func forge(dir string) error {
	return errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "checkpoint"), []byte("dev.bulla.test/log\n"), 0o600))
}

// TestInterrupted: a story that is called off says so at each step and leaves nothing.
func TestInterrupted(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	ctx, cancel := context.WithCancel(t.Context())
	export := func(context.Context, *grpc.ClientConn, string) error { return nil }
	steps := story.Tell(ctx, story.Config{TPM: devserver.TPMOff, Export: export, Say: func(s story.Step) {
		if s.Name == "permit" {
			cancel()
		}
	}})
	after := false
	for _, s := range steps {
		if s.OK == after {
			t.Errorf("%s: ok %t: %s", s.Name, s.OK, s.Detail)
		}
		after = after || s.Name == "permit"
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
