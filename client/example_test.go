package client_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
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

// The broker makes a key and works with it; the key itself never leaves. The broker's own public half checks what it
// signs, without another call.
func ExampleSecret_Sign() {
	ctx := context.Background()
	server, stop := startDev(ctx)
	defer stop()
	generate(ctx, server, "demo/signing", "ecdsa-p256")

	c, err := client.New(ctx, server.Client("workload"))
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	key, err := c.Get(ctx, "demo/signing", client.WithGrade("proxied"), client.WithUses(2))
	if err != nil {
		log.Fatal(err)
	}
	defer key.Close()
	signature, err := key.Sign(ctx, []byte("release 1.0"))
	if err != nil {
		log.Fatal(err)
	}
	err = key.Verify(ctx, []byte("release 2.0"), signature)
	left, _ := key.UsesLeft()
	fmt.Println(len(signature), "bytes,", left, "uses left, other words:", errors.Is(err, client.ErrNotAuthentic))
	// Output: 64 bytes, 0 uses left, other words: true
}

// Encrypt and Decrypt bind associated data, such as the id of the row that the ciphertext belongs to.
func ExampleSecret_Encrypt() {
	ctx := context.Background()
	server, stop := startDev(ctx)
	defer stop()
	generate(ctx, server, "demo/box", "aes-256-gcm")

	c, err := client.New(ctx, server.Client("workload"))
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	key, err := c.Get(ctx, "demo/box")
	if err != nil {
		log.Fatal(err)
	}
	defer key.Close()
	sealed, err := key.Encrypt(ctx, []byte("4111 1111 1111 1111"), []byte("customer 7"))
	if err != nil {
		log.Fatal(err)
	}
	plain, err := key.Decrypt(ctx, sealed, []byte("customer 7"))
	if err != nil {
		log.Fatal(err)
	}
	_, err = key.Decrypt(ctx, sealed, []byte("customer 8"))
	fmt.Printf("%s; for another customer: %t\n", plain, errors.Is(err, client.ErrNotAuthentic))
	// Output: 4111 1111 1111 1111; for another customer: true
}

// A Signer makes certificates, or requests for them, with a key that stays at the broker.
func ExampleSecret_Signer() {
	ctx := context.Background()
	server, stop := startDev(ctx)
	defer stop()
	generate(ctx, server, "demo/tls", "ecdsa-p256")

	c, err := client.New(ctx, server.Client("workload"))
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	key, err := c.Get(ctx, "demo/tls")
	if err != nil {
		log.Fatal(err)
	}
	defer key.Close()
	signer, err := key.Signer(ctx)
	if err != nil {
		log.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"shop.example"}}, signer)
	if err != nil {
		log.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(csr.DNSNames, csr.SignatureAlgorithm, csr.CheckSignature())
	// Output: [shop.example] ECDSA-SHA256 <nil>
}

// generate has the broker make a key.
func generate(ctx context.Context, server *devserver.Server, name, kind string) {
	operator, err := client.New(ctx, server.Client("operator"))
	if err != nil {
		log.Fatal(err)
	}
	defer operator.Close()
	_, err = bullav1.NewSecretsClient(operator.Conn()).GenerateSecret(ctx, &bullav1.GenerateSecretRequest{
		Name: name, Class: "standard", Type: kind, RequestId: event.NewID(time.Now()).String(),
	})
	if err != nil {
		log.Fatal(err)
	}
}
