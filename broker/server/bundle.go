package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
)

// maxKeyFile is the largest file of a bundle key, in bytes.
const maxKeyFile = 16 << 10

// first is the bundle that a ledger begins with, and the keys under which later ones have to be signed.
type first struct {
	archive, signature []byte
	key                string // under which signature verified
	keys               []policy.BundleKey
}

// firstBundle reads the bundle keys, and checks the signature of the first bundle where there are any.
func firstBundle(cfg config.Config, archive []byte) (first, error) {
	b := first{archive: archive}
	for _, path := range cfg.Policy.BundleKeys {
		key, err := readBundleKey(path)
		if err != nil {
			return b, fmt.Errorf("%w: policy.bundle_keys: %w", config.ErrInvalid, err)
		}
		b.keys = append(b.keys, key)
	}
	var err error
	if b.signature, err = policy.ReadSignature(os.DirFS(cfg.Policy.Dir)); err != nil {
		return b, err
	}
	if len(b.keys) > 0 {
		if b.key, err = policy.VerifySignature(archive, b.signature, b.keys); err != nil {
			return b, fmt.Errorf("policy in %s: %w", cfg.Policy.Dir, err)
		}
	}
	return b, nil
}

func readBundleKey(path string) (policy.BundleKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return policy.BundleKey{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return policy.BundleKey{}, err
	}
	key, err := policy.ParseBundleKey(text)
	if err != nil {
		return policy.BundleKey{}, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

func (b first) keyIDs() (ids []string) {
	for _, k := range b.keys {
		ids = append(ids, k.ID)
	}
	return ids
}

// begin introduces the bundle keys, then stages and activates the bundle, as far as that was not done.
func (b first) begin(ctx context.Context, l *ledger.Ledger, now time.Time) error {
	for _, k := range b.keys {
		if err := introduce(ctx, l, now, k); err != nil {
			return err
		}
	}
	if _, _, err := l.ActiveRevision(ctx); !errors.Is(err, ledger.ErrNotFound) {
		return err
	}
	digest := event.Digest(policy.ArchiveDigest(b.archive))
	blob := &ledger.Blob{Key: ledger.RevisionBlob(digest), Data: b.archive, Digest: digest}
	for _, body := range []event.Body{
		event.RevisionStaged{Digest: digest, Source: initSource, Signature: b.signature, Key: b.key},
		event.RevisionActivated{Digest: digest, Sequence: 1, Source: initSource, Key: b.key},
	} {
		if _, err := l.Commit(ctx, ledger.Commit{Event: event.New(now, "", body), Blob: blob}); err != nil {
			return err
		}
	}
	return nil
}

const initSource = "server init"

// introduce writes a bundle key into the ledger, unless it is there.
func introduce(ctx context.Context, l *ledger.Ledger, now time.Time, k policy.BundleKey) error {
	if _, _, err := l.Key(ctx, k.ID); !errors.Is(err, ledger.ErrNotFound) {
		return err
	}
	_, err := l.Commit(ctx, ledger.Commit{Event: event.New(now, "", event.KeyIntroduced{KeyID: k.ID, Use: event.UseBundle, Public: k.Public})})
	return err
}
