package devserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/bulla-project/bulla/internal/durable"
)

const (
	maxSocketPath = 104 // bytes; some systems have no more room in sockaddr_un
	maxState      = 64 << 10
	stateVersion  = 1
	socketSuffix  = ".sock"
	tempPrefix    = "bulla-dev-"
)

// paths are the places below the directory.
type paths struct{ dir string }

func (p paths) lock() string               { return filepath.Join(p.dir, "lock") }
func (p paths) ready() string              { return filepath.Join(p.dir, "ready") }
func (p paths) state() string              { return filepath.Join(p.dir, "state.json") }
func (p paths) logPub() string             { return filepath.Join(p.dir, "log.pub") }
func (p paths) env() string                { return filepath.Join(p.dir, "env") }
func (p paths) envFile(n string) string    { return filepath.Join(p.env(), n+".sh") }
func (p paths) sockets() string            { return filepath.Join(p.dir, "sock") }
func (p paths) authority() string          { return filepath.Join(p.dir, "authority") }
func (p paths) broker() string             { return filepath.Join(p.dir, "broker") }
func (p paths) kek() string                { return filepath.Join(p.dir, "kek") }
func (p paths) tpm() string                { return filepath.Join(p.dir, "tpm") }
func (p paths) device() string             { return filepath.Join(p.dir, "device.pem") }
func (p paths) policy() string             { return filepath.Join(p.dir, "policy") }
func (p paths) policyFile(n string) string { return filepath.Join(p.policy(), filepath.FromSlash(n)) }

// state is what a start has to know of the one before. It is kept as canonical JSON.
type state struct {
	Version     int    `json:"version"`
	Initialised bool   `json:"initialised"` // the ledger has its first events
	Listen      string `json:"listen"`      // the broker's address
	HTTP        string `json:"http"`        // of /live and /ready
	Sockets     string `json:"sockets"`     // temporary directory of the sockets; "": below the directory
	Policy      string `json:"policy"`      // digest of the policy directory as it was last taken up
	References  string `json:"references"`  // digest of references.yaml as this program wrote it
	Device      string `json:"device"`      // the device of workload that was last enrolled or found enrolled
}

func (st state) encode() ([]byte, error) {
	b, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(b, '\n'), nil
}

func readState(path string) (state, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return state{Version: stateVersion}, nil
	}
	if err != nil {
		return state{}, err
	}
	defer func() { _ = f.Close() }() // nothing was written
	data, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err != nil {
		return state{}, fmt.Errorf("read %s: %w", path, err)
	}
	st, err := parseState(data)
	if err != nil {
		return state{}, fmt.Errorf("%s %w: begin anew in another directory, or restore the file", path, err)
	}
	return st, nil
}

// parseState refuses everything that encode does not give.
func parseState(data []byte) (state, error) {
	var st state
	if len(data) > maxState {
		return state{}, errors.New("is too large")
	}
	if err := json.Unmarshal(data, &st); err != nil {
		return state{}, errors.New("is not JSON of a development server's state")
	}
	if again, err := st.encode(); err != nil || !bytes.Equal(again, data) || st.Version != stateVersion {
		return state{}, errors.New("was not written by this version of the program")
	}
	return st, nil
}

// keep changes the state and writes it.
func (s *Server) keep(change func(*state)) error {
	s.stateMu.Lock()
	defer s.stateMu.Unlock()
	next := s.state
	change(&next)
	if next == s.state {
		return nil
	}
	data, err := next.encode()
	if err != nil {
		return err
	}
	if err := durable.WriteFile(s.paths.state(), data, 0o600); err != nil {
		return err
	}
	s.state = next
	return nil
}

// kept is the state as it is now.
func (s *Server) kept() state {
	s.stateMu.Lock()
	defer s.stateMu.Unlock()
	return s.state
}

// takeLock makes the directory and takes it for this process; the lock goes with the returned file, in which
// the number of the process stands.
func takeLock(dir, path string) (*os.File, error) {
	if err := mkdir(dir); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := ""
		if raw, err := io.ReadAll(io.LimitReader(f, 16)); err == nil {
			if pid, err := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil {
				holder = fmt.Sprintf(" (process %d)", pid)
			}
		}
		return nil, errors.Join(fmt.Errorf("%w: another `bulla dev`%s runs in %s: end it, or choose another --dir", ErrInUse, holder, dir), f.Close())
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

func mkdir(path string) error { return os.MkdirAll(path, 0o700) }

// sockets is the directory of the Workload API sockets.
type sockets struct {
	dir       string
	temporary string // the same, where it goes at the end; else ""
}

func (s sockets) path(name string) string { return filepath.Join(s.dir, name+socketSuffix) }

// placeSockets chooses where sockets go: below the directory, or where their paths would be too long or can't
// be written as a URI, in a short temporary one.
func placeSockets(p paths) (sockets, error) {
	in := sockets{dir: p.sockets()}
	if fits(in) {
		return in, mkdir(in.dir)
	}
	for _, base := range []string{os.TempDir(), "/tmp"} {
		dir, err := os.MkdirTemp(base, tempPrefix) // mode 0700
		if err != nil {
			continue
		}
		short := sockets{dir: dir, temporary: dir}
		if fits(short) {
			return short, nil
		}
		if err := os.Remove(dir); err != nil {
			return sockets{}, err
		}
	}
	return sockets{}, fmt.Errorf("%w: sockets below %s would have paths of more than %d bytes, and no short temporary directory can be made: choose a shorter --dir",
		ErrConfig, p.dir, maxSocketPath)
}

func fits(s sockets) bool {
	for _, name := range append(Identities(), brokerSocket) {
		if len(s.path(name)) > maxSocketPath {
			return false
		}
	}
	return strings.IndexFunc(s.dir, func(r rune) bool { return !plain(r) }) < 0
}

// plain says whether a character means itself in a URI's path, unescaped.
func plain(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-~+=@", r)
}

// quotable says whether a path can stand between single quotes, on one line.
func quotable(path string) bool {
	return strings.IndexFunc(path, func(r rune) bool { return r == '\'' || r < ' ' || r == 0x7f || r == '\uFFFD' }) < 0
}

// remove removes the directory, if it is a temporary one. The authority has removed the sockets.
func (s sockets) remove() error {
	if s.temporary == "" {
		return nil
	}
	if err := os.Remove(s.temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the directory of the sockets: %w", err)
	}
	return nil
}

// clearSockets removes the sockets of an earlier process: the lock says that it is gone. Of a temporary
// directory it removes sockets that this program made, and nothing else.
func clearSockets(p paths, temporary string) error {
	dirs := []string{p.sockets()}
	if temporary != "" && strings.HasPrefix(filepath.Base(temporary), tempPrefix) {
		dirs = append(dirs, temporary)
	}
	for _, dir := range dirs {
		for _, name := range append(Identities(), brokerSocket) {
			path := sockets{dir: dir}.path(name)
			if info, err := os.Lstat(path); err != nil || info.Mode().Type() != fs.ModeSocket {
				continue
			}
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove a stale socket: %w", err)
			}
		}
	}
	for _, dir := range dirs[1:] {
		_ = os.Remove(dir) // goes if it is empty; what others put there stays
	}
	return nil
}

// checkLoopback takes host:port with a host that can't be reached from elsewhere.
func checkLoopback(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%w: listen %q is not host:port", ErrConfig, address)
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return fmt.Errorf("%w: listen %q has no valid port", ErrConfig, address)
	}
	if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
		return fmt.Errorf("%w: listen %q: a development server listens on loopback only, such as %s", ErrConfig, address, defaultListen)
	}
	return nil
}
