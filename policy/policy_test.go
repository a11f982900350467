package policy

import (
	"context"
	"io/fs"
	"os"
	"strings"
	"testing"

	shipped "github.com/bulla-project/bulla/rego"
)

const (
	now    = probeTime
	domain = "spiffe://dev.bulla.test/"
)

// bundleFiles returns the files of a shipped bundle, with changes; an empty text removes a file.
func bundleFiles(tb testing.TB, fsys fs.FS, changes map[string]string) map[string][]byte {
	tb.Helper()
	archive, err := Pack(fsys)
	if err != nil {
		tb.Fatal(err)
	}
	files, err := Unpack(archive)
	if err != nil {
		tb.Fatal(err)
	}
	for name, text := range changes {
		files[name] = []byte(text)
		if text == "" {
			delete(files, name)
		}
	}
	return files
}

// changed is the development bundle with changes, as an archive.
func changed(tb testing.TB, changes map[string]string) []byte {
	tb.Helper()
	return encodeArchive(bundleFiles(tb, shipped.Development(), changes))
}

// open loads the development bundle with changes and without its checks: what a hostile revision that
// passed them would do.
func open(tb testing.TB, changes map[string]string) *Revision {
	tb.Helper()
	archive := changed(tb, changes)
	files, err := Unpack(archive)
	if err != nil {
		tb.Fatal(err)
	}
	b, faults := readBundle(files)
	if len(faults) > 0 {
		tb.Fatal(faults)
	}
	rev, faults := b.build(tb.Context())
	if len(faults) > 0 {
		tb.Fatal(faults)
	}
	rev.archive, rev.digest = archive, ArchiveDigest(archive)
	return rev
}

var site = Invariants{Security: []string{domain + "security"}, Auditors: []string{domain + "auditor"}}

func development(tb testing.TB) *Revision {
	tb.Helper()
	rev, err := Load(tb.Context(), changed(tb, nil), site)
	if err != nil {
		tb.Fatal(err)
	}
	return rev
}

func newEngine(tb testing.TB, cfg Config) *Engine {
	tb.Helper()
	e := NewEngine(cfg)
	tb.Cleanup(e.Close)
	return e
}

// request is a plain request in the development trust domain.
func request(who string, action Action) Signals {
	return Signals{
		Version: SignalsVersion, Now: now, Action: action, Instance: "thumb",
		Principal: Principal{
			ID: domain + who, TrustDomain: "dev.bulla.test", Path: "/" + who, Type: TypeService, Level: LevelBasic,
			NotBefore: now - 600*second, NotAfter: now + 3000*second,
		},
		Resource: probeResource(action, "demo/key", "standard"),
		Network:  Network{Peer: "127.0.0.1:51234", TLSGroup: "X25519MLKEM768", PostQuantum: true, Channel: "ch"},
	}
}

func delivery(who, name, class string) Signals {
	s := request(who, ActionDeliver)
	s.Resource.Secret = &Secret{Name: name, Exists: true, Class: class, Version: 1, Exposure: "none"}
	s.Recipient = &Recipient{Suite: 9}
	s.History = &History{Novel: true}
	return s
}

func attested(s Signals, kind, tier string, score int64) Signals {
	s.Attestation = &Attestation{Kind: kind, DeviceID: "dev-1", Tier: tier, Score: score, IssuedAt: now - 5*second, KeysBound: true}
	return s
}

func TestShippedBundlesPass(t *testing.T) {
	t.Parallel()
	for name, fsys := range map[string]fs.FS{"base": shipped.Base(), "development": shipped.Development()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faults, err := CheckFS(t.Context(), fsys)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range faults {
				t.Error(f)
			}
			report, err := TestFS(t.Context(), fsys)
			if err != nil {
				t.Fatal(err)
			}
			if len(report.Results) < 30 || report.Coverage < 950 {
				t.Errorf("%d tests with a coverage of %d thousandths, uncovered: %v", len(report.Results), report.Coverage, report.Uncovered)
			}
		})
	}
}

