// Package device is the client side of TPM attestation: it enrols the TPM of the machine it runs on, makes keys
// that live in it, and shows evidence. It speaks to the kernel's resource manager ("device:/dev/tpmrm0") or to
// the socket of a software TPM ("unix:/path").
//
// A software TPM serves one connection at a time, and several processes may share it. So nothing is held: each
// operation connects, loads what it needs, works, flushes and closes, and waits for its turn for a bounded
// time. What a [Key] holds between operations is its private part as the TPM wrapped it, which is of use in
// this TPM only and ends with the process.
//
// It verifies nothing: what it sends is judged by attest/tpm, in the broker. It changes no PCR, and stores
// nothing in the TPM.
package device

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"

	"github.com/bulla-project/bulla/attest/tpm/evidence"
)

var (
	// ErrAddress is wrapped when an address is neither unix:PATH nor device:PATH.
	ErrAddress = errors.New("not a TPM address")
	// ErrUnavailable is wrapped when the TPM can't be reached, or does not answer in time.
	ErrUnavailable = errors.New("TPM can't be reached")
)

const (
	connectWait = 10 * time.Second       // how long a socket may be busy
	absentWait  = time.Second            // how long it may be absent: a software TPM that is started again
	retryPause  = 20 * time.Millisecond  // between attempts to connect
	answerWait  = 30 * time.Second       // for one operation, its turn in the queue included
	maxResponse = 8 << 10                // bytes
	kernelLog   = "/sys/kernel/security" // TPM/binary_bios_measurements below it

	// LogSuffix is appended to the path of a software TPM's socket to get the path of its event log.
	LogSuffix = ".eventlog"
)

// A TPM is one that can be reached under an address. Its methods are safe for concurrent use, in this process
// and in others.
type TPM struct {
	network, path string
	logPath       string

	mu sync.Mutex // one operation of this process at a time
}

// Open parses addr ("unix:PATH" or "device:PATH", paths absolute) and makes sure that a TPM 2.0 answers there.
func Open(ctx context.Context, addr string) (*TPM, error) {
	network, path, ok := strings.Cut(addr, ":")
	if !ok || (network != "unix" && network != "device") || !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%w: %q, want unix:/path or device:/path", ErrAddress, addr)
	}
	t := &TPM{network: network, path: path}
	switch network {
	case "unix":
		t.logPath = path + LogSuffix
	case "device":
		name := strings.Replace(filepath.Base(path), "tpmrm", "tpm", 1)
		t.logPath = filepath.Join(kernelLog, name, "binary_bios_measurements")
	}
	err := t.do(ctx, func(c transport.TPM) error {
		_, err := tpm2.GetCapability{
			Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTFamilyIndicator), PropertyCount: 1,
		}.Execute(c)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", addr, err)
	}
	return t, nil
}

// Address gives the address that t was opened with.
func (t *TPM) Address() string { return t.network + ":" + t.path }

// do connects, calls f, and closes.
func (t *TPM) do(ctx context.Context, f func(transport.TPM) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	c, err := t.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if t.network == "unix" {
		// The one connection there is belongs to us, so what is loaded was left by a process that died.
		if err := flushStale(c); err != nil {
			return fmt.Errorf("flush what another process left: %w", err)
		}
	}
	return f(c)
}

func (t *TPM) connect(ctx context.Context) (transport.TPMCloser, error) {
	if t.network == "device" {
		c, err := linuxtpm.Open(t.path)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		return c, nil
	}
	wait, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	begun := time.Now()
	for {
		c, err := new(net.Dialer).DialContext(wait, "unix", t.path)
		if err == nil {
			return newSocket(ctx, c), nil
		}
		if !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if errors.Is(err, fs.ErrNotExist) && time.Since(begun) > absentWait {
			return nil, fmt.Errorf("%w: there is no socket %s: is swtpm running?", ErrUnavailable, t.path)
		}
		select {
		case <-wait.Done():
			return nil, fmt.Errorf("%w: gave up after %s: %w", ErrUnavailable, connectWait, err)
		case <-time.After(retryPause):
		}
	}
}

// socket is a connection to a software TPM, which frames nothing: the length stands in the response's header.
type socket struct {
	conn net.Conn
	stop func() bool
}

