package replay_test

import (
	"context"
	"iter"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/policy/replay"
	shipped "github.com/bulla-project/bulla/rego"
)

const domain = "spiffe://dev.bulla.test/"

// now is Monday, 6 January 2025, 10:00 UTC.
const now = int64(1_736_157_600_000_000)

// bundle is the development bundle, with texts replaced in its files: file, old, new, and so on. An empty old text appends.
func bundle(tb testing.TB, edits ...string) *policy.Revision {
	tb.Helper()
	archive, err := policy.Pack(shipped.Development())
	if err != nil {
		tb.Fatal(err)
	}
	files, err := policy.Unpack(archive)
	if err != nil {
		tb.Fatal(err)
	}
	fsys := fstest.MapFS{}
	for i := 0; i+2 < len(edits); i += 3 {
		name, old, text := edits[i], edits[i+1], edits[i+2]
		if old == "" {
			files[name] = append(files[name], text...)
			continue
		}
		if !strings.Contains(string(files[name]), old) {
			tb.Fatalf("%s has no %q", name, old)
		}
		files[name] = []byte(strings.Replace(string(files[name]), old, text, 1))
	}
	for name, text := range files {
		fsys[name] = &fstest.MapFile{Data: text}
	}
	if archive, err = policy.Pack(fsys); err != nil {
		tb.Fatal(err)
	}
	rev, err := policy.Reopen(tb.Context(), archive)
	if err != nil {
		tb.Fatal(err)
	}
	return rev
}

func library(revs ...*policy.Revision) *replay.Library {
	return replay.NewLibrary(func(_ context.Context, digest replay.Digest) ([]byte, error) {
		for _, r := range revs {
			if r.Digest() == digest {
				return r.Archive(), nil
			}
		}
		return nil, replay.ErrNoRevision
	})
}

func delivery(who, name, class string) policy.Signals {
	return policy.Signals{
		Version: policy.SignalsVersion, Now: now, Action: policy.ActionDeliver, Instance: "thumb",
		Principal: policy.Principal{
			ID: domain + who, TrustDomain: "dev.bulla.test", Path: "/" + who, Type: policy.TypeService, Level: policy.LevelBasic,
			NotBefore: now - 600_000_000, NotAfter: now + 3_000_000_000,
		},
		Resource:  policy.Resource{Kind: policy.KindSecret, Secret: &policy.Secret{Name: name, Exists: true, Class: class, Version: 1, Exposure: "none"}},
		Network:   policy.Network{Peer: "127.0.0.1:51234", TLSGroup: "X25519MLKEM768", PostQuantum: true},
		Recipient: &policy.Recipient{Suite: 9},
		History:   &policy.History{},
	}
}

func attested(s policy.Signals) policy.Signals {
	s.Attestation = &policy.Attestation{
		Kind: "development", DeviceID: "dev-1", Tier: "warning", Score: 40, IssuedAt: now - 5_000_000, KeysBound: true, Reasons: []string{},
	}
	return s
}

// recorded is what a broker records of the decision of rev on s.
func recorded(tb testing.TB, rev *policy.Revision, index int64, s policy.Signals) replay.Recorded {
	tb.Helper()
	d := rev.Judge(tb.Context(), s)
	r := replay.Recorded{
		Index: index, Event: "event", Time: time.UnixMicro(s.Now), Kind: "decision.denied", Principal: s.Principal.ID, Action: string(s.Action),
		Effect: d.Effect, Revision: rev.Digest(), Sequence: 1, Signals: d.Signals, Result: d.Canonical(),
	}
	if d.Effect == policy.Permit {
		r.Kind, r.Wants, r.Secret = "session.issued", []policy.Effect{policy.Permit}, s.Resource.Secret.Name
	}
	return r
}

func sequence(all ...replay.Recorded) iter.Seq2[replay.Recorded, error] {
	return func(yield func(replay.Recorded, error) bool) {
		for _, r := range all {
			if !yield(r, nil) {
				return
			}
		}
	}
}
