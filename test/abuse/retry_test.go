package abuse

import (
	"bytes"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/test/rig"
)

// A request whose answer got lost gets the same bytes when it is sent again, also once the same revision would
// not permit it any more: here, since the attestation is too old by then. What a newer revision denies, it denies
// to retries too.
func TestAbuse_A48_retry_that_is_not_permitted_any_more(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	r := rig.Start(t, rig.Config{SVIDTTL: 4 * time.Hour, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	r.Put("demo/high", "high", "hello")
	file, device := r.Device(rig.ID("workload").String())
	a := newAttested(t, r, file, device)
	a.attest(t)
	ask, _ := a.w.Ask("demo/high")
	id := requestID()
	send := func(id string) (*bullav1.DeliverReply, error) {
		a.w.Challenge(nil)
		return a.w.Broker.Deliver(t.Context(), a.w.SignAs(bullav1.Broker_Deliver_FullMethodName, id, ask))
	}
	first, err := send(id)
	if err != nil {
		t.Fatal(err)
	}

	ahead.Store(int64(15 * time.Minute))
	if _, err := send(requestID()); rig.Refusal(err).GetDecision() != "STEP_UP" {
		t.Fatalf("a fresh request on an old attestation: %v", err)
	}
	same, err := send(id)
	if err != nil || !bytes.Equal(same.GetEnvelope(), first.GetEnvelope()) {
		t.Fatalf("the same request again: %v", err)
	}

	r.Push(func(files map[string]string) {
		files["canaries.yaml"] = strings.ReplaceAll(files["canaries.yaml"], "dev.bulla.test/workload", "dev.bulla.test/other")
		files["data/grants.yaml"] = strings.ReplaceAll(files["data/grants.yaml"], "dev.bulla.test/workload:", "dev.bulla.test/other:")
	})
	reply, err := send(id)
	wantCode(t, "the same request under a revision without the grant", err, codes.PermissionDenied, "policy")
	if len(reply.GetEnvelope()) > 0 {
		t.Error("it came with an envelope")
	}
	r.Check()
}