func newSocket(ctx context.Context, c net.Conn) *socket {
	if deadline, ok := ctx.Deadline(); ok {
		// An error here would mean a closed connection, which the first command reports.
		_ = c.SetDeadline(deadline)
	}
	return &socket{c, context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })}
}

// Send implements transport.TPM.
func (s *socket) Send(command []byte) ([]byte, error) {
	if _, err := s.conn.Write(command); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	const header = 10
	response := make([]byte, header)
	if _, err := io.ReadFull(s.conn, response); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	n := binary.BigEndian.Uint32(response[2:])
	if n < header || n > maxResponse {
		return nil, fmt.Errorf("%w: it announces a response of %d bytes", ErrUnavailable, n)
	}
	response = append(response, make([]byte, n-header)...)
	if _, err := io.ReadFull(s.conn, response[header:]); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return response, nil
}

// Close implements transport.TPMCloser.
func (s *socket) Close() error {
	s.stop()
	return s.conn.Close()
}

// flushStale frees the slots of transient objects and sessions.
func flushStale(c transport.TPM) error {
	for _, base := range []tpm2.TPMHandle{transientBase, sessionBase} {
		r, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(base), PropertyCount: 32}.Execute(c)
		if err != nil {
			return err
		}
		list, err := r.CapabilityData.Data.Handles()
		if err != nil {
			return err
		}
		for _, h := range list.Handle {
			if h>>24 != base>>24 {
				continue
			}
			if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(c); err != nil {
				return err
			}
		}
	}
	return nil
}

const (
	transientBase tpm2.TPMHandle = 0x80000000
	sessionBase   tpm2.TPMHandle = 0x02000000
)

// flush frees a transient object; persistent ones stay.
func flush(c transport.TPM, h tpm2.TPMHandle) {
	if h>>24 == transientBase>>24 {
		// A failure leaves a slot occupied until the connection ends or the next operation flushes it.
		_, _ = tpm2.FlushContext{FlushHandle: h}.Execute(c)
	}
}

// An object is one that is loaded.
type object struct {
	tpm2.NamedHandle
	public tpm2.TPMTPublic
}

func (o object) auth() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: o.Handle, Name: o.Name, Auth: tpm2.PasswordAuth(nil)}
}

// primary makes (again) the primary key that a template determines.
func primary(c transport.TPM, hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) (object, error) {
	r, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)}.Execute(c)
	if err != nil {
		return object{}, err
	}
	public, err := r.OutPublic.Contents()
	if err != nil {
		flush(c, r.ObjectHandle)
		return object{}, err
	}
	return object{tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}, *public}, nil
}

// persistent gives the object at a persistent handle, if there is one.
func persistent(c transport.TPM, h tpm2.TPMHandle) (object, bool) {
	r, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(c)
	if err != nil {
		return object{}, false
	}
	public, err := r.OutPublic.Contents()
	if err != nil {
		return object{}, false
	}
	return object{tpm2.NamedHandle{Handle: h, Name: r.Name}, *public}, true
}

// attestationKey makes the attestation key: the same after each boot.
func attestationKey(c transport.TPM) (object, error) {
	ak, err := primary(c, tpm2.TPMRHEndorsement, evidence.AKTemplate())
	if err != nil {
		return object{}, fmt.Errorf("attestation key: %w", err)
	}
	return ak, nil
}

// storageKey gives the parent of keys: the one that the system provisioned, or else a primary.
func storageKey(c transport.TPM) (object, error) {
	const provisioned tpm2.TPMHandle = 0x81000001
	if o, ok := persistent(c, provisioned); ok && o.public.Type == tpm2.TPMAlgECC && o.public.ObjectAttributes.Restricted && o.public.ObjectAttributes.Decrypt {
		return o, nil
	}
	o, err := primary(c, tpm2.TPMRHOwner, tpm2.ECCSRKTemplate)
	if err != nil {
		return object{}, fmt.Errorf("storage key: %w", err)
	}
	return o, nil
}

// readLog reads the event log; nil if there is none or it may not be read.
func (t *TPM) readLog() ([]byte, error) {
	f, err := os.Open(t.logPath)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	defer f.Close()
	log, err := io.ReadAll(io.LimitReader(f, evidence.MaxEventLog+1))
	if err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	if len(log) > evidence.MaxEventLog {
		return nil, fmt.Errorf("event log: %s has more than %d bytes, which no broker takes", t.logPath, evidence.MaxEventLog)
	}
	return log, nil
}
