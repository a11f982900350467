package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/test/rig"
)

// TestQuestionsAtScale asks a full store what responders ask: half of its sessions are of one secret, the others are
// spread over the rest. A million sessions with BULLA_TEST_LONG=1.
func TestQuestionsAtScale(t *testing.T) {
	sessions, most := 20_000, 20*time.Second
	if os.Getenv("BULLA_TEST_LONG") == "1" {
		sessions, most = 1_000_000, 30*time.Second
	}
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hot", "standard", "x")
	r.Stop()
	rest := spread(sessions)
	started := time.Now()
	err := fill(t.Context(), filepath.Join(r.Config.DataDir, "ledger.db"), sessions, func(i int) string {
		if i%2 == 0 {
			return "demo/hot"
		}
		return rest(i)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d sessions, filled in %s", sessions, time.Since(started).Round(time.Second))
	a := r.Assemble(rig.Parts{})
	service := bullav1.NewQuestionsClient(a.Client("auditor").Conn())

	page := func(about *bullav1.About, limit uint32) func() (string, error) {
		return func() (string, error) {
			reply, err := service.Query(t.Context(), &bullav1.QueryRequest{About: about, Limit: limit})
			if err == nil && len(reply.GetFindings()) != int(limit) {
				err = fmt.Errorf("%d findings, want %d", len(reply.GetFindings()), limit)
			}
			return fmt.Sprint(len(reply.GetFindings()), " findings"), err
		}
	}
	blast := func(about *bullav1.About, want int) func() (string, error) {
		return func() (string, error) {
			stream, err := service.BlastRadius(t.Context(), &bullav1.BlastRadiusRequest{About: about})
			for err == nil {
				var reply *bullav1.BlastRadiusReply
				if reply, err = stream.Recv(); err != nil || reply.GetAnswer() == nil {
					continue
				}
				if got := int(reply.GetAnswer().GetDeliveries()); got != want {
					err = fmt.Errorf("%d deliveries, want %d; %v", got, want, reply.GetAnswer().GetNotes())
				}
				return fmt.Sprint(reply.GetExamined(), " looked at, ", reply.GetAnswer().GetVersions(), " versions, incomplete: ", reply.GetAnswer().GetIncomplete()), err
			}
			return "", err
		}
	}
	usage := func(name string, want int) func() (string, error) {
		return func() (string, error) {
			stream, err := service.SecretUsage(t.Context(), &bullav1.SecretUsageRequest{Name: name})
			for err == nil {
				var reply *bullav1.SecretUsageReply
				if reply, err = stream.Recv(); err != nil || reply.GetAnswer() == nil {
					continue
				}
				if got := int(reply.GetAnswer().GetAccesses()); got != want {
					err = fmt.Errorf("%d accesses, want %d", got, want)
				}
				return fmt.Sprint(reply.GetAnswer().GetPrincipals(), " principals, incomplete: ", reply.GetAnswer().GetIncomplete()), err
			}
			return "", err
		}
	}
	principal := "spiffe://dev.bulla.test/app/7"
	of := sessions / grownPrincipals
	for _, q := range []struct {
		name string
		ask  func() (string, error)
	}{
		{"query --secret, of half of all", page(&bullav1.About{Secret: "demo/hot"}, 100)},
		{"query --secret --since", page(&bullav1.About{Secret: "demo/hot", Since: timestamppb.New(time.Now().Add(-3 * time.Hour))}, 100)},
		{"query --principal", page(&bullav1.About{Principal: principal}, uint32(min(of, 100)))},
		{"query, of all", page(nil, 1000)},
		{"blast-radius --principal", blast(&bullav1.About{Principal: principal}, of)},
		{"blast-radius --secret, of half of all", blast(&bullav1.About{Secret: "demo/hot"}, sessions/2)},
		{"secret usage, of half of all", usage("demo/hot", sessions/2)},
		{"secret usage, of few", usage(rest(1), sessions/others(sessions))},
	} {
		begun := time.Now()
		got, err := q.ask()
		took := time.Since(begun)
		t.Logf("%-40s %10s  %s", q.name, took.Round(time.Millisecond/10), got)
		if err != nil {
			t.Errorf("%s: %v", q.name, err)
		}
		if took > most {
			t.Errorf("%s took %s: more than %s", q.name, took, most)
		}
	}
}
