package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/keyring"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
)

// ErrInitialised says that a data directory has its ledger already.
var ErrInitialised = errors.New("the data directory is initialised already: start it with `bulla server run`")

// Init makes the data directory: keys, the genesis event, the signing key's introduction and the first policy
// revision. A run that was interrupted is taken up where it stopped.
func Init(ctx context.Context, cfg config.Config, product string, log *slog.Logger) (err error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if cfg.Policy.Dir == "" {
		return fmt.Errorf("%w: policy.dir is missing: name the directory of the first policy bundle", config.ErrInvalid)
	}
	archive, err := policy.Pack(os.DirFS(cfg.Policy.Dir))
	if err != nil {
		return fmt.Errorf("policy in %s: %w", cfg.Policy.Dir, err)
	}
	site := policy.Invariants{Security: cfg.Site.Security, Auditors: cfg.Site.Auditors}
	if err := checkFirst(ctx, archive, site); err != nil {
		return fmt.Errorf("policy in %s: %w", cfg.Policy.Dir, err)
	}
	bundle, err := firstBundle(cfg, archive)
	if err != nil {
		return err
	}
	if err := mkdir(cfg.DataDir); err != nil {
		return err
	}
	ring, err := openRing(ctx, cfg, true)
	if err != nil {
		return err
	}
	s, err := openWith(ctx, cfg, ring, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	switch _, err := s.genesis(ctx); {
	case err == nil:
		return ErrInitialised
	case errors.Is(err, ErrLogKey):
		return err
	}
	return s.begin(ctx, cfg, product, bundle)
}

// checkFirst loads the bundle as activation would.
func checkFirst(ctx context.Context, archive []byte, site policy.Invariants) error {
	revision, err := policy.Load(ctx, archive, site)
	if err != nil {
		return err
	}
	_, err = attest.ParseReferences(revision.References())
	return err
}

// begin writes the first events, as far as they are not there.
func (s *stores) begin(ctx context.Context, cfg config.Config, product string, bundle first) error {
	if made := s.logKey.Key().Origin(); made != cfg.Log.Origin {
		return fmt.Errorf("%w: log.origin is %s, and %s was made for %s when this was begun: name that one, or begin in an empty directory", config.ErrInvalid, cfg.Log.Origin, logKeyFile, made)
	}
	now := time.Now()
	if size, _ := s.ledger.Committed(); size == 0 {
		genesis := event.Genesis{
			Origin: cfg.Log.Origin, LogKey: s.logKey.Key().String(), TrustDomains: append([]string{}, cfg.SPIFFE.TrustDomains...),
			Security: append([]string{}, cfg.Site.Security...), Auditors: append([]string{}, cfg.Site.Auditors...), Product: product,
			BundleKeys: bundle.keyIDs(),
		}
		if _, err := s.ledger.Commit(ctx, ledger.Commit{Event: event.New(now, "", genesis)}); err != nil {
			return err
		}
	}
	if _, _, err := s.ledger.Key(ctx, s.signer.Key().ID); errors.Is(err, ledger.ErrNotFound) {
		public, err := s.publicKey()
		if err != nil {
			return err
		}
		introduced := event.KeyIntroduced{KeyID: s.signer.Key().ID, Use: event.UseEnvelope, Public: public}
		if _, err := s.ledger.Commit(ctx, ledger.Commit{Event: event.New(now, "", introduced)}); err != nil {
			return err
		}
	}
	if err := bundle.begin(ctx, s.ledger, now); err != nil {
		return err
	}
	return s.publish(cfg.DataDir)
}

// CheckStopped makes the state of a stopped broker again from its events, and compares.
func CheckStopped(ctx context.Context, dataDir, kekFile string, progress func(done, total int64)) (_ ledger.Report, err error) {
	cfg := config.Config{DataDir: dataDir, Keyring: config.Keyring{KEKFile: kekFile}}
	ring, err := keyring.OpenLocal(ctx, keyring.LocalConfig{Path: filepath.Join(dataDir, ringFile), KEKFile: kekFile})
	if err != nil {
		return ledger.Report{}, err
	}
	s, err := openWith(ctx, cfg, ring, slog.New(slog.DiscardHandler))
	if err != nil {
		return ledger.Report{}, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return s.ledger.Check(ctx, progress)
}
