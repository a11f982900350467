package devserver_test

import (
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/broker/devserver"
	"github.com/bulla-project/bulla/test/xtest"
)

// stopped starts a server on cfg, lets use have it, and ends it.
func stopped(t *testing.T, cfg devserver.Config, use func(*devserver.Server)) {
	t.Helper()
	s := start(t, cfg)
	use(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	absent(t, filepath.Join(cfg.Dir, "ready"))
}

func absent(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is there (%v)", path, err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestRestartGoesOn(t *testing.T) {
	for _, mode := range []devserver.TPMMode{devserver.TPMOff, devserver.TPMOn} {
		t.Run(string(mode), func(t *testing.T) {
			if mode == devserver.TPMOn {
				xtest.Need(t, "swtpm", "swtpm_setup")
			}
			cfg := devserver.Config{Dir: filepath.Join(t.TempDir(), "d"), TPM: mode}
			// What a restart must not change, as text.
			standing := func(s *devserver.Server) string {
				bundle, err := s.Authority().Bundle().Marshal()
				if err != nil {
					t.Fatal(err)
				}
				return strings.Join([]string{
					s.Addr(), s.HTTPAddr(), s.LogKey(), s.Device().ID.String(), string(bundle),
					read(t, filepath.Join(cfg.Dir, "log.pub")), read(t, filepath.Join(cfg.Dir, "env", "workload.sh")),
				}, "\n")
			}
			var before string
			stopped(t, cfg, func(s *devserver.Server) {
				before = standing(s)
				put(t, s, "demo/high", "high", "kept")
				get(t, dial(t, s.Client("workload")), "demo/high")
			})
			stopped(t, cfg, func(s *devserver.Server) {
				if after := standing(s); after != before {
					t.Errorf("after the restart:\n%s\nbefore:\n%s", after, before)
				}
				if value, _ := get(t, dial(t, s.Client("workload")), "demo/high"); string(value) != "kept" {
					t.Errorf("the secret is %q now", value)
				}
			})
		})
	}
}

func TestSecondServerIsRefused(t *testing.T) {
	cfg := devserver.Config{Dir: filepath.Join(t.TempDir(), "d"), TPM: devserver.TPMOff}
	first := start(t, cfg)
	if _, err := devserver.Start(t.Context(), cfg); !errors.Is(err, devserver.ErrInUse) || !strings.Contains(err.Error(), cfg.Dir) {
		t.Fatalf("a second server: %v, want ErrInUse with the directory", err)
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, "ready")); err != nil {
		t.Errorf("the refused one took away what the first one has: %v", err)
	}
	put(t, first, "demo/hello", "standard", "still there")
}

