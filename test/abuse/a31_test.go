package abuse

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/broker/server"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/test/rig"
)

// bundleKey makes a key pair, and writes the public half into a file.
func bundleKey(t *testing.T) (private []byte, publicFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pkix, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	publicFile = filepath.Join(t.TempDir(), "bundle.pub")
	if err := os.WriteFile(publicFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkix}), 0o600); err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), publicFile
}

func signedBundle(t *testing.T, archive, private []byte) []byte {
	t.Helper()
	signature, _, err := policy.SignArchive(archive, private)
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

// twoPersons is a broker as in production: signed bundles, and two persons to activate one. ann has two identities.
func twoPersons(t *testing.T, private []byte, public string, now func() time.Time) *rig.Rig {
	t.Helper()
	return rig.Start(t, rig.Config{
		Now: now, SVIDTTL: 72 * time.Hour,
		Policy: func(f map[string]string) {
			f["data/limits.yaml"] = strings.Replace(f["data/limits.yaml"], "second_person: {}", "second_person: {policy.promote: security, policy.rollback: security}", 1)
			f["data/members.yaml"] += "spiffe://dev.bulla.test/ann-phone: [security]\nspiffe://dev.bulla.test/bob: [security]\n"
			f["data/owners.yaml"] = "spiffe://dev.bulla.test/security: ann\nspiffe://dev.bulla.test/ann-phone: ann\n"
		},
		Site: config.Site{Security: []string{rig.ID("security").String(), rig.ID("bob").String()}, Auditors: []string{rig.ID("auditor").String()}},
		Edit: func(c *config.Config) {
			c.Policy.BundleKeys = []string{public}
			archive, err := policy.Pack(os.DirFS(c.Policy.Dir))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(c.Policy.Dir, policy.SignatureFile), signedBundle(t, archive, private), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	})
}

func revisionsOf(r *rig.Rig, name string) bullav1.RevisionsClient {
	return bullav1.NewRevisionsClient(r.Client(name).Conn())
}

// variant is the first bundle of twoPersons with a comment more.
func variant(t *testing.T, r *rig.Rig, comment string) []byte {
	t.Helper()
	first, err := policy.Pack(os.DirFS(r.Config.Policy.Dir))
	if err != nil {
		t.Fatal(err)
	}
	files, err := policy.Unpack(first)
	if err != nil {
		t.Fatal(err)
	}
	text := map[string]string{}
	for name, content := range files {
		text[name] = string(content)
	}
	text["manifest.yaml"] += "# " + comment + "\n"
	return rig.PackRaw(text)
}

func TestAbuse_A31_only_signed_bundles_are_kept(t *testing.T) {
	t.Parallel()
	private, public := bundleKey(t)
	mallory, _ := bundleKey(t)
	r := twoPersons(t, private, public, nil)
	security := revisionsOf(r, "security")
	archive := variant(t, r, "new")
	for name, signature := range map[string][]byte{
		"none": nil, "another key": signedBundle(t, archive, mallory), "another bundle": signedBundle(t, variant(t, r, "other"), private), "garbage": []byte("x"),
	} {
		_, err := security.Stage(t.Context(), &bullav1.StageRequest{Archive: archive, Signature: signature})
		code(t, err, codes.InvalidArgument, "the active revision stays")
		t.Log(name, err)
	}
	_, err := bullav1.NewPoliciesClient(r.Client("security").Conn()).PushRevision(t.Context(), &bullav1.PushRevisionRequest{Archive: archive})
	code(t, err, codes.InvalidArgument, "not signed")
	if err := r.Server.Broker.Reload(t.Context(), archive, "a directory"); err == nil {
		t.Error("a directory is taken up")
	}
	_, err = security.Promote(t.Context(), &bullav1.PromoteRequest{Digest: event.Digest(policy.ArchiveDigest(archive)).String(), NoReport: "a test"})
	code(t, err, codes.NotFound, "push it first")
	if n := len(of[event.RevisionStaged](r.Events())); n != 1 { // the first one
		t.Errorf("%d staged", n)
	}
	staged, err := security.Stage(t.Context(), &bullav1.StageRequest{Archive: archive, Signature: signedBundle(t, archive, private)})
	if err != nil || staged.GetOutcome() != "staged" || staged.GetRevision().GetKey() == "" {
		t.Errorf("%v, %v", staged, err)
	}
	r.Check()
}

// Two persons: neither the first again, nor another identity of the same person, nor somebody without the role.
func TestAbuse_A31_two_persons_promote(t *testing.T) {
	t.Parallel()
	private, public := bundleKey(t)
	var ahead atomic.Int64
	r := twoPersons(t, private, public, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) })
	archive := variant(t, r, "new")
	digest := event.Digest(policy.ArchiveDigest(archive)).String()
	security, bob := revisionsOf(r, "security"), revisionsOf(r, "bob")
	if _, err := security.Stage(t.Context(), &bullav1.StageRequest{Archive: archive, Signature: signedBundle(t, archive, private)}); err != nil {
		t.Fatal(err)
	}
	propose := func(c bullav1.RevisionsClient, report []byte) {
		t.Helper()
		reason := ""
		if len(report) == 0 {
			reason = "a test"
		}
		reply, err := c.Promote(t.Context(), &bullav1.PromoteRequest{Digest: digest, ReportDigest: report, NoReport: reason})
		if err != nil || reply.GetOutcome() != "proposed" {
			t.Fatalf("%v, %v; want a proposal", reply, err)
		}
	}
	report := make([]byte, 32)
	report[0] = 1
	propose(security, report)
	propose(security, report)                    // the same again
	propose(revisionsOf(r, "ann-phone"), report) // the same person
	_, err := revisionsOf(r, "operator").Promote(t.Context(), &bullav1.PromoteRequest{Digest: digest, NoReport: "a test"})
	code(t, err, codes.PermissionDenied, "")
	_, err = bob.Promote(t.Context(), &bullav1.PromoteRequest{Digest: digest, Rollback: true})
	code(t, err, codes.InvalidArgument, "was never active")
	other := make([]byte, 32)
	other[0] = 2
	propose(bob, other) // on another report: a proposal of its own
	ahead.Store(int64(25 * time.Hour))
	propose(security, report) // bob's is over
	if n := len(of[event.RevisionActivated](r.Events())); n != 1 {
		t.Fatalf("%d activations", n)
	}
	reply, err := bob.Promote(t.Context(), &bullav1.PromoteRequest{Digest: digest, NoReport: "a test"})
	if err != nil || reply.GetOutcome() != "active" || reply.GetRevision().GetSequence() != 2 {
		t.Fatalf("%v, %v", reply, err)
	}
	activated := of[event.RevisionActivated](r.Events())[1]
	if activated.Report != event.Digest(report) || activated.Proposal.IsZero() || activated.Key == "" || activated.By == nil || activated.Rollback {
		t.Errorf("%+v", activated)
	}
	r.Check()
}

