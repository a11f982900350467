package e2e

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/bulla-project/bulla/client"
)

// inARow is how many deliveries in a row a workload gets.
func inARow() int {
	if os.Getenv("BULLA_TEST_LONG") == "1" {
		return 1000
	}
	return 200
}

// config is the SDK's configuration for an environment.
func (e environment) config() client.Config {
	return client.Config{
		Address: e["BULLA_ADDR"], ServerID: e["BULLA_SERVER_ID"], EndpointSocket: e["SPIFFE_ENDPOINT_SOCKET"],
		TPM: e["BULLA_TPM"], DeviceFile: e["BULLA_DEVICE_FILE"], ConnectTimeout: patience,
	}
}

func (e environment) client(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.New(t.Context(), e.config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// deliver gets a secret and looks at it.
func deliver(ctx context.Context, c *client.Client, name, want string) error {
	s, err := c.Get(ctx, name)
	if err != nil {
		return err
	}
	defer s.Close()
	if s.Receipt != "confirmed" {
		return errors.New("the receipt is " + s.Receipt)
	}
	return s.Use(func(value []byte) error {
		if string(value) != want {
			return errors.New("another value")
		}
		return nil
	})
}

// TestManyDeliveriesInARow: the shipped development policy is generous enough for 1,000 of each class, one right
// after the other, with uses, lifetimes and risk as they come.
func TestManyDeliveriesInARow(t *testing.T) {
	t.Parallel()
	d := startDev(t, t.TempDir())
	workload := d.as(t, "workload")
	for _, class := range []string{"standard", "high"} {
		d.put(t, "demo/many-"+class, class, class)
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			c := workload.client(t)
			for i := range inARow() {
				if err := deliver(t.Context(), c, "demo/many-"+class, class); err != nil {
					t.Fatalf("delivery %d: %v", i+1, err)
				}
			}
			run(t, workload, "get", "demo/many-"+class).want(t, done)
		})
	}
}

// TestRotationUnderLoad: with SVIDs of ten seconds, deliveries by a workload that holds its connection, and by new
// processes, go on without one failure until every SVID of the beginning has ended.
func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	d := startDev(t, t.TempDir(), "--tpm=off", "--svid-ttl", "10s")
	d.put(t, "demo/rotation", "high", "steady")
	workload := d.as(t, "workload")
	source, err := workloadapi.NewX509Source(t.Context(), workloadapi.WithClientOptions(workloadapi.WithAddr(workload["SPIFFE_ENDPOINT_SOCKET"])))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	c := workload.client(t) // its SVID is no younger than the one that is looked at
	first, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if ttl := first.Certificates[0].NotAfter.Sub(first.Certificates[0].NotBefore); ttl > time.Minute {
		t.Fatalf("the SVID lives for %s, want about ten seconds", ttl)
	}
	var load sync.WaitGroup
	var enough atomic.Bool
	defer load.Wait()
	defer enough.Store(true)
	for range 2 {
		load.Go(func() {
			for n := 1; !enough.Load(); n++ {
				if err := deliver(t.Context(), c, "demo/rotation", "steady"); err != nil {
					t.Errorf("delivery %d on a connection that is held: %v", n, err)
					return
				}
			}
		})
	}
	serials := map[string]bool{}
	until(t, "the SVID of the beginning ends, and two others came", func() bool {
		if r := run(t, workload, "get", "demo/rotation").want(t, done); r.stdout != "steady" {
			t.Errorf("got %q", r.stdout)
		}
		now, err := source.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		serials[now.Certificates[0].SerialNumber.String()] = true
		return time.Now().After(first.Certificates[0].NotAfter) && len(serials) > 2
	})
	enough.Store(true)
	load.Wait()
	if said := d.stderr.String(); strings.Contains(said, "level=ERROR") {
		t.Errorf("the broker logged errors:\n%s", cut(said))
	}
	d.stop(t)
}
