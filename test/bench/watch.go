package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/client"
)

const (
	watchRounds = 5
	// settle is how long the broker is looked at while all clients wait.
	settle = 3 * time.Second
	// together is how many clients are set up at once.
	together = 32
)

// told is what the revocations of all rounds came to.
type told struct {
	watchers  int
	p50, p99  time.Duration // from the call to the client's Done
	most      time.Duration
	confirmed time.Duration // from the call until the broker knew of every confirmation, the slowest round
	offline   uint64
	resident  int64         // of the broker, with all of them connected
	idle      time.Duration // CPU of the broker a second while all of them wait
	cpu       time.Duration // CPU of the broker for one client: revoked, told and confirmed
}

// watching starts a broker and measures how soon clients are told of a revocation.
func watching(ctx context.Context, binary, dir string, n int, w io.Writer) (err error) {
	broker, err := startBroker(ctx, binary, filepath.Join(dir, "dev"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.stop()) }()
	t, err := measureWatch(ctx, broker, n)
	if err == nil {
		t.print(w)
	}
	return err
}

// measureWatch revokes the sessions of n clients at once, over and over, and takes the time until each knows.
func measureWatch(ctx context.Context, broker *process, n int) (told, error) {
	if err := putSecret(ctx, broker); err != nil {
		return told{}, err
	}
	clients, err := connectAll(ctx, broker, n)
	defer func() {
		for _, c := range clients {
			_ = c.Close() // the measurement is over
		}
	}()
	if err != nil {
		return told{}, err
	}
	env, err := broker.env("security")
	if err != nil {
		return told{}, err
	}
	admin, err := client.New(ctx, client.Config{Address: broker.addr, ServerID: env["BULLA_SERVER_ID"], EndpointSocket: env["SPIFFE_ENDPOINT_SOCKET"]})
	if err != nil {
		return told{}, err
	}
	defer admin.Close()
	out := told{watchers: n}
	var took []time.Duration
	for range watchRounds {
		held, err := getAll(ctx, clients)
		if err != nil {
			return told{}, err
		}
		for _, c := range clients {
			for !c.Watching() {
				time.Sleep(10 * time.Millisecond)
			}
		}
		if out.idle == 0 {
			before, _ := broker.cpu()
			time.Sleep(settle)
			after, _ := broker.cpu()
			out.idle, out.resident = (after-before)/time.Duration(settle/time.Second), broker.resident()
		}
		before, _ := broker.cpu()
		heard, confirmed, summary, err := revokeOnce(ctx, admin, held)
		if err != nil {
			return told{}, err
		}
		after, _ := broker.cpu()
		out.cpu += (after - before) / time.Duration(n*watchRounds)
		took = append(took, heard...)
		out.confirmed, out.offline = max(out.confirmed, confirmed), out.offline+summary.GetOffline()
	}
	slices.Sort(took)
	out.p50, out.p99, out.most = took[len(took)/2], took[len(took)*99/100], took[len(took)-1]
	return out, nil
}

// connectAll makes n clients, each with a connection and an instance key of its own.
func connectAll(ctx context.Context, broker *process, n int) ([]*client.Client, error) {
	env, err := broker.env("workload")
	if err != nil {
		return nil, err
	}
	clients := make([]*client.Client, n)
	errs := make([]error, n)
	each(n, func(i int) {
		clients[i], errs[i] = client.New(ctx, client.Config{
			Address: broker.addr, ServerID: env["BULLA_SERVER_ID"], EndpointSocket: env["SPIFFE_ENDPOINT_SOCKET"], ConnectTimeout: 30 * time.Second,
		})
	})
	return slices.DeleteFunc(clients, func(c *client.Client) bool { return c == nil }), errors.Join(errs...)
}

// getAll gets a secret with each client, and watches it.
func getAll(ctx context.Context, clients []*client.Client) ([]*client.Secret, error) {
	held, errs := make([]*client.Secret, len(clients)), make([]error, len(clients))
	each(len(clients), func(i int) {
		if held[i], errs[i] = clients[i].Get(ctx, benchSecret); errs[i] == nil {
			held[i].Done()
		}
	})
	return held, errors.Join(errs...)
}

// each calls f for 0 to n-1, some of them at once.
func each(n int, f func(i int)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, together)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	wg.Wait()
}

// revokeOnce ends all sessions of the workload by one call.
func revokeOnce(ctx context.Context, admin *client.Client, held []*client.Secret) (heard []time.Duration, confirmed time.Duration, _ *bullav1.RevokeSummary, err error) {
	heard = make([]time.Duration, len(held))
	var wg sync.WaitGroup
	var start time.Time
	ready := make(chan struct{})
	for i, s := range held {
		wg.Go(func() {
			<-ready
			select {
			case <-s.Done():
			case <-time.After(time.Minute):
			}
			heard[i] = time.Since(start)
		})
	}
	start = time.Now()
	close(ready)
	stream, err := bullav1.NewRevocationsClient(admin.Conn()).Revoke(ctx, &bullav1.RevokeRequest{
		Selector: &bullav1.RevokeRequest_Principal{Principal: "spiffe://dev.bulla.test/workload"}, Reason: "bench", WaitSeconds: 30,
	})
	if err != nil {
		return nil, 0, nil, err
	}
	var summary *bullav1.RevokeSummary
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, 0, nil, err
		}
		if m.GetSummary() != nil {
			summary, confirmed = m.GetSummary(), time.Since(start)
		}
	}
	wg.Wait()
	return heard, confirmed, summary, nil
}

func (t told) print(w io.Writer) {
	fmt.Fprintf(w, "%d watching clients, one call that revokes the sessions of all, %d times:\n", t.watchers, watchRounds)
	fmt.Fprintf(w, "told after p50 %s, p99 %s, at most %s; all confirmed after %s at most; %d were offline\n",
		short(t.p50), short(t.p99), short(t.most), short(t.confirmed), t.offline)
	fmt.Fprintf(w, "CPU of the broker for each client, revoked, told and confirmed: %s\n", short(t.cpu))
	fmt.Fprintf(w, "broker with all of them connected: %d MiB resident, %s of CPU a second while they wait\n", t.resident>>20, short(t.idle))
}