// What was active before comes back by a rollback alone, which takes the next number.
func TestAbuse_A31_older_revision_replayed(t *testing.T) {
	t.Parallel()
	private, public := bundleKey(t)
	r := twoPersons(t, private, public, nil)
	security, bob := revisionsOf(r, "security"), revisionsOf(r, "bob")
	old, err := policy.Pack(os.DirFS(r.Config.Policy.Dir))
	if err != nil {
		t.Fatal(err)
	}
	archive := variant(t, r, "new")
	both := func(digest [32]byte, rollback bool) (reply *bullav1.RevisionChange, err error) {
		in := &bullav1.PromoteRequest{Digest: event.Digest(digest).String(), Rollback: rollback, NoReport: "a test"}
		for _, c := range []bullav1.RevisionsClient{security, bob} {
			if reply, err = c.Promote(t.Context(), in); err != nil {
				return nil, err
			}
		}
		return reply, nil
	}
	if _, err := security.Stage(t.Context(), &bullav1.StageRequest{Archive: archive, Signature: signedBundle(t, archive, private)}); err != nil {
		t.Fatal(err)
	}
	if _, err := both(policy.ArchiveDigest(archive), false); err != nil {
		t.Fatal(err)
	}
	if _, err := security.Stage(t.Context(), &bullav1.StageRequest{Archive: old, Signature: signedBundle(t, old, private)}); err != nil {
		t.Fatal(err) // to keep it changes nothing
	}
	_, err = both(policy.ArchiveDigest(old), false)
	code(t, err, codes.InvalidArgument, "older than the active one")
	_, err = both(policy.ArchiveDigest(archive), false)
	code(t, err, codes.InvalidArgument, "active already")
	if n := len(of[event.RevisionActivated](r.Events())); n != 2 {
		t.Errorf("%d activations", n)
	}
	reply, err := both(policy.ArchiveDigest(old), true)
	if err != nil || reply.GetRevision().GetSequence() != 3 || !reply.GetRevision().GetRollback() {
		t.Errorf("%v, %v; want revision 3", reply, err)
	}
	r.Check()
}

