package abuse

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/dev"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

func listenHTTP(c *config.Config) { c.HTTPListen = "127.0.0.1:0" }

func fetch(t *testing.T, r *rig.Rig, path string) string {
	t.Helper()
	resp, err := http.Get("http://" + r.Server.HTTPAddr().String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", path, resp.Status, err)
	}
	return string(text)
}

// attested is an instance of workload with a development device, both spoken for by hand.
type attested struct {
	r      *rig.Rig
	w      *rig.Raw
	id     string
	device *dev.Device
}

func newAttested(t *testing.T, r *rig.Rig, file, id string) *attested {
	t.Helper()
	device, err := dev.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	return &attested{r: r, w: r.Raw("workload"), id: id, device: device}
}

// attest shows good evidence.
func (a *attested) attest(t *testing.T) {
	t.Helper()
	a.w.Challenge(nil)
	evidence, err := a.device.Attest(t.Context(), attest.Binding{Nonce: a.w.Nonce, Channel: a.w.Exporter, Principal: a.w.ID, InstanceKey: marshalKey(t, a.w)})
	if err != nil {
		t.Fatal(err)
	}
	in := &bullav1.AttestRequest{Kind: "development", Device: a.id, Evidence: evidence}
	if _, err := a.w.Broker.Attest(t.Context(), a.w.Sign(bullav1.Broker_Attest_FullMethodName, in)); err != nil {
		t.Fatal(err)
	}
}

// forget goes on with an instance that has shown nothing.
func (a *attested) forget(t *testing.T) {
	t.Helper()
	a.w = a.r.Raw("workload")
}

