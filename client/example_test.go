package client_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"os"
	"strings"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/broker/devserver"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
)

// startDev starts what `bulla dev --tpm=off` starts, and stores one secret.
func startDev(ctx context.Context) (server *devserver.Server, stop func()) {
	dir, err := os.MkdirTemp("", "bulla")
	if err != nil {
		log.Fatal(err)
	}
	server, err = devserver.Start(ctx, devserver.Config{Dir: dir, TPM: devserver.TPMOff, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		log.Fatal(err)
	}
	operator, err := client.New(ctx, server.Client("operator"))
	if err != nil {
		log.Fatal(err)
	}
	defer operator.Close()
	_, err = bullav1.NewSecretsClient(operator.Conn()).PutSecret(ctx, &bullav1.PutSecretRequest{
		Name: "demo/database", Class: "high", Value: []byte("hunter2"), RequestId: event.NewID(time.Now()).String(),
	})
	if err != nil {
		log.Fatal(err)
	}
	return server, func() { _ = server.Close(); _ = os.RemoveAll(dir) }
}

// A workload gets a secret. Its class wants an attestation: Get attests and asks again by itself.
func ExampleClient_Get() {
	ctx := context.Background()
	server, stop := startDev(ctx)
	defer stop()

	c, err := client.New(ctx, server.Client("workload")) // outside of examples: client.FromEnvironment()
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	secret, err := c.Get(ctx, "demo/database")
	if err != nil {
		log.Fatal(err)
	}
	defer secret.Close() // wipes the plaintext

	err = secret.Use(func(plaintext []byte) error {
		fmt.Println(len(plaintext), "bytes, version", secret.Version, "receipt", secret.Receipt)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output: 7 bytes, version 1 receipt confirmed
}

// A Follower keeps a secret delivered, and notices at the next call that its session was revoked.
func ExampleClient_Follow() {
	ctx := context.Background()
	server, stop := startDev(ctx)
	defer stop()
	c, err := client.New(ctx, server.Client("workload"))
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	follower, err := c.Follow(ctx, "demo/database")
	if err != nil {
		log.Fatal(err)
	}
	defer follower.Close()
	first, err := follower.Current(ctx)
	if err != nil {
		log.Fatal(err)
	}
	revoke(ctx, server, first.SessionID)

	second, err := follower.Current(ctx) // a new delivery, which the policy decided on afresh
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("the same session:", first.SessionID == second.SessionID)
	fmt.Println("the old one:", strings.Split(first.Use(func([]byte) error { return nil }).Error(), ":")[1])
	// Output:
	// the same session: false
	// the old one:  session has ended
}

func revoke(ctx context.Context, server *devserver.Server, id string) {
	security, err := client.New(ctx, server.Client("security"))
	if err != nil {
		log.Fatal(err)
	}
	defer security.Close()
	if _, err := bullav1.NewSessionsClient(security.Conn()).RevokeSession(ctx, &bullav1.RevokeSessionRequest{Id: id, Reason: "example"}); err != nil {
		log.Fatal(err)
	}
}
