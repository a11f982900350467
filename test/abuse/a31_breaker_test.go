package abuse

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/broker/server"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/test/rig"
)

// trip is what the engine does when the active revision keeps running into its time limit.
func trip(t *testing.T, r *rig.Rig) error {
	t.Helper()
	reply, err := bullav1.NewPoliciesClient(r.Client("security").Conn()).GetRevision(t.Context(), &bullav1.GetRevisionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	active, err := policy.Reopen(t.Context(), reply.GetArchive())
	if err != nil {
		t.Fatal(err)
	}
	return r.Server.Broker.Trip(t.Context(), active)
}

// The breaker puts nothing back that a person could not: what a retired key signed does not decide again by it.
func TestAbuse_A31_breaker_and_a_retired_key(t *testing.T) {
	t.Parallel()
	private, public := bundleKey(t)
	next, nextPublic := bundleKey(t)
	r := twoPersons(t, private, public, nil)
	promote := func(archive, private []byte) {
		t.Helper()
		security := revisionsOf(r, "security")
		if _, err := security.Stage(t.Context(), &bullav1.StageRequest{Archive: archive, Signature: signedBundle(t, archive, private)}); err != nil {
			t.Fatal(err)
		}
		in := &bullav1.PromoteRequest{Digest: event.Digest(policy.ArchiveDigest(archive)).String(), NoReport: "a test"}
		for _, c := range []bullav1.RevisionsClient{security, revisionsOf(r, "bob")} {
			if _, err := c.Promote(t.Context(), in); err != nil {
				t.Fatal(err)
			}
		}
	}
	activations := func() []event.RevisionActivated { return of[event.RevisionActivated](r.Events()) }
	second := variant(t, r, "second")
	promote(second, private)
	r.Stop()
	text, err := os.ReadFile(public)
	if err != nil {
		t.Fatal(err)
	}
	retired, err := policy.ParseBundleKey(text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := server.BundleKeysStopped(t.Context(), r.Config, nextPublic, retired.ID, nil); err != nil {
		t.Fatal(err)
	}
	r.Run()
	promote(variant(t, r, "third"), next)
	if err := trip(t, r); err == nil {
		t.Error("the breaker says nothing")
	} else {
		t.Log(err)
	}
	if all := activations(); len(all) != 3 {
		t.Fatalf("%d activations, the last one is %+v", len(all), all[len(all)-1])
	}
	// Signed anew, it is put back, under the key of now.
	if _, err := revisionsOf(r, "security").Stage(t.Context(), &bullav1.StageRequest{Archive: second, Signature: signedBundle(t, second, next)}); err != nil {
		t.Fatal(err)
	}
	if err := trip(t, r); err != nil {
		t.Error(err)
	}
	if all := activations(); len(all) != 4 || all[3].Digest != policy.ArchiveDigest(second) || all[3].Key == "" || all[3].Key == all[1].Key {
		t.Errorf("%d activations, the last one is %+v", len(all), all[len(all)-1])
	}
	r.Check()
}

// What the breaker put back is where it goes back to again, and not the revision that it was put in place of.
func TestAbuse_A30_breaker_twice(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	first, err := policy.Pack(os.DirFS(filepath.Clean(r.Config.Policy.Dir)))
	if err != nil {
		t.Fatal(err)
	}
	for i, comment := range []string{"slow", "slow as well"} {
		r.Push(func(files map[string]string) { files["manifest.yaml"] += "# " + comment + "\n" })
		if err := trip(t, r); err != nil {
			t.Fatal(err)
		}
		all := of[event.RevisionActivated](r.Events())
		if last := all[len(all)-1]; len(all) != 3+2*i || last.Digest != policy.ArchiveDigest(first) || !last.Rollback {
			t.Errorf("after %q: %d activations, the last one is %+v", comment, len(all), last)
		}
		if err := trip(t, r); err != nil { // which takes no turns
			t.Fatal(err)
		}
	}
	if n := len(of[event.RevisionActivated](r.Events())); n != 5 {
		t.Errorf("%d activations, want 5", n)
	}
	r.Check()
}

// A configuration that names bundle keys is not taken for a ledger that knows of none, and would take unsigned bundles.
func TestAbuse_A31_keys_that_only_the_configuration_has(t *testing.T) {
	t.Parallel()
	_, public := bundleKey(t)
	r := rig.Start(t, rig.Config{})
	r.Stop()
	cfg := r.Config
	cfg.Policy.BundleKeys = []string{public}
	if s, err := server.Open(t.Context(), cfg, server.Options{Log: slog.New(slog.DiscardHandler), DevelopmentKey: r.Authority.DeviceKeyPublic()}); !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), "bundle-key --add") {
		t.Errorf("%v, %v", s, err)
	}
	if _, err := server.BundleKeysStopped(t.Context(), r.Config, public, "", nil); err != nil {
		t.Fatal(err)
	}
	r.Config = cfg
	r.Run()
	_, err := revisionsOf(r, "security").Stage(t.Context(), &bullav1.StageRequest{Archive: r.Archive(func(f map[string]string) { f["manifest.yaml"] += "# new\n" })})
	code(t, err, codes.InvalidArgument, "not signed")
	r.Check()
}
