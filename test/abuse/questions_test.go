package abuse

import (
	"encoding/base64"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// A principal without the role asks questions: it learns nothing, not even whether what it asks about is there.
func TestAbuse_A02_questions(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	_, device := r.Device(rig.ID("workload").String())
	get(t, r.Client("workload"), "demo/a", "a")
	for _, who := range []string{"workload", "stranger", "operator", "custodian-1"} {
		conn := r.Client(who).Conn()
		service := bullav1.NewQuestionsClient(conn)
		query := func(about *bullav1.About) error {
			_, err := service.Query(t.Context(), &bullav1.QueryRequest{About: about})
			return err
		}
		blast := func(about *bullav1.About) error {
			stream, err := service.BlastRadius(t.Context(), &bullav1.BlastRadiusRequest{About: about})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}
		usage := func(name string) error {
			stream, err := service.SecretUsage(t.Context(), &bullav1.SecretUsageRequest{Name: name})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}
		there := []*bullav1.About{{Secret: "demo/a"}, {Principal: rig.ID("workload").String()}, {Device: device}, {Revision: strings.Repeat("1", 64)}}
		absent := []*bullav1.About{{Secret: "demo/z"}, {Principal: rig.ID("nobody00").String()}, {Device: "dev-" + strings.Repeat("a", 52)}, {Revision: strings.Repeat("2", 64)}}
		for i, about := range there {
			wantCode(t, who+" asks", query(about), codes.PermissionDenied, "policy")
			alike(t, r, who+" asks who got what", func() error { return query(about) }, func() error { return query(absent[i]) })
			alike(t, r, who+" asks how far", func() error { return blast(about) }, func() error { return blast(absent[i]) })
		}
		wantCode(t, who+" asks for all", query(nil), codes.PermissionDenied, "policy")
		alike(t, r, who+" asks for usage", func() error { return usage("demo/a") }, func() error { return usage("demo/z") })
	}
	before := mark(r)
	if _, err := bullav1.NewQuestionsClient(r.Client("security").Conn()).Query(t.Context(), &bullav1.QueryRequest{About: &bullav1.About{Secret: "demo/a"}}); err != nil {
		t.Fatal(err)
	}
	asked := of[event.OperationPermitted](after(r, before))
	if len(asked) != 1 || asked[0].Decision.Action != "audit.query" || !strings.Contains(string(asked[0].Decision.Signals), "demo/a") {
		t.Errorf("the question is recorded as %v", asked)
	}
}

// A page token is good for its own question, of its own caller, as it was given.
func TestAbuse_A02_page_tokens(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	w := r.Client("workload")
	for range 3 {
		get(t, w, "demo/a", "a")
	}
	auditor := bullav1.NewQuestionsClient(r.Client("auditor").Conn())
	question := &bullav1.QueryRequest{About: &bullav1.About{Secret: "demo/a"}, Limit: 1}
	first, err := auditor.Query(t.Context(), question)
	if err != nil || len(first.GetFindings()) != 1 || first.GetNext() == "" {
		t.Fatalf("%v %v", first, err)
	}
	with := func(edit func(*bullav1.QueryRequest)) *bullav1.QueryRequest {
		in, ok := proto.Clone(question).(*bullav1.QueryRequest)
		if !ok {
			t.Fatal("a question can't be copied")
		}
		in.PageToken = first.GetNext()
		edit(in)
		return in
	}
	second, err := auditor.Query(t.Context(), with(func(in *bullav1.QueryRequest) { in.Limit = 5 }))
	if err != nil || len(second.GetFindings()) != 2 || second.GetNext() != "" {
		t.Errorf("the rest is %v, %v", second, err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(first.GetNext())
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		raw[i] ^= 1
		text := base64.RawURLEncoding.EncodeToString(raw)
		raw[i] ^= 1
		_, err := auditor.Query(t.Context(), with(func(in *bullav1.QueryRequest) { in.PageToken = text }))
		wantCode(t, "a token with another byte", err, codes.InvalidArgument, "request")
	}
	for name, in := range map[string]*bullav1.QueryRequest{
		"another secret":  with(func(in *bullav1.QueryRequest) { in.About.Secret = "demo/b" }),
		"another outcome": with(func(in *bullav1.QueryRequest) { in.Outcome = "deny" }),
		"no token":        with(func(in *bullav1.QueryRequest) { in.PageToken = "x" }),
		"a longer token":  with(func(in *bullav1.QueryRequest) { in.PageToken += "AAAA" }),
		"a line break":    with(func(in *bullav1.QueryRequest) { in.PageToken += "\n" }),
	} {
		_, err := auditor.Query(t.Context(), in)
		wantCode(t, name, err, codes.InvalidArgument, "request")
	}
	_, err = bullav1.NewQuestionsClient(r.Client("security").Conn()).Query(t.Context(), with(func(*bullav1.QueryRequest) {}))
	wantCode(t, "another caller", err, codes.InvalidArgument, "request")
}

// Names of secrets are only for those who may see them; the answer says that something is left out.
func TestAbuse_A02_withheld_names(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{Policy: func(files map[string]string) {
		replaceIn(t, files, "data/roles.yaml", "auditor:\n  - secret.show\n  - secret.list\n  - session.list\n  - session.show\n", "auditor:\n  - session.list\n")
	}})
	r.Put("demo/a", "standard", "a")
	get(t, r.Client("workload"), "demo/a", "a")
	if _, err := r.Client("stranger").Get(t.Context(), "demo/a"); err == nil {
		t.Fatal("a stranger got it")
	}
	service := bullav1.NewQuestionsClient(r.Client("auditor").Conn())
	found, err := service.Query(t.Context(), &bullav1.QueryRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if found.GetWithheld() != 2 || len(found.GetFindings()) != 0 || strings.Contains(found.String(), "demo/a") || len(found.GetNotes()) == 0 {
		t.Errorf("who may not see them is told %v", found)
	}
	stream, err := service.BlastRadius(t.Context(), &bullav1.BlastRadiusRequest{About: &bullav1.About{Principal: rig.ID("workload").String()}})
	if err != nil {
		t.Fatal(err)
	}
	reply, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if a := reply.GetAnswer(); a.GetWithheld() != 1 || !a.GetIncomplete() || len(a.GetExposures()) != 0 || strings.Contains(a.String(), "demo/a") {
		t.Errorf("who may not see them is told %v", a)
	}
}
