package rig

import (
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger/event"
)

// Generate has the broker make a key, as operator.
func (r *Rig) Generate(name, class, kind string) *bullav1.GenerateSecretReply {
	r.t.Helper()
	reply, err := bullav1.NewSecretsClient(r.Client("operator").Conn()).GenerateSecret(r.t.Context(), &bullav1.GenerateSecretRequest{
		Name: name, Class: class, Type: kind, RequestId: event.NewID(time.Now()).String(),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return reply
}