func TestCheckDirMatchesCheckFS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.CopyFS(dir, shipped.Base()); err != nil {
		t.Fatal(err)
	}
	if faults, err := CheckDir(t.Context(), dir); err != nil || len(faults) > 0 {
		t.Errorf("CheckDir: %v %v", faults, err)
	}
	if report, err := TestDir(t.Context(), dir); err != nil || len(report.Results) == 0 {
		t.Errorf("TestDir: %v %v", report, err)
	}
	if _, err := CheckDir(t.Context(), dir+"/absent"); err == nil {
		t.Error("a folder that does not exist was checked")
	}
}

// TestDevelopmentContract is what scripts rely on: who may do what under the development bundle.
func TestDevelopmentContract(t *testing.T) {
	t.Parallel()
	rev := development(t)
	e := newEngine(t, Config{})
	may := map[string]string{
		"operator": "secret.put secret.show secret.list session.list session.show session.revoke device.enroll device.list " +
			"device.show device.revoke policy.list policy.show audit.rebuild doctor",
		"security": "secret.show secret.list session.list session.show session.revoke device.list device.show device.revoke " +
			"policy.push policy.promote policy.rollback policy.shadow policy.list policy.show policy.check audit.tail audit.export session.proof audit.query audit.blast-radius secret.usage audit.erase audit.hold audit.holds doctor",
		"auditor": "secret.show secret.list session.list session.show device.list device.show policy.list policy.show " +
			"audit.tail audit.export session.proof audit.rebuild audit.query audit.blast-radius secret.usage audit.holds",
		"workload": "deliver", "stranger": "", "nobody": "",
		"custodian-1": "share.list share.show share.fetch share.approve share.reject", "custodian-2": "share.list share.show share.fetch share.approve share.reject",
		"custodian-3": "share.list share.show share.fetch share.approve share.reject",
	}
	for who, allowed := range may {
		for _, action := range Actions() {
			s := request(who, action)
			if action == ActionDeliver {
				s = delivery(who, "demo/key", "standard")
			}
			if strings.HasPrefix(string(action), "share.") && action != ActionShareList { // which waits for all three
				s.Resource = Resource{Kind: KindRound, Round: &Round{ID: "round", Kind: "approval", Principal: "spiffe://dev.bulla.test/workload", Role: "custodian"}}
			}
			d := e.Decide(t.Context(), rev, s)
			want := strings.Contains(" "+allowed+" ", " "+string(action)+" ")
			if (d.Effect == Permit) != want || d.Covered != want || d.Fault != "" {
				t.Errorf("%s %s: %s, covered %t, want permitted %t", who, action, describe(d), d.Covered, want)
			}
		}
	}
}

func TestDevelopmentSecrets(t *testing.T) {
	t.Parallel()
	rev := development(t)
	e := newEngine(t, Config{})
	high := delivery("workload", "demo/a/b", "high")
	stale := attested(high, "tpm2", "affirming", 100)
	stale.Attestation.IssuedAt = now - 700*second
	future := attested(high, "tpm2", "affirming", 100)
	future.Attestation.IssuedAt = now + second
	absent := delivery("workload", "demo/none", "")
	absent.Resource.Secret.Exists = false
	burst := delivery("workload", "demo/key", "standard")
	burst.History = &History{RateMilli: 60_000_000, DenialsMilli: 100_000, UnconfirmedMilli: 50_000, Novel: true}
	burstHigh := attested(burst, "development", "warning", 30)
	burstHigh.Resource.Secret = high.Resource.Secret
	for name, c := range map[string]struct {
		s    Signals
		want Effect
	}{
		"standard":              {delivery("workload", "demo/key", "standard"), Permit},
		"a thousand in a row":   {burst, Permit},
		"the same, high":        {burstHigh, Permit},
		"high, TPM":             {attested(high, "tpm2", "affirming", 90), Permit},
		"high, development":     {attested(high, "development", "warning", 30), Permit},
		"high, bare":            {high, StepUp},
		"high, stale":           {stale, StepUp},
		"high, from the future": {future, StepUp},
		"high, contraindicated": {attested(high, "tpm2", "contraindicated", 90), Deny},
		"high, no verdict":      {attested(high, "tpm2", "none", 90), Deny},
		"outside of demo":       {delivery("workload", "prod/key", "standard"), Deny},
		"demo itself":           {delivery("workload", "demo", "standard"), Deny},
		"unknown class":         {delivery("workload", "demo/key", "other"), Deny},
		"does not exist":        {absent, Deny},
	} {
		d := e.Decide(t.Context(), rev, c.s)
		if d.Effect != c.want || d.Fault != "" {
			t.Errorf("%s: %s at risk %d, want %s", name, describe(d), d.Risk.Score, c.want)
		}
		if (d.Effect == StepUp) != (d.Requires.Attestation != nil) {
			t.Errorf("%s: requires %+v", name, d.Requires)
		}
	}
}

