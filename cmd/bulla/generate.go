package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/secret"
)

func newSecretGenerateCommand(a *app) *cobra.Command {
	var class, kind string
	c := &cobra.Command{
		Use: "generate NAME --type TYPE [flags]", Short: "Make a key that never leaves the broker",
		Long: "Makes a key inside the broker, as the next version of a secret. Nobody can get it: `bulla sign`,\n" +
			"verify, mac, encrypt and decrypt have the broker work with it (grade proxied). A secret that is new\n" +
			"needs a class and a type; both stay when a further version is made, and the type can't change.",
		Example: "  bulla secret generate demo/signing --class standard --type ecdsa-p256\n" +
			"  bulla secret generate demo/signing        another version",
		Args: argument("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error { return a.generateSecret(c, args[0], class, kind) },
	}
	c.Flags().StringVar(&class, "class", "", "sensitivity, as the policy names it, such as standard or high")
	c.Flags().StringVar(&kind, "type", "", "ecdsa-p256 or ed25519 (sign, verify), hmac-sha256 (mac), aes-256-gcm (encrypt, decrypt)")
	completeFlag(c, "type", string(secret.TypeECDSAP256), string(secret.TypeEd25519), string(secret.TypeHMACSHA256), string(secret.TypeAES256GCM))
	a.addIdentity(c)
	return c
}

func (a *app) generateSecret(c *cobra.Command, name, class, kind string) error {
	if _, err := secret.ParseName(name); err != nil {
		return usage("%v", err)
	}
	if c.Flags().Changed("class") {
		if _, err := secret.ParseClass(class); err != nil {
			return usage("--class: %v", err)
		}
	}
	if c.Flags().Changed("type") {
		if t, err := secret.ParseType(kind); err != nil || !t.IsKey() {
			return usage("--type is %q: use ecdsa-p256, ed25519, hmac-sha256 or aes-256-gcm; `bulla secret put` stores what is no key", kind)
		}
	}
	var reply *bullav1.GenerateSecretReply
	err := a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		reply, err = bullav1.NewSecretsClient(conn).GenerateSecret(ctx, &bullav1.GenerateSecretRequest{
			Name: name, Class: class, Type: kind, RequestId: event.NewID(time.Now()).String(),
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("generate %s: %w", name, err)
	}
	return a.print(struct {
		Name      string          `json:"name"`
		Version   uint32          `json:"version"`
		Class     string          `json:"class"`
		Type      string          `json:"type"`
		PublicKey json.RawMessage `json:"public_key"`
	}{reply.GetName(), reply.GetVersion(), reply.GetClass(), reply.GetType(), jsonOrNull(reply.GetPublicKey())}, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s version %d, class %s, type %s\n", show.Text(reply.GetName()), reply.GetVersion(), show.Text(reply.GetClass()), show.Text(reply.GetType()))
		return err
	})
}

// jsonOrNull is JSON that came from the broker, or null where there is none that parses.
func jsonOrNull(text []byte) json.RawMessage {
	if !json.Valid(text) {
		return json.RawMessage("null")
	}
	return text
}
