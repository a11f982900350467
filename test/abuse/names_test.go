package abuse

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/test/rig"
)

// notNames would be the same name as "demo/root" to somebody who trims, folds, decodes or cleans, or they mean
// more than one.
func notNames() []string {
	return []string{
		" demo/root", "demo/root ", "demo/root\t", "demo/root\n", "demo/root\r\n", "\ufeffdemo/root", "demo/root\u00a0", "demo/root\u200b", "demo/ root",
		"DEMO/root", "demo/ROOT", "Demo/Root", "demo/root/", "/demo/root", "demo//root", "demo/root//", "/", "",
		"demo/root\x00", "demo\x00/root", "demo/root\x00.txt", "demo/r\x1b[31moot", "demo/root\x7f",
		"demo/r\u043eot", "d\u0435mo/root", "demo/roo\uff54", "demo\uff0froot", "demo\u2215root", "demo/ro\u0301ot", "demo/\u202etoor", "demo/\u0131",
		"demo/%72oot", "demo%2froot", "demo/root%00", "demo\\root", "demo/root?", "demo/root#", "demo/root;x", "demo:root",
		"demo/.", "demo/..", "demo/../demo/root", "./demo/root", "../demo/root", ".", "..", "...", "demo/./root", "demo/.hidden", "demo/..root",
		"*", "demo/*", "demo/**", "demo/r*", "demo/roo?", "demo/[r]oot", "demo/{root}", "demo/root,demo/other", "demo/root|demo/other",
		"demo/root'", "demo/root\"", "demo/root`", "demo/$root", "demo/~root", "-demo/root", "_/root", strings.Repeat("a", 256), strings.Repeat("a/", 16) + "a",
	}
}

func TestAbuse_A08_names_in_other_spellings(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/root", "standard", "canary")
	w, operator := r.Raw("workload"), bullav1.NewSecretsClient(r.Client("operator").Conn())
	if _, _, err := w.Deliver(t.Context(), "demo/root"); err != nil {
		t.Fatalf("in good order: %v", err)
	}
	before := mark(r)
	for _, name := range notNames() {
		if strings.ToValidUTF8(name, "") != name {
			t.Fatalf("%q can't be sent", name)
		}
		_, _, err := w.Deliver(t.Context(), name)
		wantCode(t, "deliver "+name, err, codes.InvalidArgument, "request")
		_, err = operator.PutSecret(t.Context(), &bullav1.PutSecretRequest{Name: name, Class: "standard", Value: []byte("x"), RequestId: event.NewID(time.Now()).String()})
		wantCode(t, "put "+name, err, codes.InvalidArgument, "request")
		_, err = operator.GetSecretMetadata(t.Context(), &bullav1.GetSecretMetadataRequest{Name: name})
		wantCode(t, "show "+name, err, codes.InvalidArgument, "request")
	}
	for _, e := range after(r, before) {
		switch e.Body.(type) {
		case event.RequestRefused, event.InstanceBound:
		default:
			t.Errorf("a name in another spelling made a %s", e.Body.EventType())
		}
	}
	// The same for those who are named: an operator under another spelling of its id can't be enrolled for.
	devices := bullav1.NewDevicesClient(r.Client("operator").Conn())
	for _, id := range []string{"spiffe://dev.bulla.test/WORKLOAD/", "spiffe://DEV.bulla.test/workload", " spiffe://dev.bulla.test/workload", "*", "spiffe://dev.bulla.test/../workload", "workload"} {
		_, err := devices.BeginEnrolment(t.Context(), &bullav1.BeginEnrolmentRequest{Kind: "development", Principals: []string{id}})
		wantCode(t, "enrol for "+id, err, codes.InvalidArgument, "request")
	}
	for _, class := range []string{"Standard", "standard ", "standard\x00", "st\u0430ndard", "*", "../standard"} {
		_, err := operator.PutSecret(t.Context(), &bullav1.PutSecretRequest{Name: "demo/x", Class: class, Value: []byte("x"), RequestId: event.NewID(time.Now()).String()})
		wantCode(t, "class "+class, err, codes.InvalidArgument, "request")
	}
	list, err := operator.ListSecrets(t.Context(), &bullav1.ListSecretsRequest{})
	if err != nil || len(list.GetSecrets()) != 1 || list.GetSecrets()[0].GetName() != "demo/root" || len(list.GetSecrets()[0].GetVersions()) != 1 {
		t.Errorf("the broker has %v, %v; want one version of demo/root", list, err)
	}
}

