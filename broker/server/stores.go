package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/internal/durable"
	"github.com/bulla-project/bulla/keyring"
	"github.com/bulla-project/bulla/keyring/awskms"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/ledger/sqlite"
)

// What lies in the data directory.
const (
	ringFile    = "keyring"
	storeFile   = "ledger.db"
	logDir      = "log"
	logPubFile  = "log.pub"
	logKeyFile  = "log.key"      // sealed by the ring
	nextKeyFile = "log.key.next" // that of the incarnation which a restore has begun; sealed by the ring
	signKeyFile = "envelope.key" // sealed by the ring
)

// Labels of what the ring seals here.
const (
	logKeyLabel  = "bulla-log-key/v1"
	signKeyLabel = "bulla-envelope-key/v1"
)

// ErrNotInitialised says that a data directory holds no finished ledger.
var ErrNotInitialised = errors.New("the data directory holds no ledger: run `bulla server init` first")

// ErrLogKey says that the log key in the data directory is not that of the ledger's log.
var ErrLogKey = errors.New("the log key is not the one that this ledger's log is signed with")

// stores are what lies at rest: the keys, and the ledger.
type stores struct {
	ring   *keyring.Ring
	ledger *ledger.Ledger
	logKey *proofs.Signer
	signer *envelope.Signer
	life   ledger.Incarnation // set by genesis
}

func (s *stores) close() error {
	if s.ledger == nil {
		return nil
	}
	return s.ledger.Close()
}

// openRing opens the keyring under the configured key-encryption key.
func openRing(ctx context.Context, cfg config.Config, create bool) (*keyring.Ring, error) {
	path := filepath.Join(cfg.DataDir, ringFile)
	if cfg.Keyring.AWSKMS == nil {
		return keyring.OpenLocal(ctx, keyring.LocalConfig{Path: path, KEKFile: cfg.Keyring.KEKFile, Create: create})
	}
	k := cfg.Keyring.AWSKMS
	kek, err := awskms.New(ctx, awskms.Config{KeyID: k.KeyID, Region: k.Region, Endpoint: k.Endpoint})
	if err != nil {
		return nil, err
	}
	return keyring.Open(ctx, keyring.Config{Path: path, KEK: kek, Create: create})
}

// openStores opens what Init made. A ledger of an older format is brought up to date.
func openStores(ctx context.Context, cfg config.Config, log *slog.Logger) (*stores, error) {
	ring, err := ringOf(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := bringUp(ctx, filepath.Join(cfg.DataDir, storeFile), ring, log); err != nil {
		return nil, err
	}
	return openWith(ctx, cfg, ring, log)
}

// lookAtStores opens what Init made and changes nothing, so that it refuses an older format.
func lookAtStores(ctx context.Context, cfg config.Config, log *slog.Logger) (*stores, error) {
	ring, err := ringOf(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return openWith(ctx, cfg, ring, log)
}

// ringOf opens the keyring of a ledger that is there.
func ringOf(ctx context.Context, cfg config.Config) (*keyring.Ring, error) {
	if _, err := os.Stat(filepath.Join(cfg.DataDir, storeFile)); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", cfg.DataDir, ErrNotInitialised)
	}
	return openRing(ctx, cfg, false)
}

// bringUpSays is how often it is said how far a ledger of an older format is.
const bringUpSays = 5 * time.Second

// bringUp makes a ledger of an older format one of this version.
func bringUp(ctx context.Context, path string, ring *keyring.Ring, log *slog.Logger) error {
	return sqlite.Upgrade(ctx, path, func(ctx context.Context, snap ledger.Snapshot, put func(ledger.Row) error) error {
		log.Info("ledger is of an older format and is brought up to date")
		said := time.Now()
		return ledger.Upgrade(ctx, snap, ring, func(done, total int64) {
			if time.Since(said) > bringUpSays || done == total {
				said = time.Now()
				log.Info("ledger is being brought up to date", "events", done, "of", total)
			}
		}, put)
	})
}

func openWith(ctx context.Context, cfg config.Config, ring *keyring.Ring, log *slog.Logger) (_ *stores, err error) {
	s := &stores{ring: ring}
	store, err := sqlite.Open(ctx, filepath.Join(cfg.DataDir, storeFile))
	if err != nil {
		return nil, err
	}
	if s.ledger, err = ledger.Open(ctx, ledger.Config{Store: store, Keys: ring, Log: log}); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.logKey, err = s.openLogKey(cfg); err != nil {
		return nil, err
	}
	if s.signer, err = s.openSigner(ctx, cfg); err != nil {
		return nil, err
	}
	return s, nil
}

// openLogKey reads the log's signing key, or makes it where there is none and the ledger is empty.
func (s *stores) openLogKey(cfg config.Config) (*proofs.Signer, error) {
	path := filepath.Join(cfg.DataDir, logKeyFile)
	key, err := s.readLogKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if size, _ := s.ledger.Committed(); size > 0 {
		return nil, fmt.Errorf("log key %s is missing, and the ledger has events: restore the file", path)
	}
	return s.makeLogKey(path, cfg.Log.Origin)
}

func (s *stores) readLogKey(path string) (*proofs.Signer, error) {
	sealed, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("log key: %w", err)
	}
	plain, err := s.ring.Open(keyring.PurposeKey, sealed, []byte(logKeyLabel))
	if err != nil {
		return nil, fmt.Errorf("log key %s: %w", path, err)
	}
	defer clear(plain)
	return proofs.NewSigner(string(plain))
}

