package abuse

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest/dev"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// load delivers a secret from several instances until stop; what they get is judged by the events afterwards.
// under waits until some more were delivered.
func load(t *testing.T, workers []*rig.Raw, name string) (stop, under func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var delivered atomic.Int64
	for _, w := range workers {
		all.Go(func() {
			for ctx.Err() == nil {
				_, _, err := w.Deliver(t.Context(), name)
				switch c := status.Code(err); c {
				case codes.OK:
					delivered.Add(1)
				case codes.Aborted:
				case codes.PermissionDenied: // for good
					return
				default:
					t.Errorf("deliver %s: %v", name, err)
					return
				}
			}
		})
	}
	stop = func() { cancel(); all.Wait() }
	under = func() {
		before := delivered.Load()
		eventually(t, "the load is under way", func() bool { return delivered.Load() >= before+int64(len(workers)) })
	}
	return stop, under
}

// Deliveries and changes run against each other. In the order of the ledger, each must have been decided by what
// was in force at its place. Whether a change falls into the gap is chance here; TestAbuse_A46_overtaken puts each
// there on purpose, and this one looks for gaps that nobody thought of.
func TestAbuse_A46_changes_between_decision_and_commit(t *testing.T) {
	t.Parallel()
	t.Run("a new version, another class", func(t *testing.T) {
		t.Parallel()
		r := rig.Start(t, rig.Config{})
		r.Put("demo/a", "standard", "0")
		stop, under := load(t, []*rig.Raw{r.Raw("workload"), r.Raw("workload"), r.Raw("workload"), r.Raw("workload")}, "demo/a")
		under()
		putMany(t, r, 40)
		stop()
		checkOrder(t, r, 40)
	})
	t.Run("a revoked device", func(t *testing.T) {
		t.Parallel()
		r := rig.Start(t, rig.Config{})
		r.Put("demo/high", "high", "0")
		for range 4 {
			file, id := r.Device(rig.ID("workload").String())
			device, err := dev.Load(file)
			if err != nil {
				t.Fatal(err)
			}
			var workers []*rig.Raw
			for range 8 {
				a := &attested{r: r, w: r.Raw("workload"), id: id, device: device}
				a.attest(t)
				workers = append(workers, a.w)
			}
			stop, under := load(t, workers, "demo/high")
			under()
			_, err = bullav1.NewDevicesClient(r.Client("security").Conn()).RevokeDevice(t.Context(), &bullav1.RevokeDeviceRequest{Id: id, Reason: "lost"})
			stop()
			if err != nil {
				t.Fatal(err)
			}
			list, err := bullav1.NewSessionsClient(r.Client("operator").Conn()).ListSessions(t.Context(), &bullav1.ListSessionsRequest{Device: id})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range list.GetSessions() {
				if s.GetState() != "revoked" {
					t.Errorf("a session of a revoked device is %q", s.GetState())
				}
			}
		}
		checkOrder(t, r, 0)
	})
	t.Run("another revision", func(t *testing.T) {
		t.Parallel()
		r := rig.Start(t, rig.Config{})
		r.Put("demo/a", "standard", "0")
		var workers []*rig.Raw
		for range 12 {
			workers = append(workers, r.Raw("workload"))
		}
		stop, under := load(t, workers, "demo/a")
		service := bullav1.NewPoliciesClient(r.Client("security").Conn())
		push := func(name string) {
			archive := r.Archive(func(files map[string]string) { files["data/limits.yaml"] += name + ": 1\n" })
			_, err := service.PushRevision(t.Context(), &bullav1.PushRevisionRequest{Archive: archive})
			if c := status.Code(err); c != codes.OK && c != codes.Aborted {
				t.Errorf("push: %v", err)
			}
		}
		for n := range 8 { // against deliveries
			under()
			push(fmt.Sprintf("one_%d", n))
		}
		var all sync.WaitGroup
		for n := range 4 { // against each other
			all.Go(func() { push(fmt.Sprintf("many_%d", n)) })
		}
		all.Wait()
		stop()
		checkOrder(t, r, 0)
	})
}

// putMany puts versions from two sides at once. Some may be refused; none may fail in another way.
func putMany(t *testing.T, r *rig.Rig, n int) {
	t.Helper()
	service := bullav1.NewSecretsClient(r.Client("operator").Conn())
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range n / 4 {
				_, err := service.PutSecret(t.Context(), &bullav1.PutSecretRequest{Name: "demo/a", Value: []byte("x"), RequestId: event.NewID(time.Now()).String()})
				if c := status.Code(err); c != codes.OK && c != codes.Aborted {
					t.Errorf("put: %v; want done or ABORTED", err)
				}
			}
		})
	}
	all.Wait()
}

// checkOrder replays the ledger: each event's decision has to be that of the revision, the version and the device
// as they stood right before it.
func checkOrder(t *testing.T, r *rig.Rig, puts uint32) {
	t.Helper()
	var revision event.Digest
	versions, gone, deliveries := map[string]uint32{}, map[string]bool{}, 0
	for i, e := range r.Events() {
		by := func(d *event.Decision) {
			if d != nil && d.Revision != revision {
				t.Errorf("event %d, %s, was decided by revision %s, while %s was active", i, e.Body.EventType(), d.Revision, revision)
			}
		}
		switch b := e.Body.(type) {
		case event.RevisionActivated:
			by(b.By)
			if b.Previous != revision {
				t.Errorf("event %d: revision %s says that it followed %s; it followed %s", i, b.Digest, b.Previous, revision)
			}
			revision = b.Digest
		case event.SecretPut:
			by(b.By)
			if b.Version != versions[b.Name]+1 {
				t.Errorf("event %d: version %d of %s after %d", i, b.Version, b.Name, versions[b.Name])
			}
			versions[b.Name] = b.Version
		case event.DeviceRevoked:
			by(b.By)
			gone[b.Device] = true
		case event.SessionIssued:
			deliveries++
			by(&b.Decision)
			if b.Version != versions[b.Secret] {
				t.Errorf("event %d: version %d of %s was delivered as the current one; that is %d", i, b.Version, b.Secret, versions[b.Secret])
			}
			if gone[b.Device] {
				t.Errorf("event %d: a delivery on the word of a revoked device", i)
			}
		}
	}
	if deliveries < 10 || versions["demo/a"] > puts+1 {
		t.Errorf("%d deliveries, %d versions: that is no load", deliveries, versions["demo/a"])
	}
	r.Check()
}