// What the classes split and approved ask for, and that nothing else changed with them.
func TestDevelopmentCustody(t *testing.T) {
	t.Parallel()
	rev := development(t)
	e := newEngine(t, Config{})
	id := func(name string) string { return "spiffe://dev.bulla.test/" + name }
	approved := func(by ...string) Signals {
		s := delivery("workload", "demo/key", "approved")
		for _, name := range by {
			s.Approvals = append(s.Approvals, Approval{Principal: id(name), At: now - second})
		}
		return s
	}
	d := e.Decide(t.Context(), rev, delivery("workload", "demo/key", "split"))
	if k := d.Obligations.SplitKnowledge; d.Effect != Permit || k == nil || k.Threshold != 2 || len(k.Holders) != 3 || len(k.Persons) != 3 {
		t.Errorf("split: %s, %+v", describe(d), d.Obligations.SplitKnowledge)
	}
	for name, c := range map[string]struct {
		s    Signals
		want Effect
	}{
		"nobody":        {approved(), StepUp},
		"a custodian":   {approved("custodian-1"), Permit},
		"two of them":   {approved("custodian-1", "custodian-2"), Permit},
		"an operator":   {approved("operator"), StepUp},
		"a stranger":    {approved("stranger"), StepUp},
		"the requester": {approved("workload"), StepUp},
	} {
		if d := e.Decide(t.Context(), rev, c.s); d.Effect != c.want || (d.Requires.Approval != nil) != (c.want == StepUp) || d.Fault != "" {
			t.Errorf("approved by %s: %s, requires %+v", name, describe(d), d.Requires)
		}
	}
	for _, class := range []string{"standard", "high", "split", "approved"} {
		for _, who := range []string{"custodian-1", "custodian-2", "custodian-3"} {
			s := attested(delivery(who, "demo/key", class), "tpm2", "affirming", 100)
			s.Approvals = approved("custodian-1", "custodian-2", "custodian-3").Approvals
			if d := e.Decide(t.Context(), rev, s); d.Effect != Deny || d.Covered {
				t.Errorf("%s, who is a custodian, reads a secret of class %s: %s", who, class, describe(d))
			}
		}
	}
}

// A10: to a caller without a grant, a name that does not exist and one that is denied look the same.
func TestAbuse_A10_denials_of_strangers_are_equal(t *testing.T) {
	t.Parallel()
	rev := development(t)
	e := newEngine(t, Config{})
	known := delivery("stranger", "demo/key", "high")
	unknown := delivery("stranger", "demo/none", "")
	unknown.Resource.Secret.Exists = false
	a, b := e.Decide(t.Context(), rev, known), e.Decide(t.Context(), rev, unknown)
	a.InputDigest, b.InputDigest = "", ""
	if x, y := string(a.Canonical()), string(b.Canonical()); x != y || a.Covered {
		t.Errorf("two denials differ:\n%s\n%s", x, y)
	}
}

