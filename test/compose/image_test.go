package compose_test

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/test/xtest"
)

// TestImage builds the image from the program of this tree and lets it do its work, with the narrowest rights
// a container can have: no network, nothing writable but its volume, no capability, no root.
func TestImage(t *testing.T) {
	needEngine(t)
	image := buildImage(t)
	t.Run("holds the program and nothing else", func(t *testing.T) { imageContents(t, image) })
	t.Run("runs as nobody, checks itself", func(t *testing.T) { imageConfig(t, image) })
	t.Run("delivers a secret", func(t *testing.T) { imageDelivers(t, image) })
}

// needEngine leaves the test out where no engine answers: test/run does not start one.
func needEngine(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := exec.CommandContext(ctx, "docker", "version", "--format", "{{.Server.Version}}").Run(); err != nil {
		t.Skip("needs a container engine that `docker version` reaches; test/run does not install one")
	}
}

// buildImage gives the id of an image that is removed when the test ends.
func buildImage(t *testing.T) string {
	t.Helper()
	dir, root := t.TempDir(), xtest.Root(t)
	for _, name := range []string{"Dockerfile", ".dockerignore", "LICENSE", "deploy/empty/.keep"} {
		copyFile(t, filepath.Join(root, name), filepath.Join(dir, name), 0o644)
	}
	copyFile(t, xtest.Binary(t), filepath.Join(dir, "dist/bulla"), 0o755)
	tag := "bulla-test:" + strings.ToLower(rand.Text())
	mustRun(t, "", "docker", "build", "--quiet", "--target", "prebuilt", "--tag", tag, dir)
	t.Cleanup(func() { cleanup(t, "docker", "image", "rm", "--force", tag) })
	return tag
}

func copyFile(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, mode); err != nil {
		t.Fatal(err)
	}
}

// cleanup runs after the test's own context has ended.
func cleanup(t *testing.T, command ...string) {
	t.Helper()
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
}

func imageContents(t *testing.T, image string) {
	container := strings.TrimSpace(mustRun(t, "", "docker", "create", "--network", "none", image))
	t.Cleanup(func() { cleanup(t, "docker", "rm", "--force", container) })
	exported := mustRun(t, "", "docker", "export", container)
	var files, writable []string
	for tr := tar.NewReader(strings.NewReader(exported)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("read the exported image: %v", err)
		}
		// The engine adds empty places of its own under dev and etc to every container.
		if h.Typeflag == tar.TypeReg && h.Size > 0 {
			files = append(files, h.Name)
		}
		if h.Uid != 0 {
			writable = append(writable, h.Name)
		}
	}
	slices.Sort(files)
	slices.Sort(writable)
	if want := []string{"LICENSE", "bulla"}; !slices.Equal(files, want) {
		t.Errorf("files %q, want %q", files, want)
	}
	if want := []string{"var/lib/bulla-kek/", "var/lib/bulla/"}; !slices.Equal(writable, want) {
		t.Errorf("the broker's user owns %q, want %q", writable, want)
	}
}

func imageConfig(t *testing.T, image string) {
	for format, want := range map[string]string{
		"{{.Config.User}}":                  "65532:65532",
		"{{json .Config.Entrypoint}}":       `["/bulla"]`,
		"{{json .Config.Healthcheck.Test}}": `["CMD","/bulla","server","healthcheck"]`,
	} {
		if got := strings.TrimSpace(mustRun(t, "", "docker", "image", "inspect", "--format", format, image)); got != want {
			t.Errorf("%s is %s, want %s", format, got, want)
		}
	}
}

const devDir = "/var/lib/bulla/dev"

func imageDelivers(t *testing.T, image string) {
	container := strings.TrimSpace(mustRun(t, "", "docker", "run", "--detach", "--network", "none", "--read-only",
		"--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp:mode=1777",
		"--volume", "/var/lib/bulla", image, "dev", "--dir", devDir, "--tpm=off"))
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := exec.Command("docker", "logs", container).CombinedOutput()
			t.Logf("the container's log:\n%s", out)
		}
		cleanup(t, "docker", "rm", "--force", "--volumes", container)
	})
	waitReady(t, container)

	value := "canary-" + rand.Text()
	in := func(identity, stdin string, args ...string) string {
		t.Helper()
		command := append([]string{"docker", "exec", "--interactive"}, environment(t, container, identity)...)
		return mustRun(t, stdin, append(append(command, container, "/bulla"), args...)...)
	}
	in("operator", value, "secret", "put", "demo/hello", "--class", "standard")
	if got := in("workload", "", "get", "demo/hello"); got != value {
		t.Errorf("get gives %q, want what was put", got)
	}

	mustRun(t, "", "docker", "stop", "--time", "30", container)
	if code := strings.TrimSpace(mustRun(t, "", "docker", "inspect", "--format", "{{.State.ExitCode}}", container)); code != "0" {
		t.Errorf("after SIGTERM it ended with status %s, want 0", code)
	}
	logs := mustRun(t, "", "docker", "logs", container)
	if strings.Contains(logs, value) {
		t.Error("the secret's value is in the container's log")
	}
}

// waitReady waits until `bulla dev` has written its ready file.
func waitReady(t *testing.T, container string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := run(t, "", "docker", "cp", container+":"+devDir+"/ready", "-")
		if err == nil {
			return
		}
		state := strings.TrimSpace(mustRun(t, "", "docker", "inspect", "--format", "{{.State.Running}}", container))
		if state != "true" || time.Now().After(deadline) {
			t.Fatalf("the container is not ready (running: %s): %v", state, err)
		}
		<-tick.C
	}
}

// environment turns the lines export NAME='value' of an identity's file into flags for docker exec.
func environment(t *testing.T, container, identity string) []string {
	t.Helper()
	archive := mustRun(t, "", "docker", "cp", container+":"+devDir+"/env/"+identity+".sh", "-")
	tr := tar.NewReader(strings.NewReader(archive))
	if _, err := tr.Next(); err != nil {
		t.Fatalf("read %s.sh: %v", identity, err)
	}
	script, err := io.ReadAll(tr)
	if err != nil {
		t.Fatalf("read %s.sh: %v", identity, err)
	}
	flags := []string{"--env", "HOME=/tmp"}
	for line := range strings.Lines(string(script)) {
		assignment, ok := strings.CutPrefix(strings.TrimSpace(line), "export ")
		if !ok {
			continue
		}
		name, quoted, ok := strings.Cut(assignment, "=")
		if !ok || len(quoted) < 2 || quoted[0] != '\'' || quoted[len(quoted)-1] != '\'' {
			t.Fatalf("%s.sh: not export NAME='value': %q", identity, line)
		}
		flags = append(flags, "--env", name+"="+quoted[1:len(quoted)-1])
	}
	return flags
}