func (s *stores) makeLogKey(path, origin string) (*proofs.Signer, error) {
	skey, _, err := proofs.NewLogKey(origin)
	if err != nil {
		return nil, err
	}
	sealed, err := s.ring.Seal(keyring.PurposeKey, []byte(skey), []byte(logKeyLabel))
	if err != nil {
		return nil, err
	}
	if err := durable.WriteFile(path, sealed, 0o600); err != nil {
		return nil, err
	}
	return proofs.NewSigner(skey)
}

// openSigner reads the envelope signing key, or makes it where there is none.
func (s *stores) openSigner(ctx context.Context, cfg config.Config) (*envelope.Signer, error) {
	path := filepath.Join(cfg.DataDir, signKeyFile)
	sealed, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		known, err := s.ledger.Keys(ctx)
		if err != nil {
			return nil, err
		}
		if len(known) > 0 {
			return nil, fmt.Errorf("envelope signing key %s is missing, and the ledger has introduced one: restore the file", path)
		}
		return s.makeSigner(path)
	}
	if err != nil {
		return nil, fmt.Errorf("envelope signing key: %w", err)
	}
	key, err := s.ring.OpenSigner(signKeyLabel, sealed)
	if err != nil {
		return nil, fmt.Errorf("envelope signing key %s: %w", path, err)
	}
	public, err := proof.InstancePublic(key)
	if err != nil {
		return nil, err
	}
	return envelope.NewSigner(proof.Thumbprint(public), key)
}

func (s *stores) makeSigner(path string) (*envelope.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	sealed, err := s.ring.SealSigner(signKeyLabel, key)
	if err != nil {
		return nil, err
	}
	if err := durable.WriteFile(path, sealed, 0o600); err != nil {
		return nil, err
	}
	return envelope.NewSigner(proof.Thumbprint(&key.PublicKey), key)
}

// genesis returns the first event, if the ledger is complete: it has a genesis, the log key is that of its newest
// incarnation, this signing key was introduced, and a revision is active.
func (s *stores) genesis(ctx context.Context) (event.Genesis, error) {
	genesis, err := s.first(ctx)
	if err != nil {
		return event.Genesis{}, err
	}
	if key := s.logKey.Key().String(); key != s.life.LogKey {
		return event.Genesis{}, fmt.Errorf("%w: it is %s, and incarnation %d of the ledger is signed with %s: a restore was not finished, or files of two copies were mixed; see `bulla server restore`",
			ErrLogKey, key, s.life.Number, s.life.LogKey)
	}
	if _, _, err := s.ledger.Key(ctx, s.signer.Key().ID); err != nil {
		return event.Genesis{}, fmt.Errorf("the envelope signing key was never introduced in the ledger: %w", err)
	}
	if _, _, err := s.ledger.ActiveRevision(ctx); err != nil {
		return event.Genesis{}, fmt.Errorf("no policy revision is active: %w", err)
	}
	return genesis, nil
}

// first returns the first event, and notes which incarnation of the ledger this is.
func (s *stores) first(ctx context.Context) (event.Genesis, error) {
	found, err := s.ledger.Events(ctx, 0, 1)
	if err != nil {
		return event.Genesis{}, err
	}
	if len(found) == 0 {
		return event.Genesis{}, ErrNotInitialised
	}
	genesis, ok := found[0].Event.Body.(event.Genesis)
	if !ok {
		return event.Genesis{}, fmt.Errorf("the ledger's first event is %s, not a genesis", found[0].Event.Body.EventType())
	}
	s.life, _, err = s.ledger.Incarnation(ctx)
	if errors.Is(err, ledger.ErrNotFound) {
		s.life, err = ledger.Incarnation{Number: 1, Origin: genesis.Origin, LogKey: genesis.LogKey, Began: found[0].Event.Time}, nil
	}
	return genesis, err
}

// publish sees to it that the log's verifier key lies where everybody finds it.
func (s *stores) publish(dir string) error {
	path, want := filepath.Join(dir, logPubFile), []byte(s.logKey.Key().String()+"\n")
	if there, err := os.ReadFile(path); err == nil && bytes.Equal(there, want) {
		return nil
	}
	return durable.WriteFile(path, want, 0o644)
}

// publicKey is the PKIX form of the envelope signing key.
func (s *stores) publicKey() ([]byte, error) { return x509.MarshalPKIXPublicKey(s.signer.Key().Public) }