// A11: nothing is cached between decisions, and every signal counts for the digest of the input.
func TestAbuse_A11_every_signal_is_a_new_decision(t *testing.T) {
	t.Parallel()
	rev := development(t)
	e := newEngine(t, Config{Workers: 1})
	base := attested(delivery("workload", "demo/key", "high"), "tpm2", "affirming", 90)
	seen := map[string]bool{e.Decide(t.Context(), rev, base).InputDigest: true}
	for name, change := range map[string]func(*Signals){
		"now":      func(s *Signals) { s.Now++ },
		"action":   func(s *Signals) { s.Action = ActionSecretShow },
		"id":       func(s *Signals) { s.Principal.ID += "x" },
		"level":    func(s *Signals) { s.Principal.Level = LevelEnhanced },
		"instance": func(s *Signals) { s.Instance += "x" },
		"secret":   func(s *Signals) { x := *s.Resource.Secret; x.Version++; s.Resource.Secret = &x },
		"device":   func(s *Signals) { x := *s.Attestation; x.DeviceID += "x"; s.Attestation = &x },
		"none":     func(s *Signals) { s.Attestation = nil },
		"peer":     func(s *Signals) { s.Network.Peer = "127.0.0.2:51234" },
		"channel":  func(s *Signals) { s.Network.Channel += "x" },
		"suite":    func(s *Signals) { s.Recipient = &Recipient{Suite: 8} },
		"history":  func(s *Signals) { s.History = &History{RateMilli: 1, Novel: true} },
		"request":  func(s *Signals) { s.Request.MaxUses = 1 },
		"approval": func(s *Signals) { s.Approvals = []Approval{{Principal: "spiffe://dev.bulla.test/custodian-1", At: 1}} },
	} {
		s := base
		change(&s)
		digest := e.Decide(t.Context(), rev, s).InputDigest
		if seen[digest] {
			t.Errorf("a change of %s gave a digest that was there", name)
		}
		seen[digest] = true
	}
	// The permit of a moment ago is not given again once the attestation is gone.
	if d := e.Decide(t.Context(), rev, base); d.Effect != Permit {
		t.Error(describe(d))
	}
	base.Attestation = nil
	if d := e.Decide(t.Context(), rev, base); d.Effect != StepUp {
		t.Error(describe(d))
	}
}

func TestReplayIsBitExact(t *testing.T) {
	t.Parallel()
	rev := development(t)
	e := newEngine(t, Config{})
	for _, s := range []Signals{
		delivery("workload", "demo/key", "standard"), delivery("workload", "demo/key", "high"),
		attested(delivery("workload", "demo/key", "high"), "development", "warning", 40),
		delivery("stranger", "demo/key", "high"), request("security", ActionPolicyPush),
		{},
	} {
		first := e.Decide(t.Context(), rev, s)
		// A revision loaded again from its archive must judge alike.
		again, err := Load(t.Context(), rev.Archive(), site)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range []*Revision{rev, again} {
			second, err := Replay(t.Context(), r, first.Signals)
			if err != nil {
				t.Fatal(err)
			}
			if x, y := string(first.Canonical()), string(second.Canonical()); x != y {
				t.Errorf("replay differs:\n%s\n%s", x, y)
			}
		}
	}
	if _, err := Replay(t.Context(), rev, []byte("{}")); err == nil {
		t.Error("signals without a version were replayed")
	}
}

func TestDecideWithoutRevision(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Config{})
	if e.Active() != nil {
		t.Error("a new engine has an active revision")
	}
	if d := e.Decide(t.Context(), e.Active(), request("security", ActionPolicyPush)); d.Effect != Deny || d.Fault == "" {
		t.Error(describe(d))
	}
	rev := open(t, nil)
	if old := e.Activate(rev); old != nil || e.Active() != rev || e.Activate(rev) != rev {
		t.Error("Activate does not return the revision before")
	}
	ctx, cancel := context.WithCancel(t.Context())
	e.Close()
	if d := e.Decide(ctx, rev, request("security", ActionPolicyPush)); d.Effect != Deny || d.TimedOut {
		t.Error("a closed engine decided: " + describe(d))
	}
	cancel()
}

func TestReferencesAndNames(t *testing.T) {
	t.Parallel()
	rev := development(t)
	files := bundleFiles(t, shipped.Development(), nil)
	if string(rev.References()) != string(files[fileReferences]) || rev.Name() != "development" {
		t.Errorf("references or name %q differ from the bundle", rev.Name())
	}
	if got := strings.Join(Scopes("a/b/c"), " "); got != "a/b/c a/b/ a/ *" {
		t.Error(got)
	}
	if got := strings.Join(Scopes("a"), " ") + strings.Join(Scopes(""), " "); got != "a *" {
		t.Error(got)
	}
}