// Grants end at a slash, and a list shows what reading would show, whatever page it is on.
func TestAbuse_A09_folders_and_lists(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{Policy: func(files map[string]string) {
		replaceIn(t, files, "rego/administration.rego", "\tcovered\n\tlimits := ", "\tcovered\n\tvisible\n\tlimits := ")
		files["rego/administration.rego"] += "\ndefault visible := false\n\nvisible if input.action != \"secret.show\"\n\nvisible if startswith(input.resource.secret.name, \"demo/\")\n"
	}})
	names := []string{"demo/a", "demo/b", "hidden/a", "hidden/b", "demo/z/c", "demo-other/a", "demoa", "zz/last"}
	for _, n := range names {
		r.Put(n, "standard", "canary")
	}
	w := r.Raw("workload") // has a grant for demo/
	for _, n := range names {
		_, _, err := w.Deliver(t.Context(), n)
		if covered := strings.HasPrefix(n, "demo/"); covered != (err == nil) {
			t.Errorf("deliver %s: %v; covered by the grant: %t", n, err, covered)
		}
	}
	service := bullav1.NewSecretsClient(r.Client("operator").Conn())
	readable := map[string]bool{}
	for _, n := range names {
		_, err := service.GetSecretMetadata(t.Context(), &bullav1.GetSecretMetadataRequest{Name: n})
		readable[n] = err == nil
	}
	for _, limit := range []uint32{0, 1, 2, 3, 1000} {
		for _, prefix := range []string{"", "demo", "demo/", "hidden/", "h", "*", "../", ".", "DEMO/", "%"} {
			seen := listAll(t, service, prefix, limit)
			for _, n := range names {
				if want := readable[n] && strings.HasPrefix(n, prefix); seen[n] != want {
					t.Errorf("a list of %q by %d: %s is shown: %t; readable: %t", prefix, limit, n, seen[n], readable[n])
				}
			}
		}
	}
	if readable["hidden/a"] || !readable["demo/a"] {
		t.Fatal("the policy of this test does not hide what it should")
	}
	for _, name := range []string{"workload", "stranger"} {
		_, err := bullav1.NewSecretsClient(r.Client(name).Conn()).ListSecrets(t.Context(), &bullav1.ListSecretsRequest{})
		wantCode(t, "a list by "+name, err, codes.PermissionDenied, "policy")
	}
}

func listAll(t *testing.T, service bullav1.SecretsClient, prefix string, limit uint32) map[string]bool {
	t.Helper()
	seen, next := map[string]bool{}, ""
	for {
		page, err := service.ListSecrets(t.Context(), &bullav1.ListSecretsRequest{Prefix: prefix, After: next, Limit: limit})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range page.GetSecrets() {
			if seen[s.GetName()] {
				t.Fatalf("%s is listed twice", s.GetName())
			}
			seen[s.GetName()] = true
		}
		if next = page.GetNext(); next == "" {
			return seen
		}
		if !seen[next] {
			t.Errorf("the cursor names %s, which the list does not show", next)
		}
	}
}

