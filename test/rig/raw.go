package rig

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/envelope"
	reqproof "github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/ledger/event"
)

// Raw is one connection that speaks the workload's protocol step by step. Each part of what it sends can be
// replaced by the test.
type Raw struct {
	Conn     *grpc.ClientConn
	Broker   bullav1.BrokerClient
	Exporter [32]byte
	Nonce    [32]byte
	Key      *ecdsa.PrivateKey // instance key
	Name     string            // its thumbprint
	Leaf     *x509.Certificate
	SVIDKey  crypto.Signer
	ID       string
	Keys     *envelope.KeySet

	t   testing.TB
	now func() time.Time // the broker's clock
}

// Raw connects as name with an instance key of its own, bound and ready.
func (r *Rig) Raw(name string) *Raw {
	r.t.Helper()
	key, err := reqproof.GenerateInstanceKey()
	if err != nil {
		r.t.Fatal(err)
	}
	return r.RawWith(name, key)
}

// RawWith is Raw with a given instance key.
func (r *Rig) RawWith(name string, key *ecdsa.PrivateKey) *Raw {
	r.t.Helper()
	src := r.Source(name)
	svid, err := src.GetX509SVID()
	if err != nil {
		r.t.Fatal(err)
	}
	conn := r.Dial(certs.ClientTLS(src, ID("bulla/broker")))
	w := &Raw{
		Conn: conn, Broker: bullav1.NewBrokerClient(conn), Key: key, Name: reqproof.Thumbprint(&key.PublicKey),
		Leaf: svid.Certificates[0], SVIDKey: svid.PrivateKey, ID: svid.ID.String(), t: r.t, now: r.cfg.Now,
	}
	if w.now == nil {
		w.now = time.Now
	}
	w.Challenge(nil)
	if err := w.Bind(); err != nil {
		r.t.Fatal(err)
	}
	return w
}

// Challenge asks for a nonce, with or without a binding.
func (w *Raw) Challenge(binding []byte) {
	w.t.Helper()
	if err := w.challenge(binding); err != nil {
		w.t.Fatal(err)
	}
}

func (w *Raw) challenge(binding []byte) error {
	var p peer.Peer
	reply, err := w.Broker.Challenge(w.t.Context(), &bullav1.ChallengeRequest{Binding: binding}, grpc.Peer(&p))
	if err != nil {
		return err
	}
	info := p.AuthInfo.(credentials.TLSInfo)
	exporter, err := info.State.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		return err
	}
	w.Exporter, w.Nonce = [32]byte(exporter), [32]byte(reply.GetNonce())
	w.Keys, err = envelope.ParseKeySet(reply.GetSigningKeys())
	return err
}

// Bind binds the instance key to the SVID of the connection.
func (w *Raw) Bind() error {
	binding, err := reqproof.SignBinding(w.SVIDKey, w.Leaf, &w.Key.PublicKey, w.now().Add(time.Hour))
	if err != nil {
		return err
	}
	return w.challenge(binding)
}

// Sign makes a signed request with the current nonce and a fresh request id.
func (w *Raw) Sign(method string, payload proto.Message) *bullav1.SignedRequest {
	w.t.Helper()
	return w.SignAs(method, event.NewRequestID(time.Now()).String(), payload)
}

// SignAs is Sign with a given request id.
func (w *Raw) SignAs(method, id string, payload proto.Message) *bullav1.SignedRequest {
	w.t.Helper()
	body, err := proto.Marshal(payload)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.SignPayload(method, id, body)
}

// SignPayload is SignAs with the payload's bytes.
func (w *Raw) SignPayload(method, id string, body []byte) *bullav1.SignedRequest {
	w.t.Helper()
	signature, err := reqproof.SignRequest(w.Key, reqproof.Request{
		Method: method, Nonce: w.Nonce, Exporter: w.Exporter, RequestID: id, PayloadSHA256: sha256.Sum256(body),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	nonce := w.Nonce
	return &bullav1.SignedRequest{Payload: body, Proof: &bullav1.Proof{Nonce: nonce[:], RequestId: id, Instance: w.Name, Signature: signature}}
}

// Ask is a DeliverRequest for name with a fresh recipient key.
func (w *Raw) Ask(name string) (*bullav1.DeliverRequest, *envelope.Recipient) {
	w.t.Helper()
	r, err := envelope.GenerateRecipient(envelope.SuiteHybridX25519())
	if err != nil {
		w.t.Fatal(err)
	}
	return &bullav1.DeliverRequest{Name: name, Suite: r.Suite().String(), RecipientKey: r.PublicKey()}, r
}

// Deliver asks for name over a fresh challenge, with the changes to the question.
func (w *Raw) Deliver(ctx context.Context, name string, change ...func(*bullav1.DeliverRequest)) (*bullav1.DeliverReply, *envelope.Recipient, error) {
	w.t.Helper()
	w.Challenge(nil)
	ask, recipient := w.Ask(name)
	for _, f := range change {
		f(ask)
	}
	reply, err := w.Broker.Deliver(ctx, w.Sign(bullav1.Broker_Deliver_FullMethodName, ask))
	return reply, recipient, err
}

// Refusal returns the detail of an error; nil if it has none.
func Refusal(err error) *bullav1.Refusal {
	st, _ := status.FromError(err)
	for _, d := range st.Details() {
		if r, ok := d.(*bullav1.Refusal); ok {
			return r
		}
	}
	return nil
}
