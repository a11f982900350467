// Package compose_test checks what is shipped for containers: docker-compose.yaml and the files it mounts, and
// where an engine is present the image itself, built and started with the development authority inside, since
// SPIRE's images can't be had everywhere. It does not start the whole composition.
package compose_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/bulla-project/bulla/test/xtest"
)

// composition is the part of docker-compose.yaml that the tests look at.
type composition struct {
	Services map[string]service `yaml:"services"`
	Volumes  map[string]any     `yaml:"volumes"`
}

type service struct {
	Image       string            `yaml:"image"`
	User        string            `yaml:"user"`
	Command     []string          `yaml:"command"`
	Volumes     []string          `yaml:"volumes"`
	Environment map[string]string `yaml:"environment"`
	Build       *struct {
		Target string `yaml:"target"`
	} `yaml:"build"`
}

func load(t *testing.T) composition {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(xtest.Root(t), "docker-compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var c composition
	if err := yaml.Unmarshal(data, &c); err != nil {
		t.Fatalf("docker-compose.yaml: %v", err)
	}
	if len(c.Services) == 0 {
		t.Fatal("docker-compose.yaml has no services")
	}
	return c
}

// TestComposeAccepts asks the real tool, the plugin or the older program, whichever is here.
func TestComposeAccepts(t *testing.T) {
	command := composeCommand(t)
	command = append(command, "config", "--quiet")
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = xtest.Root(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
}

func composeCommand(t *testing.T) []string {
	t.Helper()
	if exec.Command("docker", "compose", "version").Run() == nil {
		return []string{"docker", "compose"}
	}
	xtest.Need(t, "docker-compose")
	return []string{"docker-compose"}
}

// TestComposeImagesArePinned: what is pulled has an exact version, and what has none is built from here.
func TestComposeImagesArePinned(t *testing.T) {
	exact := regexp.MustCompile(`^[a-z0-9./-]+:[0-9]+\.[0-9]+\.[0-9]+$`)
	for name, s := range load(t).Services {
		if s.Build == nil && !exact.MatchString(s.Image) {
			t.Errorf("service %s pulls %q, which is no exact version", name, s.Image)
		}
	}
	for _, line := range lines(t, "Dockerfile") {
		image, ok := strings.CutPrefix(line, "FROM ")
		if !ok {
			continue
		}
		image, _, _ = strings.Cut(image, " AS ")
		if strings.Contains(image, ":") && !regexp.MustCompile(`:[0-9]+\.[0-9]+\.[0-9]+(-[a-z]+)?$`).MatchString(image) {
			t.Errorf("Dockerfile starts from %q, which is no exact version", image)
		}
	}
}

// TestComposeMountsExist: an engine makes a folder in place of a missing file and says nothing.
func TestComposeMountsExist(t *testing.T) {
	root := xtest.Root(t)
	c := load(t)
	for name, s := range c.Services {
		for _, v := range s.Volumes {
			source, _, _ := strings.Cut(v, ":")
			if !strings.HasPrefix(source, "./") {
				if _, ok := c.Volumes[source]; !ok {
					t.Errorf("service %s mounts the volume %q, which is not declared", name, source)
				}
				continue
			}
			if _, err := os.Stat(filepath.Join(root, source)); err != nil {
				t.Errorf("service %s mounts what is not there: %v", name, err)
			}
		}
	}
}

// TestComposeUsersAreRegistered: SPIRE tells the workloads apart by user id, so that each service which talks
// to the broker needs an entry for its own, and no two may share one.
func TestComposeUsersAreRegistered(t *testing.T) {
	entries := registrations(t)
	callers := 0
	for name, s := range load(t).Services {
		if s.Environment["BULLA_ADDR"] == "" {
			continue
		}
		callers++
		uid, _, _ := strings.Cut(s.User, ":")
		path, ok := entries[uid]
		if !ok {
			t.Errorf("service %s runs as user %q, for which register.sh has no entry", name, s.User)
		}
		if path == "bulla/broker" {
			t.Errorf("service %s runs under the broker's user id", name)
		}
	}
	if callers < 2 {
		t.Errorf("%d services call the broker, want the seed and the workload at least", callers)
	}
	broker, want := "", "bulla/broker"
	for _, line := range lines(t, "Dockerfile") {
		if user, ok := strings.CutPrefix(line, "USER "); ok {
			broker, _, _ = strings.Cut(user, ":")
		}
	}
	if got := entries[broker]; got != want {
		t.Errorf("the image's user %s is registered as %q, want %q", broker, got, want)
	}
}

// TestComposePolicyLoads puts the policy together as the broker's mounts do, and lets the program judge it: its
// tests, its canaries, and that no file of it is left over.
func TestComposePolicyLoads(t *testing.T) {
	root, dir := xtest.Root(t), filepath.Join(t.TempDir(), "policy")
	mounts := 0
	for _, v := range load(t).Services["broker"].Volumes {
		source, rest, _ := strings.Cut(v, ":")
		target, _, _ := strings.Cut(rest, ":")
		below, ok := strings.CutPrefix(target, "/etc/bulla/policy")
		if !ok {
			continue
		}
		mounts++
		source, target = filepath.Join(root, source), filepath.Join(dir, below)
		if below == "" {
			if err := os.CopyFS(target, os.DirFS(source)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		// The engine can't make the place for a mount in a folder that is mounted read-only.
		if _, err := os.Stat(target); err != nil {
			t.Errorf("%s is laid over a file that the shipped policy does not have: %v", v, err)
		}
		copyFile(t, source, target, 0o644)
	}
	if mounts < 2 {
		t.Fatalf("the broker mounts %d parts of a policy", mounts)
	}
	mustRun(t, "", xtest.Binary(t), "policy", "check", dir)
}

// registrations reads "register ENTRY UID PATH" lines: paths of SPIFFE IDs by user id.
func registrations(t *testing.T) map[string]string {
	t.Helper()
	entries := map[string]string{}
	for _, line := range lines(t, "deploy/compose/register.sh") {
		fields := strings.Fields(line)
		if len(fields) != 4 || fields[0] != "register" {
			continue
		}
		if other, twice := entries[fields[2]]; twice {
			t.Errorf("user id %s is registered for %s and for %s", fields[2], other, fields[3])
		}
		entries[fields[2]] = fields[3]
	}
	if len(entries) == 0 {
		t.Fatal("register.sh registers nothing")
	}
	return entries
}

func lines(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(xtest.Root(t), path))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(data), "\n")
}

// run runs a program with a limit on its time and gives its standard output.
func run(t *testing.T, stdin string, command ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", strings.Join(command, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

func mustRun(t *testing.T, stdin string, command ...string) string {
	t.Helper()
	out, err := run(t, stdin, command...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
