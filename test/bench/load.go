package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
)

const (
	bareMethods = "/bulla.bench.Bare/"
	benchSecret = "demo/bench"
	gatedSecret = "demo/bench-gated"
)

// bareCall is a call to the bare server, with messages of the size of the broker's.
type bareCall struct {
	method         string
	request, reply int // bytes
	do             func(*work) error
}

// The calls of the bare server: those of a delivery (an envelope with what stands beside it, and its receipt) and of a use,
// with their work and without.
var (
	bareDeliver = bareCall{"Deliver", 1700, 4096, (*work).deliver}
	bareReceive = bareCall{"Receive", 384, 64, (*work).receive}
	bareUse     = bareCall{"Use", 256, 384, (*work).use}

	idleDeliver, idleReceive, idleUse = bareDeliver.idle(), bareReceive.idle(), bareUse.idle()
)

// idle is the same call without the work.
func (c bareCall) idle() bareCall {
	c.method, c.do = "Idle"+c.method, func(*work) error { return nil }
	return c
}

func (c bareCall) desc() grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: c.method, Handler: func(srv any, _ context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := new(wrapperspb.BytesValue)
		if err := dec(in); err != nil {
			return nil, err
		}
		return wrapperspb.Bytes(make([]byte, c.reply)), c.do(srv.(*work))
	}}
}

func bareService() *grpc.ServiceDesc {
	d := &grpc.ServiceDesc{ServiceName: "bulla.bench.Bare", HandlerType: (*any)(nil)}
	for _, c := range []bareCall{bareDeliver, bareReceive, bareUse, idleDeliver, idleReceive, idleUse} {
		d.Methods = append(d.Methods, c.desc())
	}
	return d
}

// load is what one kind of call cost.
type load struct {
	count    int
	cpu      time.Duration // of the server, per call
	p50, p99 time.Duration
	rate     float64 // calls a second
}

// row is one number of callers.
type row struct {
	callers      int
	deliver, use load // of the broker; uses are of gated sessions
	// Of the bare server: the calls of a delivery and of a use without work, and with it.
	idleDeliver, idleUse, bareDeliver, bareUse load
}

// measure loads the broker and the bare server with the same number of callers, one after the other.
func measure(ctx context.Context, broker, bare *process, callers int, length time.Duration) (row, error) {
	if err := putSecret(ctx, broker); err != nil {
		return row{}, err
	}
	r, err := measureBroker(ctx, broker, callers, length)
	if err != nil {
		return row{}, err
	}
	env, err := broker.env("workload")
	if err != nil {
		return row{}, err
	}
	src, err := certs.Open(ctx, certs.Config{EndpointSocket: env["SPIFFE_ENDPOINT_SOCKET"]})
	if err != nil {
		return row{}, err
	}
	defer src.Close()
	conn, err := dialBare(src, bare.addr)
	if err != nil {
		return row{}, err
	}
	defer conn.Close()
	for _, m := range []struct {
		into  *load
		calls []bareCall
	}{
		{&r.idleDeliver, []bareCall{idleDeliver, idleReceive}},
		{&r.idleUse, []bareCall{idleUse}},
		{&r.bareDeliver, []bareCall{bareDeliver, bareReceive}},
		{&r.bareUse, []bareCall{bareUse}},
	} {
		if *m.into, err = run(ctx, bare, callers, length, bareCalls(conn, m.calls...)); err != nil {
			return row{}, fmt.Errorf("bare server: %w", err)
		}
	}
	return r, nil
}

// bareCalls gives a function that makes the calls one after the other.
func bareCalls(conn *grpc.ClientConn, calls ...bareCall) func(context.Context) error {
	return func(ctx context.Context) error {
		for _, c := range calls {
			if err := conn.Invoke(ctx, bareMethods+c.method, wrapperspb.Bytes(make([]byte, c.request)), new(wrapperspb.BytesValue)); err != nil {
				return err
			}
		}
		return nil
	}
}

