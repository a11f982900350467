package server

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
)

// offlineSource is the source of what was done on the host of a stopped broker.
const offlineSource = "server activate, offline"

// Bundle is what ActivateStopped puts in place: a bundle and its signature, or the digest of one that the ledger has.
type Bundle struct {
	Archive, Signature []byte
	Digest             string // in hexadecimal, or its first digits; used without an Archive
}

// ActivateStopped activates a bundle on a stopped broker, for when the active one does not load any more or nobody can
// change it. It has to pass every check, the site's invariants and the signature among them, and is in the log like every
// other activation.
func ActivateStopped(ctx context.Context, cfg config.Config, b Bundle, log *slog.Logger) (_ ledger.Revision, err error) {
	s, err := openStores(ctx, cfg, log)
	if err != nil {
		return ledger.Revision{}, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	genesis, err := s.genesis(ctx)
	if err != nil {
		return ledger.Revision{}, err
	}
	kept := len(b.Archive) == 0
	if kept {
		if b, err = s.kept(ctx, b.Digest); err != nil {
			return ledger.Revision{}, err
		}
	}
	key, err := s.verified(ctx, b)
	if err != nil {
		return ledger.Revision{}, err
	}
	loaded, err := policy.Load(ctx, b.Archive, policy.Invariants{Security: genesis.Security, Auditors: genesis.Auditors})
	if err != nil {
		return ledger.Revision{}, err
	}
	if _, err := attest.ParseReferences(loaded.References()); err != nil {
		return ledger.Revision{}, err
	}
	return s.activate(ctx, loaded, b, key, kept)
}

// activate commits what was checked.
func (s *stores) activate(ctx context.Context, loaded *policy.Revision, b Bundle, key string, kept bool) (ledger.Revision, error) {
	active, seq, err := s.ledger.ActiveRevision(ctx)
	if err != nil {
		return ledger.Revision{}, err
	}
	digest, now := event.Digest(loaded.Digest()), time.Now()
	if digest == active.Digest {
		return ledger.Revision{}, fmt.Errorf("revision %s is active already, as revision %d", digest, active.Sequence)
	}
	_, _, err = s.ledger.Revision(ctx, digest.String())
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return ledger.Revision{}, err
	}
	activated := event.RevisionActivated{
		Digest: digest, Sequence: active.Sequence + 1, Previous: active.Digest, Source: offlineSource, Rollback: err == nil, Key: key,
	}
	bodies := []event.Body{activated}
	if !kept {
		staged := event.RevisionStaged{Digest: digest, Name: loaded.Name(), Source: offlineSource, Signature: b.Signature, Key: key}
		bodies = []event.Body{staged, activated}
	}
	for _, body := range bodies {
		_, err := s.ledger.Commit(ctx, ledger.Commit{
			Event: event.New(now, "", body), Blob: &ledger.Blob{Key: ledger.RevisionBlob(digest), Data: loaded.Archive(), Digest: digest},
			Require: []ledger.Precondition{{RowKey: ledger.RowKey{Kind: ledger.KindRevision, Key: ledger.ActiveRevision}, Seq: seq}},
		})
		if err != nil {
			return ledger.Revision{}, err
		}
	}
	row, _, err := s.ledger.Revision(ctx, digest.String())
	return row, err
}

