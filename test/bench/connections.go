package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/certs"
)

// connections holds connections of n clients, each of which has made one call, and prints what the broker holds then.
func connections(ctx context.Context, binary, dir string, n int, w io.Writer) (err error) {
	broker, err := startBroker(ctx, binary, filepath.Join(dir, "dev"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.stop()) }()
	env, err := broker.env("workload")
	if err != nil {
		return err
	}
	src, err := certs.Open(ctx, certs.Config{EndpointSocket: env["SPIFFE_ENDPOINT_SOCKET"]})
	if err != nil {
		return err
	}
	defer src.Close()
	id, err := spiffeid.FromString(env["BULLA_SERVER_ID"])
	if err != nil {
		return err
	}
	before := broker.resident()
	errs := make([]error, n)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range n {
		conn, err := grpc.NewClient("passthrough:///"+broker.addr, grpc.WithTransportCredentials(credentials.NewTLS(certs.ClientTLS(src, id))))
		if err != nil {
			return err
		}
		defer conn.Close()
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			_, errs[i] = bullav1.NewBrokerClient(conn).Challenge(ctx, &bullav1.ChallengeRequest{})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%d clients connected: %d MiB resident, %d MiB before\n", n, broker.resident()>>20, before>>20)
	return err
}