// To a caller without a grant what is denied and what is not there look alike: the answer, its size, and what it
// leaves behind. (Times are not compared: on a loaded machine such a test would prove nothing.)
func TestAbuse_A10_unknown_or_denied(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/known", "standard", "canary")
	r.Put("demo/raised", "high", "canary")
	_, device := r.Device(rig.ID("workload").String())
	_, gone := r.Device(rig.ID("workload").String())
	if _, err := bullav1.NewDevicesClient(r.Client("security").Conn()).RevokeDevice(t.Context(), &bullav1.RevokeDeviceRequest{Id: gone, Reason: "x"}); err != nil {
		t.Fatal(err)
	}
	unknownDevice := device[:len(device)-8] + strings.Repeat("a", 8)
	w := r.Raw("stranger")
	deliver := func(name string, version uint32) func() error {
		return func() error {
			w.Challenge(nil)
			ask, _ := w.Ask(name)
			ask.Version = version
			_, err := w.Broker.Deliver(t.Context(), w.Sign(bullav1.Broker_Deliver_FullMethodName, ask))
			return err
		}
	}
	secrets, devices, policies := bullav1.NewSecretsClient(w.Conn), bullav1.NewDevicesClient(w.Conn), bullav1.NewPoliciesClient(w.Conn)
	show := func(name string) func() error {
		return func() error {
			_, err := secrets.GetSecretMetadata(t.Context(), &bullav1.GetSecretMetadataRequest{Name: name})
			return err
		}
	}
	put := func(name, class string) func() error {
		return func() error {
			_, err := secrets.PutSecret(t.Context(), &bullav1.PutSecretRequest{Name: name, Class: class, Value: []byte("x"), RequestId: event.NewID(time.Now()).String()})
			return err
		}
	}
	showDevice := func(id string) func() error {
		return func() error {
			_, err := devices.GetDevice(t.Context(), &bullav1.GetDeviceRequest{Id: id})
			return err
		}
	}
	revoke := func(id string) func() error {
		return func() error {
			_, err := devices.RevokeDevice(t.Context(), &bullav1.RevokeDeviceRequest{Id: id, Reason: "x"})
			return err
		}
	}
	attest := func(id string) func() error {
		return func() error {
			w.Challenge(nil)
			_, err := w.Broker.Attest(t.Context(), w.Sign(bullav1.Broker_Attest_FullMethodName, &bullav1.AttestRequest{Kind: "development", Device: id, Evidence: []byte("{}")}))
			return err
		}
	}
	revision := func(digest string) func() error {
		return func() error {
			_, err := policies.GetRevision(t.Context(), &bullav1.GetRevisionRequest{Digest: digest})
			return err
		}
	}
	for _, c := range []struct {
		what          string
		there, absent func() error
	}{
		{"deliver", deliver("demo/known", 0), deliver("demo/ghost", 0)},
		{"deliver, class high", deliver("demo/raised", 0), deliver("demo/ghosts", 0)},
		{"deliver a version", deliver("demo/known", 1), deliver("demo/known", 2)},
		{"deliver a version of nothing", deliver("demo/known", 1), deliver("demo/ghost", 1)},
		{"show", show("demo/known"), show("demo/ghost")},
		{"put", put("demo/known", "standard"), put("demo/ghost", "standard")},
		{"put with another class", put("demo/raised", "standard"), put("demo/ghosts", "standard")},
		{"put without a class", put("demo/known", ""), put("demo/ghost", "")},
		{"show a device", showDevice(device), showDevice(unknownDevice)},
		{"revoke a device", revoke(device), revoke(unknownDevice)},
		{"revoke a revoked device", revoke(gone), revoke(unknownDevice)},
		{"attest by a device", attest(device), attest(unknownDevice)},
		{"attest by a revoked device", attest(gone), attest(unknownDevice)},
		{"show a revision", revision(""), revision(strings.Repeat("0", 64))},
	} {
		alike(t, r, c.what, c.there, c.absent)
	}
	// The workload has a grant for demo/ and none for prod/.
	r.Put("prod/known", "standard", "canary")
	w = r.Raw("workload")
	alike(t, r, "outside of a grant", deliver("prod/known", 0), deliver("prod/ghost", 0))
	_, err := r.Client("workload").Get(t.Context(), "demo/ghost")
	if status.Code(deliver("demo/ghost", 0)()) != codes.NotFound || err == nil {
		t.Errorf("inside of its grant it is told %v; want that there is none", err)
	}
}

// TestAbuse_A25 looks at every line that the metrics show, after traffic with names that would be noticed.
func TestAbuse_A25_metric_labels(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{Edit: listenHTTP})
	r.Put("demo/zanzibar", "standard", "canaryvalue")
	r.Put("demo/timbuktu", "high", "canaryvalue")
	file, device := r.Device(rig.ID("workload").String())
	c := r.Client("workload", func(c *client.Config) { c.DeviceFile = file })
	get(t, c, "demo/zanzibar", "canaryvalue")
	s := get(t, c, "demo/timbuktu", "canaryvalue")
	_, _ = r.Client("stranger").Get(t.Context(), "demo/zanzibar")
	text := fetch(t, r, "/metrics")
	counted := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		if strings.Contains(line, "{") {
			t.Errorf("a metric with labels: %s", line)
		}
		counted = counted || line == "bulla_deliveries_total 2\n"
	}
	if !counted {
		t.Errorf("the metrics don't show two deliveries:\n%s", text)
	}
	for _, needle := range []string{"zanzibar", "timbuktu", "canaryvalue", "spiffe", rig.TrustDomain, "workload", "stranger", "operator", device, s.SessionID, "127.0.0.1", "standard"} {
		if strings.Contains(text, needle) {
			t.Errorf("the metrics hold %q", needle)
		}
	}
}

// TestAbuse_A42 floods the broker with denials and looks at everybody else.
func TestAbuse_A42_flood_of_denials(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	flood, before := r.Raw("stranger"), mark(r)
	began := time.Now()
	const tries = 1500
	limited, denied := 0, 0
	flooding, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		other := bullav1.NewSecretsClient(flood.Conn)
		for range tries {
			_, err := other.GetSecretMetadata(flooding, &bullav1.GetSecretMetadataRequest{Name: "demo/a"})
			switch status.Code(err) {
			case codes.ResourceExhausted:
				limited++
			case codes.PermissionDenied:
				denied++
			}
		}
	}()
	harmed := r.Client("workload")
	for range 20 {
		get(t, harmed, "demo/a", "a")
	}
	<-done
	stop()
	// 200 at once and 20 a second are what one principal may spend.
	if bound := 200 + int(20*time.Since(began).Seconds()) + 1; denied > bound || limited+denied != tries {
		t.Errorf("%d denied, %d limited of %d; at most %d may cost an event", denied, limited, tries, bound)
	}
	if limited == 0 {
		t.Fatal("nothing was limited")
	}
	_, err := bullav1.NewSecretsClient(r.Client("stranger").Conn()).ListSecrets(t.Context(), &bullav1.ListSecretsRequest{})
	if c := status.Code(err); c != codes.ResourceExhausted && c != codes.PermissionDenied {
		t.Errorf("over another connection: %v", err)
	}
	if status.Code(err) == codes.ResourceExhausted {
		limited++
	} else {
		denied++
	}
	r.Stop()
	r.Run()
	counted, events := uint64(0), 0
	for _, e := range after(r, before) {
		switch b := e.Body.(type) {
		case event.RefusalsCounted:
			if b.Principal == flood.ID {
				counted += b.Count
			}
		case event.DecisionDenied:
			if b.Principal == flood.ID {
				events++
			}
		}
	}
	if counted != uint64(limited) || events != denied {
		t.Errorf("recorded: %d denials and %d counted; there were %d and %d", events, counted, denied, limited)
	}
}

