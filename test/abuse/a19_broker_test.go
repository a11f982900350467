package abuse

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/envelope"
	reqproof "github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/test/rig"
)

// falseBroker is a server with the broker's own SVID that seals whatever the test wants.
type falseBroker struct {
	bullav1.UnimplementedBrokerServer
	addr     string
	signer   *envelope.Signer // published
	other    *envelope.Signer // not published
	stranger atomic.Bool      // sign with other
	receipts atomic.Int64

	mu     sync.Mutex // guards what follows
	change func(*envelope.Context)
	replay *bullav1.DeliverReply
	sent   *bullav1.DeliverReply
}

func newFalseBroker(t *testing.T, r *rig.Rig) *falseBroker {
	t.Helper()
	x := &falseBroker{signer: newSigner(t), other: newSigner(t)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x.addr = l.Addr().String()
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(certs.ServerTLS(r.Source("bulla/broker")))))
	bullav1.RegisterBrokerServer(s, x)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return x
}

func newSigner(t *testing.T) *envelope.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := envelope.NewSigner(reqproof.Thumbprint(&key.PublicKey), key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (x *falseBroker) set(change func(*envelope.Context), replay *bullav1.DeliverReply) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.change, x.replay = change, replay
}

func (x *falseBroker) last() *bullav1.DeliverReply {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.sent
}

// Challenge implements the service.
func (x *falseBroker) Challenge(context.Context, *bullav1.ChallengeRequest) (*bullav1.ChallengeReply, error) {
	set, err := envelope.NewKeySet(x.signer.Key())
	if err != nil {
		return nil, err
	}
	keys, err := set.MarshalJSON()
	nonce := make([]byte, 32)
	_, _ = rand.Read(nonce)
	return &bullav1.ChallengeReply{Nonce: nonce, SigningKeys: keys, LogOrigin: "falseBroker"}, err
}

// Deliver seals a good answer, but for what the test changes.
func (x *falseBroker) Deliver(ctx context.Context, in *bullav1.SignedRequest) (*bullav1.DeliverReply, error) {
	var ask bullav1.DeliverRequest
	if err := proto.Unmarshal(in.GetPayload(), &ask); err != nil {
		return nil, err
	}
	suite, err := envelope.ParseSuite(ask.GetSuite())
	if err != nil {
		return nil, err
	}
	recipient, err := envelope.ParseRecipientKey(suite, ask.GetRecipientKey())
	if err != nil {
		return nil, err
	}
	p, _ := peer.FromContext(ctx)
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return nil, errors.New("no TLS")
	}
	exporter, err := info.State.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		return nil, err
	}
	now := time.Now().Unix()
	c := envelope.Context{
		Session: requestID(), Request: in.GetProof().GetRequestId(), Issuer: rig.ID("bulla/broker").String(), Subject: rig.ID("workload").String(),
		Instance: in.GetProof().GetInstance(), Audience: rig.ID("workload").String(), Secret: envelope.DigestOf([]byte("name")), SecretVersion: 1,
		IssuedAt: now, NotBefore: now, Expires: now + 600, Grade: envelope.GradeOpen, Places: []string{}, Revision: envelope.DigestOf([]byte("revision")),
		RiskModel: envelope.DigestOf([]byte("model")), Channel: envelope.Digest(exporter), LogOrigin: "falseBroker",
	}
	reply := &bullav1.DeliverReply{
		SessionId: c.Session, Grade: string(c.Grade), Policy: &bullav1.PolicyRef{Revision: 1, Digest: hex.EncodeToString(c.Revision[:])},
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.replay != nil {
		return x.replay, nil
	}
	if x.change != nil {
		x.change(&c)
	}
	signer := x.signer
	if x.stranger.Load() {
		signer = x.other
	}
	sealed, err := envelope.Seal(envelope.SealInput{Recipient: recipient, Context: c, Secret: secret.NewBytes([]byte("forged"))}, signer)
	reply.Envelope = sealed.Bytes
	x.sent = reply
	return reply, err
}

// Acknowledge takes every receipt.
func (x *falseBroker) Acknowledge(context.Context, *bullav1.SignedRequest) (*bullav1.AcknowledgeReply, error) {
	x.receipts.Add(1)
	return &bullav1.AcknowledgeReply{State: "confirmed"}, nil
}
