package broker

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/envelope"
)

// Payloads are signed by whoever calls, so they can hold anything. What strictProto takes has no field that this
// program does not know, and says the same when it is written again.
func FuzzPayload(f *testing.F) {
	for _, suite := range envelope.Suites() {
		r, err := envelope.GenerateRecipient(suite)
		if err != nil {
			f.Fatal(err)
		}
		for i, m := range []proto.Message{
			&bullav1.DeliverRequest{Name: "demo/db", Version: 3, Suite: suite.String(), RecipientKey: r.PublicKey(), Grade: "open", MaxUses: 7, TtlSeconds: 60},
			&bullav1.AttestRequest{Kind: "tpm2", Device: "tpm2:00", Evidence: []byte("evidence"), RecipientKey: r.PublicKey(), RecipientSuite: suite.String()},
			&bullav1.AcknowledgeRequest{SessionId: "01975cc4-7f00-7000-8000-000000000000", R: make([]byte, 32), EnvelopeDigest: make([]byte, 32), Signature: make([]byte, 64)},
			&bullav1.StatusRequest{SessionId: "01975cc4-7f00-7000-8000-000000000000"},
		} {
			data, err := proto.Marshal(m)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(byte(i), data)
		}
	}
	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		in := []proto.Message{&bullav1.DeliverRequest{}, &bullav1.AttestRequest{}, &bullav1.AcknowledgeRequest{}, &bullav1.StatusRequest{}}[kind%4]
		if strictProto(data, in) != nil {
			return
		}
		again, err := proto.MarshalOptions{Deterministic: true}.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		same := in.ProtoReflect().New().Interface()
		if err := strictProto(again, same); err != nil || !proto.Equal(in, same) {
			t.Errorf("read again: %v", err)
		}
		switch m := in.(type) {
		case *bullav1.DeliverRequest:
			suite, err := envelope.ParseSuite(m.GetSuite())
			if err != nil {
				return
			}
			key, err := envelope.ParseRecipientKey(suite, m.GetRecipientKey())
			if err == nil && key.Digest() != envelope.DigestOf(m.GetRecipientKey()) {
				t.Error("another key")
			}
		case *bullav1.AttestRequest:
			half, err := certified(m)
			if err == nil && len(half) > 0 && !bytes.HasSuffix(m.GetRecipientKey(), half) {
				t.Error("the half is not one of the key")
			}
		}
	})
}
