package abuse

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/test/rig"
)

// SVIDs end within seconds, authorities come and go, and nobody may notice.
func TestAbuse_A38_rotation_under_load(t *testing.T) {
	t.Parallel()
	const ttl = 5 * time.Second
	r := rig.Start(t, rig.Config{SVIDTTL: ttl})
	r.Put("demo/a", "standard", "a")
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var all sync.WaitGroup
	var gets atomic.Int64
	for range 2 {
		c := r.Client("workload")
		for range 2 {
			all.Go(func() {
				for ctx.Err() == nil {
					s, err := c.Get(context.WithoutCancel(ctx), "demo/a")
					if s == nil || err != nil && !errors.Is(err, client.ErrReceipt) {
						t.Errorf("after %s: %v", time.Since(begin), err)
						return
					}
					if err != nil {
						t.Errorf("after %s: the receipt: %v", time.Since(begin), err)
					}
					s.Close()
					gets.Add(1)
				}
			})
		}
	}
	all.Go(func() { changeAuthorities(t, ctx, r, ttl) })
	all.Wait()
	if gets.Load() < 20 {
		t.Errorf("%d deliveries in %s: that is no load", gets.Load(), time.Since(begin))
	}
	t.Logf("%d deliveries in %s", gets.Load(), time.Since(begin))
	r.Check()
}

// changeAuthorities rotates, taints and revokes until ctx ends.
func changeAuthorities(t *testing.T, ctx context.Context, r *rig.Rig, ttl time.Duration) {
	step := time.NewTicker(ttl / 2)
	defer step.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-step.C:
		}
		oldest := r.Authority.Authorities()[0].ID
		var err error
		switch n % 3 {
		case 0:
			_, err = r.Authority.RotateAuthority()
		case 1:
			err = r.Authority.TaintAuthority(oldest)
		case 2:
			err = r.Authority.RevokeAuthority(oldest)
		}
		if err != nil {
			t.Errorf("change of authorities: %v", err)
			return
		}
	}
}