// TestStaleFilesAreCleared begins with what a kill -9 leaves behind.
func TestStaleFilesAreCleared(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	cfg := devserver.Config{Dir: filepath.Join(t.TempDir(), "d"), TPM: devserver.TPMOff, Log: quiet}
	ready, socket := filepath.Join(cfg.Dir, "ready"), filepath.Join(cfg.Dir, "sock", "stranger.sock")
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		t.Fatal(err)
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	if err := errors.Join(stale.Close(), os.WriteFile(ready, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	// A start that fails removes ready all the same.
	bad := cfg
	bad.Listen = "127.0.0.1:" + taken(t)
	if _, err := devserver.Start(t.Context(), bad); !errors.Is(err, devserver.ErrPort) {
		t.Fatalf("start on a taken port: %v, want ErrPort", err)
	}
	absent(t, ready)
	stopped(t, cfg, func(s *devserver.Server) { dial(t, s.Client("stranger")) })
	absent(t, socket)
}

// taken is a port that somebody listens on.
func taken(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestKeptPortThatIsTaken(t *testing.T) {
	cfg := devserver.Config{Dir: filepath.Join(t.TempDir(), "d"), TPM: devserver.TPMOff}
	cfg.Log = slog.New(slog.DiscardHandler)
	for _, which := range []func(*devserver.Server) string{(*devserver.Server).Addr, (*devserver.Server).HTTPAddr} {
		var address string
		stopped(t, cfg, func(s *devserver.Server) { address = which(s) })
		other, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := devserver.Start(t.Context(), cfg); !errors.Is(err, devserver.ErrPort) || !strings.Contains(err.Error(), address) {
			t.Errorf("start while %s is taken: %v, want ErrPort with the address", address, err)
		}
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
	}
	stopped(t, cfg, func(*devserver.Server) {})
}

func TestLongPathsMoveTheSockets(t *testing.T) {
	xtest.Need(t, "swtpm", "swtpm_setup")
	t.Setenv("TMPDIR", t.TempDir())
	cfg := devserver.Config{Dir: filepath.Join(t.TempDir(), strings.Repeat("long/", 25)), TPM: devserver.TPMOn}
	var dirs []string
	stopped(t, cfg, func(s *devserver.Server) {
		for _, name := range []string{"workload", "operator"} {
			for line := range strings.Lines(read(t, filepath.Join(cfg.Dir, "env", name+".sh"))) {
				_, path, ok := strings.Cut(strings.Trim(strings.TrimSpace(line), "'"), "='unix:")
				if !ok {
					continue
				}
				path = strings.TrimPrefix(path, "//")
				if info, err := os.Stat(path); err != nil || info.Mode().Type() != fs.ModeSocket || len(path) > 104 {
					t.Errorf("%s.sh names %s (%d bytes): %v", name, path, len(path), err)
				}
				dirs = append(dirs, filepath.Dir(path))
			}
		}
		put(t, s, "demo/high", "high", "value")
		get(t, dial(t, s.Client("workload")), "demo/high")
	})
	if len(dirs) != 3 { // Workload API twice, TPM once
		t.Errorf("%d sockets are named, want 3", len(dirs))
	}
	for _, dir := range dirs {
		absent(t, dir)
	}
}

// TestTemporarySocketsOfAKilledServer: the next start removes the directory that a kill -9 left.
func TestTemporarySocketsOfAKilledServer(t *testing.T) {
	cfg := devserver.Config{Dir: filepath.Join(t.TempDir(), strings.Repeat("long/", 25)), TPM: devserver.TPMOff}
	var left string
	stopped(t, cfg, func(s *devserver.Server) {
		left = filepath.Dir(strings.TrimPrefix(s.Client("workload").EndpointSocket, "unix://"))
	})
	if err := os.Mkdir(left, 0o700); err != nil {
		t.Fatal(err)
	}
	stopped(t, cfg, func(*devserver.Server) { absent(t, left) })
}

func TestEnvironmentFiles(t *testing.T) {
	cfg := devserver.Config{Dir: filepath.Join(t.TempDir(), "d"), TPM: devserver.TPMOff}
	s := start(t, cfg)
	sockets := map[string]bool{}
	for _, name := range devserver.Identities() {
		socket := filepath.Join(cfg.Dir, "sock", name+".sock")
		want := "export SPIFFE_ENDPOINT_SOCKET='unix://" + socket + "'\nexport BULLA_ADDR='" + s.Addr() +
			"'\nexport BULLA_SERVER_ID='spiffe://dev.bulla.test/bulla/broker'\n"
		if name == "workload" {
			want += "export BULLA_DEVICE_FILE='" + filepath.Join(cfg.Dir, "device.pem") + "'\n"
		}
		if got := read(t, filepath.Join(cfg.Dir, "env", name+".sh")); got != want {
			t.Errorf("%s.sh:\n%s\nwant:\n%s", name, got, want)
		}
		if c := dial(t, s.Client(name)); c.ID().String() != "spiffe://dev.bulla.test/"+name {
			t.Errorf("the socket of %s gives %s", name, c.ID())
		}
		sockets[socket] = true
	}
	if len(sockets) != 8 {
		t.Errorf("%d sockets for %d identities", len(sockets), len(devserver.Identities()))
	}
	if got := read(t, filepath.Join(cfg.Dir, "log.pub")); got != s.LogKey()+"\n" {
		t.Errorf("log.pub is %q, the key %q", got, s.LogKey())
	}
	if info, err := os.Stat(filepath.Join(cfg.Dir, "ready")); err != nil || info.Size() != 0 {
		t.Errorf("ready: %v, want an empty file", err)
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	for name, cfg := range map[string]devserver.Config{
		"no directory":      {},
		"quote":             {Dir: "/tmp/it's"},
		"newline":           {Dir: "/tmp/two\nlines"},
		"TPM mode":          {Dir: t.TempDir(), TPM: "maybe"},
		"not on loopback":   {Dir: t.TempDir(), Listen: "0.0.0.0:0"},
		"no port":           {Dir: t.TempDir(), Listen: "127.0.0.1"},
		"not a port":        {Dir: t.TempDir(), Listen: "127.0.0.1:99999"},
		"a name, not an IP": {Dir: t.TempDir(), Listen: "example.org:0"},
	} {
		if s, err := devserver.Start(t.Context(), cfg); !errors.Is(err, devserver.ErrConfig) {
			if s != nil {
				_ = s.Close()
			}
			t.Errorf("%s: %v, want ErrConfig", name, err)
		}
	}
}

// TestStateOfAnotherVersionIsRefused: what is not understood is left alone.
func TestStateOfAnotherVersionIsRefused(t *testing.T) {
	cfg := devserver.Config{Dir: filepath.Join(t.TempDir(), "d"), TPM: devserver.TPMOff}
	stopped(t, cfg, func(*devserver.Server) {})
	path := filepath.Join(cfg.Dir, "state.json")
	good := read(t, path)
	for name, text := range map[string]string{
		"other version": strings.Replace(good, `"version": 1`, `"version": 2`, 1),
		"unknown field": strings.Replace(good, "{", `{"more": 1,`, 1),
		"cut":           good[:len(good)/2],
		"empty":         "",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := devserver.Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), path) {
			if s != nil {
				_ = s.Close()
			}
			t.Errorf("%s: %v, want an error that names the file", name, err)
		}
	}
	if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	stopped(t, cfg, func(*devserver.Server) {})
}

// TestNoTPMIsNoStart: --tpm=on without the programs names the packages, and leaves nothing running.
func TestNoTPMIsNoStart(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	cfg := devserver.Config{Dir: filepath.Join(t.TempDir(), "d"), TPM: devserver.TPMOn, Log: slog.New(slog.DiscardHandler)}
	if _, err := devserver.Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "swtpm-tools") {
		t.Fatalf("start: %v, want the packages to install", err)
	}
	absent(t, filepath.Join(cfg.Dir, "ready"))
	cfg.TPM = devserver.TPMAuto
	s := start(t, cfg)
	if d := s.Device(); d.Missing == nil || d.File == "" || d.TPM != "" {
		t.Errorf("without swtpm workload has %+v", d)
	}
}

// TestTPMComesLater: a directory from before swtpm was installed takes it up.
func TestTPMComesLater(t *testing.T) {
	xtest.Need(t, "swtpm", "swtpm_setup")
	cfg := devserver.Config{Dir: filepath.Join(t.TempDir(), "d"), TPM: devserver.TPMOff}
	stopped(t, cfg, func(s *devserver.Server) { put(t, s, "demo/high", "high", "value") })
	cfg.TPM = devserver.TPMOn
	stopped(t, cfg, func(s *devserver.Server) {
		if _, got := get(t, dial(t, s.Client("workload")), "demo/high"); got.Suite != "HPKE-8-KE" {
			t.Errorf("delivered in %s, not to the TPM", got.Suite)
		}
	})
}

// TestEndsWithItsTPM: when a part is gone, Wait says which.
func TestEndsWithItsTPM(t *testing.T) {
	xtest.Need(t, "swtpm", "swtpm_setup")
	dir := filepath.Join(t.TempDir(), "d")
	s := start(t, devserver.Config{Dir: dir, TPM: devserver.TPMOn})
	kill(t, filepath.Join(dir, "tpm", "swtpm.pid"))
	if err := s.Wait(t.Context()); !errors.Is(err, devserver.ErrEnded) || !strings.Contains(err.Error(), "TPM") {
		t.Errorf("Wait: %v, want that the TPM ended", err)
	}
}

// TestRotationDisturbsNobody: SVIDs of 2 s, and a client that outlives several of them.
func TestRotationDisturbsNobody(t *testing.T) {
	s := start(t, devserver.Config{Dir: filepath.Join(t.TempDir(), "d"), TPM: devserver.TPMOff, SVIDTTL: minTTL})
	put(t, s, "demo/hello", "standard", "value")
	workload := dial(t, s.Client("workload"))
	source := s.Client("workload")
	for range 3 {
		before := serial(t, source)
		for serial(t, source) == before {
			get(t, workload, "demo/hello")
		}
	}
}