// Where the record goes is said in the configuration's file and nowhere else: no request of the API has a field
// that could say it, and none of those that exist makes a file.
func TestAbuse_A26_where_the_record_goes(t *testing.T) {
	t.Parallel()
	suspicious := regexp.MustCompile(`(?i)path|file|dir|sink|mode|output|url|uri|endpoint|address|socket|command|exec|level|format`)
	seen := 0
	var check func(protoreflect.MessageDescriptor)
	check = func(m protoreflect.MessageDescriptor) {
		seen++
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			if suspicious.MatchString(string(f.Name())) {
				t.Errorf("%s has a field %s: does it say where or how something is written?", m.FullName(), f.Name())
			}
			if f.Message() != nil && f.Message() != m {
				check(f.Message())
			}
		}
	}
	protoregistry.GlobalFiles.RangeFilesByPackage("bulla.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			for j := range f.Services().Get(i).Methods().Len() {
				check(f.Services().Get(i).Methods().Get(j).Input())
			}
		}
		return true
	})
	if seen < 15 {
		t.Fatalf("%d requests: the list of them is not complete", seen)
	}
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	files := func() (out []string) {
		err := filepath.WalkDir(r.Dir, func(path string, d fs.DirEntry, err error) error {
			if !d.IsDir() && !strings.Contains(path, "/log/") && !strings.HasSuffix(path, ".sock") && !strings.Contains(filepath.Base(path), "ledger.db") {
				out = append(out, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	security, auditor := r.Client("security"), r.Client("auditor")
	before := strings.Join(files(), "\n")
	for _, note := range []string{"../../etc/passwd", "/tmp/sink", "file:///tmp/sink\x00"} {
		_, err := bullav1.NewPoliciesClient(security.Conn()).PushRevision(t.Context(), &bullav1.PushRevisionRequest{Archive: r.Archive(func(map[string]string) {}), Note: note})
		if err != nil {
			t.Fatal(err)
		}
	}
	stream, err := bullav1.NewAuditClient(auditor.Conn()).Export(t.Context(), &bullav1.ExportRequest{})
	for err == nil {
		_, err = stream.Recv()
	}
	if now := strings.Join(files(), "\n"); now != before {
		t.Errorf("calls of the API made files:\n%s\nbefore:\n%s", now, before)
	}
	// A policy bundle is the one upload with names in it: an entry is put where its name belongs in the order.
	good := r.Archive(func(map[string]string) {})
	for name, before := range map[string]string{
		"rego/aaa.rego": "rego/administration.rego ", // in good order
		"../../x.rego":  "canaries.yaml ", "/etc/x.rego": "canaries.yaml ", "audit.yaml": "canaries.yaml ", "CON": "canaries.yaml ",
		"rego/../../x.rego": "rego/administration.rego ", "rego/.rego": "rego/administration.rego ", "rego/\x00.rego": "rego/administration.rego ",
		"data/../../x.yaml": "data/classes.yaml ",
	} {
		text := "package bulla.x\n"
		if strings.HasPrefix(name, "data/") {
			text = "{}\n"
		}
		archive := bytes.Replace(good, []byte(before), []byte(fmt.Sprintf("%s %d\n%s\n%s", name, len(text), text, before)), 1)
		_, err := bullav1.NewPoliciesClient(security.Conn()).PushRevision(t.Context(), &bullav1.PushRevisionRequest{Archive: archive})
		if name == "rego/aaa.rego" {
			if err != nil {
				t.Errorf("in good order: %v", err)
			}
			continue
		}
		wantCode(t, "a bundle with "+name, err, codes.InvalidArgument, "request")
	}
	if now := strings.Join(files(), "\n"); now != before {
		t.Errorf("bundles made files:\n%s\nbefore:\n%s", now, before)
	}
}

// Every refusal of a delivery, with the secret at hand and an envelope in the store: nothing of either is in it.
func TestAbuse_A40_errors_carry_nothing(t *testing.T) {
	t.Parallel()
	const canary = "canary-7f2b9c"
	r := rig.Start(t, rig.Config{Policy: func(files map[string]string) {
		replaceIn(t, files, "data/classes.yaml", "time_bound: {ttl_seconds: 3600, grade: open}\n    usage_limit: {max_uses: 1000, grade: open}",
			"time_bound: {ttl_seconds: 3600, grade: open}\n    rate_limit: {max: 4, window_seconds: 86400, grade: open}")
	}})
	r.Put("demo/a", "standard", canary)
	r.Put("demo/high", "high", canary)
	r.Put("prod/a", "standard", canary)
	w := r.Raw("workload")
	delivered, open := opened(t, w, "demo/a")
	forged := receipt(t, w, open)
	needles := [][]byte{[]byte(canary), delivered.GetEnvelope()[:40], slices.Clone(forged.GetR())}
	refusals := map[string]error{}
	send := func(what string, method string, req *bullav1.SignedRequest) {
		t.Helper()
		var got bool
		var err error
		switch method {
		case bullav1.Broker_Deliver_FullMethodName:
			var reply *bullav1.DeliverReply
			reply, err = w.Broker.Deliver(t.Context(), req)
			got = len(reply.GetEnvelope()) > 0
		default:
			_, err = w.Broker.Acknowledge(t.Context(), req)
		}
		if err == nil || got {
			t.Errorf("%s: an answer with an envelope (%t), %v; want a refusal", what, got, err)
			return
		}
		refusals[what] = err
	}
	const deliver = bullav1.Broker_Deliver_FullMethodName
	ask := func(name string, change func(*bullav1.DeliverRequest)) *bullav1.SignedRequest {
		w.Challenge(nil)
		in, _ := w.Ask(name)
		if change != nil {
			change(in)
		}
		return w.Sign(deliver, in)
	}
	send("no grant", deliver, ask("prod/a", nil))
	send("step up", deliver, ask("demo/high", nil))
	send("not found", deliver, ask("demo/none", nil))
	send("a grade that is not kept", deliver, ask("demo/a", func(d *bullav1.DeliverRequest) { d.Grade = "proxied" }))
	send("a bad name", deliver, ask("demo/A", nil))
	send("a bad suite", deliver, ask("demo/a", func(d *bullav1.DeliverRequest) { d.Suite = "none" }))
	send("a bad key", deliver, ask("demo/a", func(d *bullav1.DeliverRequest) { d.RecipientKey = d.RecipientKey[1:] }))
	spoiled := ask("demo/a", nil)
	spoiled.Proof.Signature[4] ^= 1
	send("a bad proof", deliver, spoiled)
	send("a nonce again", deliver, spoiled)
	first := ask("demo/a", nil)
	kept, err := w.Broker.Deliver(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	needles = append(needles, kept.GetEnvelope()[:40])
	again := func() *bullav1.SignedRequest {
		w.Challenge(nil)
		return w.SignPayload(deliver, first.GetProof().GetRequestId(), first.GetPayload())
	}
	if _, err := w.Broker.Deliver(t.Context(), again()); err != nil {
		t.Errorf("its retry: %v", err)
	}
	forged.R[0] ^= 1
	w.Challenge(nil)
	send("a false receipt", bullav1.Broker_Acknowledge_FullMethodName, w.Sign(bullav1.Broker_Acknowledge_FullMethodName, forged))
	_, err = bullav1.NewSessionsClient(r.Client("security").Conn()).RevokeSession(t.Context(), &bullav1.RevokeSessionRequest{Id: kept.GetSessionId(), Reason: "x"})
	if err != nil {
		t.Fatal(err)
	}
	send("a retry after revocation", deliver, again())
	for range 2 {
		if _, _, err := w.Deliver(t.Context(), "demo/a"); err != nil {
			t.Fatal(err)
		}
	}
	send("past a limit", deliver, ask("demo/a", nil))
	put := &bullav1.PutSecretRequest{Name: "demo/a", Class: "no-such", Value: []byte(canary), RequestId: event.NewID(time.Now()).String()}
	for _, name := range []string{"operator", "stranger"} {
		_, refusals["put by "+name] = bullav1.NewSecretsClient(r.Client(name).Conn()).PutSecret(t.Context(), put)
	}
	for what, err := range refusals {
		if err == nil {
			t.Errorf("%s: it was permitted", what)
		}
		if leaks(err, needles...) {
			t.Errorf("%s: the error carries what was refused: %v", what, err)
		}
		if c := status.Code(err); c == codes.Unknown || c == codes.Internal {
			t.Errorf("%s: an error that nobody made for a caller: %v", what, err)
		}
	}
	if strings.Contains(r.Log.String(), canary) {
		t.Error("the broker's log holds the secret")
	}
}