// TestAbuse_A11 changes one input after the other under a permit that just held, on the same connection with the
// same keys.
func TestAbuse_A11_no_decision_outlives_its_inputs(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	r.Put("demo/high", "high", "top")
	file, id := r.Device(rig.ID("workload").String())
	a := newAttested(t, r, file, id)
	deliver := func(name string, change func(*bullav1.DeliverRequest)) string {
		t.Helper()
		a.w.Challenge(nil)
		ask, _ := a.w.Ask(name)
		if change != nil {
			change(ask)
		}
		_, err := a.w.Broker.Deliver(t.Context(), a.w.Sign(bullav1.Broker_Deliver_FullMethodName, ask))
		return outcome(err)
	}
	want := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s; want %s", what, got, want)
		}
	}
	want("without evidence", deliver("demo/high", nil), "STEP_UP")
	a.attest(t)
	want("with evidence", deliver("demo/high", nil), "PERMIT")
	want("another grade", deliver("demo/high", func(d *bullav1.DeliverRequest) { d.Grade = "gated" }), "DENY")
	want("another version", deliver("demo/high", func(d *bullav1.DeliverRequest) { d.Version = 9 }), "NotFound")
	want("another name", deliver("prod/high", nil), "DENY")
	want("as before", deliver("demo/high", nil), "PERMIT")
	other := r.Raw("workload")
	_, _, err := other.Deliver(t.Context(), "demo/high")
	want("another instance", outcome(err), "STEP_UP")

	want("class standard", deliver("demo/a", nil), "PERMIT")
	r.Put("demo/a", "high", "a2")
	a.forget(t)
	want("after its class was raised, without evidence", deliver("demo/a", nil), "STEP_UP")

	a.attest(t)
	want("evidence under the reference values of then", deliver("demo/high", nil), "PERMIT")
	r.Push(func(files map[string]string) {
		replaceIn(t, files, "references.yaml", "version: development-1", "version: development-2")
		replaceIn(t, files, "references.yaml", "accept: true", "accept: false")
	})
	want("after the reference values were changed", deliver("demo/high", nil), "STEP_UP")
	r.Push(func(files map[string]string) {})
	a.attest(t)
	want("attested again", deliver("demo/high", nil), "PERMIT")

	r.Push(func(files map[string]string) {
		replaceIn(t, files, "data/classes.yaml", "max_age_seconds: 600", "max_age_seconds: 1")
		replaceIn(t, files, "canaries.yaml", "issued_at: 1736157590000000", "issued_at: 1736157600000000")
	})
	eventually(t, "an attestation grows old", func() bool { return deliver("demo/high", nil) == "STEP_UP" })
	r.Push(func(files map[string]string) {})
	want("the policy of before", deliver("demo/high", nil), "PERMIT")
	r.Push(func(files map[string]string) {
		replaceIn(t, files, "data/grants.yaml", "spiffe://dev.bulla.test/workload", "spiffe://dev.bulla.test/somebody")
		replaceIn(t, files, "canaries.yaml", "spiffe://dev.bulla.test/workload", "spiffe://dev.bulla.test/somebody")
	})
	want("after its grant was taken", deliver("demo/high", nil), "DENY")
	r.Push(func(files map[string]string) {})
	want("and given back", deliver("demo/high", nil), "PERMIT")
	_, err = bullav1.NewDevicesClient(r.Client("security").Conn()).RevokeDevice(t.Context(), &bullav1.RevokeDeviceRequest{Id: id, Reason: "lost"})
	if err != nil {
		t.Fatal(err)
	}
	want("after its device was revoked", deliver("demo/high", nil), "STEP_UP")
}

// outcome is what a delivery came to, in one word.
func outcome(err error) string {
	if err == nil {
		return string(policy.Permit)
	}
	if d := rig.Refusal(err).GetDecision(); d != "" {
		return d
	}
	return status.Code(err).String()
}