// measureBroker loads one broker with deliveries, and then with gated uses.
func measureBroker(ctx context.Context, broker *process, callers int, length time.Duration) (r row, err error) {
	env, err := broker.env("workload")
	if err != nil {
		return row{}, err
	}
	c, err := client.New(ctx, client.Config{Address: broker.addr, ServerID: env["BULLA_SERVER_ID"], EndpointSocket: env["SPIFFE_ENDPOINT_SOCKET"]})
	if err != nil {
		return row{}, err
	}
	defer c.Close()
	r.callers = callers
	if r.deliver, err = run(ctx, broker, callers, length, deliveries(c)); err != nil {
		return row{}, fmt.Errorf("deliver: %w", err)
	}
	use, err := uses(ctx, c, callers)
	if err != nil {
		return row{}, fmt.Errorf("deliver, to be used: %w", err)
	}
	if r.use, err = run(ctx, broker, callers, length, use); err != nil {
		return row{}, fmt.Errorf("use: %w", err)
	}
	return r, nil
}

// deliveries gives a function that gets a secret and hands in the receipt.
func deliveries(c *client.Client) func(context.Context) error {
	return func(ctx context.Context) error {
		s, err := c.Get(ctx, benchSecret)
		if err != nil {
			return err
		}
		s.Close()
		return nil
	}
}

// uses gives a function that uses gated sessions, of which callers are there already: what is measured is not their
// delivery. A session whose thousand uses are spent is got anew.
func uses(ctx context.Context, c *client.Client, callers int) (func(context.Context) error, error) {
	get := func(ctx context.Context) (*client.Secret, error) {
		return c.Get(ctx, gatedSecret, client.WithGrade("gated"), client.WithUses(1000))
	}
	idle := make(chan *client.Secret, callers)
	for range callers {
		s, err := get(ctx)
		if err != nil {
			return nil, err
		}
		idle <- s
	}
	return func(ctx context.Context) error {
		s := <-idle
		defer func() { idle <- s }()
		if left, _ := s.UsesLeft(); left == 0 {
			next, err := get(ctx)
			if err != nil {
				return err
			}
			s = next
		}
		return s.UseContext(ctx, func([]byte) error { return nil })
	}, nil
}

// putSecret makes the secrets that are delivered.
func putSecret(ctx context.Context, broker *process) error {
	env, err := broker.env("operator")
	if err != nil {
		return err
	}
	c, err := client.New(ctx, client.Config{Address: broker.addr, ServerID: env["BULLA_SERVER_ID"], EndpointSocket: env["SPIFFE_ENDPOINT_SOCKET"]})
	if err != nil {
		return err
	}
	defer c.Close()
	for _, name := range []string{benchSecret, gatedSecret} {
		_, err = bullav1.NewSecretsClient(c.Conn()).PutSecret(ctx, &bullav1.PutSecretRequest{
			Name: name, Class: "standard", Value: make([]byte, 32), RequestId: event.NewID(time.Now()).String(),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// run calls f from many goroutines for a while, after a fifth of that time to warm up.
func run(ctx context.Context, server *process, callers int, length time.Duration, f func(context.Context) error) (load, error) {
	if _, _, err := calls(ctx, callers, length/5, f); err != nil {
		return load{}, err
	}
	before, err := server.cpu()
	if err != nil {
		return load{}, err
	}
	start := time.Now()
	took, count, err := calls(ctx, callers, length, f)
	if err != nil {
		return load{}, err
	}
	elapsed := time.Since(start)
	after, err := server.cpu()
	if err != nil {
		return load{}, err
	}
	slices.Sort(took)
	return load{
		count: count, cpu: (after - before) / time.Duration(count), p50: took[len(took)/2], p99: took[len(took)*99/100],
		rate: float64(count) / elapsed.Seconds(),
	}, nil
}

// calls runs f over and over in callers goroutines and returns how long each call took.
func calls(ctx context.Context, callers int, length time.Duration, f func(context.Context) error) ([]time.Duration, int, error) {
	end := time.Now().Add(length)
	took := make([][]time.Duration, callers)
	errs := make([]error, callers)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for time.Now().Before(end) {
				start := time.Now()
				if err := f(ctx); err != nil {
					errs[i] = err
					return
				}
				took[i] = append(took[i], time.Since(start))
			}
		})
	}
	wg.Wait()
	all := slices.Concat(took...)
	if len(all) == 0 {
		errs = append(errs, errors.New("no call was finished"))
	}
	return all, len(all), errors.Join(errs...)
}
