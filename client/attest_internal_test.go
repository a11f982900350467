package client

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/bulla-project/bulla/audit/proofs"
)

// Those who wait for an attestation share what comes of it, but not that its caller gave up.
func TestAttestationIsShared(t *testing.T) {
	failed := errors.New("the TPM is gone")
	for _, c := range []struct {
		name   string
		end    attestation
		result string
		err    error
	}{
		{"it succeeds", attestation{result: []byte("{}")}, "{}", nil},
		{"it fails", attestation{err: failed}, "", failed},
		{"its caller gives up", attestation{err: context.Canceled, left: true}, "", ErrConfig}, // its own try, without a device
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				running := &attestation{done: make(chan struct{})}
				client := &Client{attesting: running}
				leaving, leave := context.WithCancel(t.Context())
				gone, shared := make(chan error, 1), make(chan error, 1)
				var result []byte
				go func() { _, err := client.Attest(leaving); gone <- err }()
				go func() {
					var err error
					result, err = client.Attest(t.Context())
					shared <- err
				}()
				synctest.Wait()
				leave()
				if err := <-gone; !errors.Is(err, context.Canceled) {
					t.Errorf("one that does not wait for it: %v", err)
				}
				client.attestMu.Lock()
				client.attesting, running.result, running.err, running.left = nil, c.end.result, c.end.err, c.end.left
				client.attestMu.Unlock()
				close(running.done)
				if err := <-shared; !errors.Is(err, c.err) || string(result) != c.result {
					t.Errorf("%q, %v; want %q, %v", result, err, c.result, c.err)
				}
			})
		})
	}
}

// With the log's key a client takes no checkpoint that the log did not sign, and no second tree of one size.
func TestCheckpointsThatDisagree(t *testing.T) {
	signer := func() *proofs.Signer {
		skey, _, err := proofs.NewLogKey("example.org/log")
		if err != nil {
			t.Fatal(err)
		}
		s, err := proofs.NewSigner(skey)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	log := signer()
	head := func(s *proofs.Signer, size int64, root byte) []byte {
		out, err := s.Sign(proofs.Checkpoint{Origin: s.Origin(), Size: size, Root: proofs.Hash{root}})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	c := &Client{cfg: Config{LogKey: log.Key()}}
	for _, step := range []struct {
		name string
		raw  []byte
		want error
		size int64 // what is kept then
	}{
		{"the first", head(log, 7, 1), nil, 7},
		{"a newer one", head(log, 9, 2), nil, 9},
		{"an older one, overtaken", head(log, 8, 3), nil, 9},
		{"the same again", head(log, 9, 2), nil, 9},
		{"another tree of the size", head(log, 9, 4), ErrVerification, 9},
		{"another log", head(signer(), 12, 5), ErrVerification, 9},
		{"none", nil, nil, 9},
	} {
		if err := c.see(step.raw); !errors.Is(err, step.want) {
			t.Errorf("%s: %v, want %v", step.name, err, step.want)
		}
		if at, err := log.Key().Open(c.Checkpoint()); err != nil || at.Size != step.size {
			t.Errorf("%s: kept %v, %v", step.name, at, err)
		}
	}
}
