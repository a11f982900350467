package rig

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/broker"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/envelope"
	reqproof "github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/keyring"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/ledger/sqlite"
	"github.com/bulla-project/bulla/policy"
)

// Parts are what no configuration can replace in a broker, and a test wants to.
type Parts struct {
	Store     func(ledger.Store) ledger.Store // wraps the store
	Verifiers []attest.Verifier               // instead of none
	Watchers  int                             // of one principal; 0: the default
	Retention broker.Retention
}

// Assembled is a broker that a test put together from the same parts as package server does, so that some of
// them can be hostile, and others can be reached.
type Assembled struct {
	*Rig
	Broker *broker.Broker
	Ledger *ledger.Ledger
	Tree   *audit.Log
}

// Assemble stops the rig's broker and runs one on the same data, made by hand. Stop ends it as well.
func (r *Rig) Assemble(parts Parts) *Assembled {
	r.t.Helper()
	r.Stop()
	a := &Assembled{Rig: r}
	ctx, stop := context.WithCancel(context.Background())
	closing, err := a.open(ctx, parts)
	if err != nil {
		stop()
		r.t.Fatal(errors.Join(err, closeAll(closing)))
	}
	l, err := net.Listen("tcp", r.addr)
	if err != nil {
		stop()
		r.t.Fatal(errors.Join(err, closeAll(closing)))
	}
	srv := a.Broker.GRPC()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	r.Server, r.stop, r.done = nil, stop, make(chan error, 1)
	go func() {
		<-ctx.Done()
		srv.Stop()
		r.done <- errors.Join(<-served, closeAll(closing))
	}()
	return a
}

func closeAll(closing []func() error) error {
	var errs []error
	for i := len(closing) - 1; i >= 0; i-- {
		errs = append(errs, closing[i]())
	}
	return errors.Join(errs...)
}

// open opens the parts in the order in which they need each other.
func (a *Assembled) open(ctx context.Context, parts Parts) (closing []func() error, err error) {
	dir := a.Config.DataDir
	ring, err := keyring.OpenLocal(ctx, keyring.LocalConfig{Path: filepath.Join(dir, "keyring"), KEKFile: a.Config.Keyring.KEKFile})
	if err != nil {
		return nil, err
	}
	opened, err := sqlite.Open(ctx, filepath.Join(dir, "ledger.db"))
	if err != nil {
		return nil, err
	}
	store := ledger.Store(opened)
	if parts.Store != nil {
		store = parts.Store(store)
	}
	log := slog.New(slog.NewTextHandler(a.Log, nil))
	if a.Ledger, err = ledger.Open(ctx, ledger.Config{Store: store, Keys: ring, Log: log}); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	closing = append(closing, a.Ledger.Close)
	logKey, signer, err := keys(dir, ring)
	if err != nil {
		return closing, err
	}
	a.Tree, err = audit.Open(ctx, audit.Config{
		Dir: filepath.Join(dir, "log"), Origin: logKey.Origin(), Signer: logKey, Source: leaves{a.Ledger}, OutsideCheckpoint: a.Config.Log.CheckpointCopy,
	})
	if err != nil {
		return closing, err
	}
	closing = append(closing, a.Tree.Close)
	a.serve("bulla/broker")
	source, err := certs.Open(ctx, certs.Config{EndpointSocket: a.Socket("bulla/broker"), ConnectTimeout: 10 * time.Second})
	if err != nil {
		return closing, err
	}
	closing = append(closing, source.Close)
	engine := policy.NewEngine(policy.Config{})
	closing = append(closing, func() error { engine.Close(); return nil })
	a.Broker, err = broker.New(ctx, broker.Config{
		Source: source, Ledger: a.Ledger, Ring: ring, Engine: engine, Tree: a.Tree, Signer: signer, Verifiers: parts.Verifiers,
		Invariants: policy.Invariants{Security: a.Config.Site.Security, Auditors: a.Config.Site.Auditors}, Now: a.cfg.Now, Log: log,
		Watchers: parts.Watchers, Retention: parts.Retention,
	})
	return closing, err
}

// keys opens the two signing keys that the server keeps beside the ledger.
func keys(dir string, ring *keyring.Ring) (*proofs.Signer, *envelope.Signer, error) {
	sealed, err := os.ReadFile(filepath.Join(dir, "log.key"))
	if err != nil {
		return nil, nil, err
	}
	plain, err := ring.Open(keyring.PurposeKey, sealed, []byte("bulla-log-key/v1"))
	if err != nil {
		return nil, nil, fmt.Errorf("log key: %w", err)
	}
	logKey, err := proofs.NewSigner(string(plain))
	if err != nil {
		return nil, nil, err
	}
	if sealed, err = os.ReadFile(filepath.Join(dir, "envelope.key")); err != nil {
		return nil, nil, err
	}
	key, err := ring.OpenSigner("bulla-envelope-key/v1", sealed)
	if err != nil {
		return nil, nil, err
	}
	public, err := reqproof.InstancePublic(key)
	if err != nil {
		return nil, nil, err
	}
	signer, err := envelope.NewSigner(reqproof.Thumbprint(public), key)
	return logKey, signer, err
}

// leaves is the ledger as the log's source.
type leaves struct{ ledger *ledger.Ledger }

// Leaves implements audit.Source.
func (l leaves) Leaves(ctx context.Context, from int64, most int) ([]audit.Entry, error) {
	found, err := l.ledger.Leaves(ctx, from, most)
	out := make([]audit.Entry, len(found))
	for i, leaf := range found {
		out[i] = audit.Entry{Index: from + int64(i), Leaf: leaf}
	}
	return out, err
}

// PackRaw makes the archive of any files, as package policy does of those that it lets pass.
func PackRaw(files map[string]string) []byte {
	var out bytes.Buffer
	out.WriteString("bulla-revision/v1\n")
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(&out, "%s %d\n%s\n", name, len(files[name]), files[name])
	}
	return out.Bytes()
}

// RawAt is Raw for a broker of the same trust domain that listens at another address.
func (r *Rig) RawAt(name, addr string) *Raw {
	r.t.Helper()
	was := r.addr
	r.addr = addr
	defer func() { r.addr = was }()
	return r.Raw(name)
}

// RawWithAt is RawAt with a given instance key.
func (r *Rig) RawWithAt(name string, key *ecdsa.PrivateKey, addr string) *Raw {
	r.t.Helper()
	was := r.addr
	r.addr = addr
	defer func() { r.addr = was }()
	return r.RawWith(name, key)
}

// Enrol writes a device into the ledger as if it had been enrolled: for devices that no enrolment would admit.
func (a *Assembled) Enrol(d attest.Device) {
	a.t.Helper()
	record, err := d.Encode()
	if err != nil {
		a.t.Fatal(err)
	}
	enrolled := event.New(time.Now(), ID("operator").String(), event.DeviceEnrolled{Device: d.ID.String(), Record: record})
	if _, err := a.Ledger.Commit(a.t.Context(), ledger.Commit{Event: enrolled}); err != nil {
		a.t.Fatal(err)
	}
}