// A proposal is for the revision that comes next: what another activation overtook does not count.
func TestAbuse_A31_overtaken_proposal(t *testing.T) {
	t.Parallel()
	private, public := bundleKey(t)
	r := twoPersons(t, private, public, nil)
	security, bob := revisionsOf(r, "security"), revisionsOf(r, "bob")
	var digests []string
	for _, name := range []string{"one", "two"} {
		archive := variant(t, r, name)
		if _, err := security.Stage(t.Context(), &bullav1.StageRequest{Archive: archive, Signature: signedBundle(t, archive, private)}); err != nil {
			t.Fatal(err)
		}
		digests = append(digests, event.Digest(policy.ArchiveDigest(archive)).String())
	}
	promote := func(c bullav1.RevisionsClient, digest, want string) {
		t.Helper()
		reply, err := c.Promote(t.Context(), &bullav1.PromoteRequest{Digest: digest, NoReport: "a test"})
		if err != nil || reply.GetOutcome() != want {
			t.Fatalf("%v, %v; want %s", reply, err, want)
		}
	}
	promote(security, digests[1], "proposed")
	promote(security, digests[0], "proposed") // takes its place
	promote(bob, digests[1], "proposed")      // and so does this
	promote(security, digests[1], "active")
	promote(bob, digests[0], "proposed")
	r.Check()
}

// A broker that has bundle keys does not begin with a bundle that none of them signed.
func TestAbuse_A31_first_bundle(t *testing.T) {
	t.Parallel()
	_, public := bundleKey(t)
	mallory, _ := bundleKey(t)
	dir := t.TempDir()
	for name, text := range rig.PolicyFiles(t) {
		path := filepath.Join(dir, "policy", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	cfg := config.Config{
		Listen: "127.0.0.1:0", DataDir: filepath.Join(dir, "data"), Policy: config.Policy{Dir: filepath.Join(dir, "policy"), BundleKeys: []string{public}},
		Keyring: config.Keyring{KEKFile: filepath.Join(dir, "kek")}, Log: config.Log{Origin: "dev.bulla.test/bulla"},
		Site: config.Site{Security: []string{rig.ID("security").String()}},
	}
	if err := server.Init(t.Context(), cfg, "test", nil); !errors.Is(err, policy.ErrSignature) {
		t.Errorf("unsigned: %v", err)
	}
	archive, err := policy.Pack(os.DirFS(cfg.Policy.Dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Policy.Dir, policy.SignatureFile), signedBundle(t, archive, mallory), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := server.Init(t.Context(), cfg, "test", nil); !errors.Is(err, policy.ErrSignature) {
		t.Errorf("signed by somebody else: %v", err)
	}
}