// kept finds a bundle in the ledger, by the first digits of its digest.
func (s *stores) kept(ctx context.Context, digits string) (Bundle, error) {
	staged, err := s.ledger.AllStaged(ctx, ledger.MaxPage)
	if err != nil {
		return Bundle{}, err
	}
	active, err := s.ledger.Revisions(ctx, ledger.MaxPage)
	if err != nil {
		return Bundle{}, err
	}
	found := map[event.Digest][]byte{}
	for _, r := range active {
		found[r.Digest] = nil
	}
	for _, r := range staged {
		found[r.Digest] = r.Signature
	}
	var matching []Bundle
	for digest, signature := range found {
		if text := hex.EncodeToString(digest[:]); len(digits) > 0 && len(digits) <= len(text) && text[:len(digits)] == digits {
			archive, err := s.ledger.Blob(ctx, ledger.RevisionBlob(digest), digest)
			if err != nil {
				return Bundle{}, err
			}
			matching = append(matching, Bundle{Archive: archive, Signature: signature})
		}
	}
	if len(matching) != 1 {
		return Bundle{}, fmt.Errorf("%d revisions in the ledger have a digest that begins with %q", len(matching), digits)
	}
	return matching[0], nil
}

// verified returns the bundle key under which a bundle is signed, "" where none has to be.
func (s *stores) verified(ctx context.Context, b Bundle) (string, error) {
	keys, err := s.ledger.Keys(ctx)
	if err != nil {
		return "", err
	}
	var live []policy.BundleKey
	required := false
	for _, k := range keys {
		if k.Use != event.UseBundle {
			continue
		}
		required = true
		if k.Retired.IsZero() {
			key, err := policy.NewBundleKey(k.Public)
			if err != nil {
				return "", fmt.Errorf("bundle key %s: %w", k.ID, err)
			}
			live = append(live, key)
		}
	}
	if !required {
		return "", nil
	}
	return policy.VerifySignature(b.Archive, b.Signature, live)
}

// ErrBundleKey says that a change of bundle keys can't be made.
var ErrBundleKey = errors.New("bundle key not changed")

// BundleKeysStopped lists the bundle keys of a stopped broker, after it has added the key in a PEM file, or retired one,
// where these are not "". The last key that counts can't be retired.
func BundleKeysStopped(ctx context.Context, cfg config.Config, addFile, retire string, log *slog.Logger) (_ []ledger.Key, err error) {
	s, err := openStores(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if _, err := s.genesis(ctx); err != nil {
		return nil, err
	}
	if addFile != "" {
		key, err := readBundleKey(addFile)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBundleKey, err)
		}
		if err := introduce(ctx, s.ledger, time.Now(), key); err != nil {
			return nil, err
		}
	}
	live, known := 0, false
	all, err := s.bundleKeys(ctx)
	for _, k := range all {
		if k.Retired.IsZero() {
			live++
			known = known || k.ID == retire
		}
	}
	if err != nil || retire == "" {
		return all, err
	}
	switch {
	case !known:
		return nil, fmt.Errorf("%w: there is no bundle key %q that counts", ErrBundleKey, retire)
	case live == 1:
		return nil, fmt.Errorf("%w: %s is the last one, and without any no bundle could be activated: add its successor first", ErrBundleKey, retire)
	}
	if _, err := s.ledger.Commit(ctx, ledger.Commit{Event: event.New(time.Now(), "", event.KeyRetired{KeyID: retire})}); err != nil {
		return nil, err
	}
	return s.bundleKeys(ctx)
}

// hasBundleKeys refuses a configuration that names bundle keys for a ledger that has none: whoever wrote it believes that
// nothing unsigned is activated.
func (s *stores) hasBundleKeys(ctx context.Context, cfg config.Config) error {
	if len(cfg.Policy.BundleKeys) == 0 {
		return nil
	}
	keys, err := s.bundleKeys(ctx)
	if err == nil && len(keys) == 0 {
		err = fmt.Errorf("%w: policy.bundle_keys names keys, and this ledger has none, so that unsigned bundles would be activated: "+
			"introduce them with `bulla server bundle-key --add FILE`, or take them out of the configuration", config.ErrInvalid)
	}
	return err
}

func (s *stores) bundleKeys(ctx context.Context) (out []ledger.Key, err error) {
	all, err := s.ledger.Keys(ctx)
	for _, k := range all {
		if k.Use == event.UseBundle {
			out = append(out, k)
		}
	}
	return out, err
}
