package main

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/sessionproof"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
)

const someSession = "0193f2f0-5c1e-7a40-9a57-0d2f6f1c5a11"

// A checkpoint that contradicts the one that was kept is evidence: it is kept, and not in the place of a good one.
func TestCheckpointThatContradicts(t *testing.T) {
	skey, _, err := proofs.NewLogKey("test.example/bulla")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := proofs.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	old := proofs.Checkpoint{Origin: signer.Origin(), Size: 7, Root: proofs.Hash{1}}
	raw, err := signer.Sign(proofs.Checkpoint{Origin: signer.Origin(), Size: 7, Root: proofs.Hash{2}})
	if err != nil {
		t.Fatal(err)
	}
	f := checkpointFlags{since: "last", out: filepath.Join(t.TempDir(), "now")}
	_, refused := checkCheckpoint(&bullav1.CheckpointReply{Checkpoint: raw}, signer.Key(), old, f, nil)
	if !errors.Is(refused, proofs.ErrVerification) {
		t.Fatalf("another history: %v", refused)
	}
	if _, err := checkCheckpoint(&bullav1.CheckpointReply{Checkpoint: raw}, signer.Key(), old, checkpointFlags{witnessed: true}, nil); !errors.Is(err, client.ErrVerification) {
		t.Errorf("a witnessed one that nobody cosigned: %v", err)
	}
	err = keepRefused(f, signer.Key(), raw, refused)
	kept, readErr := os.ReadFile(f.out + ".refused")
	if !errors.Is(err, proofs.ErrVerification) || !strings.Contains(err.Error(), f.out+".refused") || readErr != nil || !bytes.Equal(kept, raw) {
		t.Errorf("%v; kept %q, %v", err, kept, readErr)
	}
	if _, err := os.Lstat(f.out); err == nil {
		t.Error("it stands where a good one belongs")
	}
	f.out += "2"
	if err := keepRefused(f, signer.Key(), raw[1:], refused); !errors.Is(err, refused) || strings.Contains(err.Error(), "kept") {
		t.Errorf("what nobody signed: %v", err)
	}
	if left, err := filepath.Glob(f.out + "*"); err != nil || len(left) > 0 {
		t.Errorf("what nobody signed was kept: %v, %v", left, err)
	}
}

// endless is a broker that never stops proving.
type endless struct {
	grpc.ServerStreamingClient[bullav1.ProveSessionItem]
	items int
}

func (e *endless) Recv() (*bullav1.ProveSessionItem, error) {
	e.items++
	salt := make([]byte, len(event.Salt{}))
	return &bullav1.ProveSessionItem{Records: []*bullav1.ProvenRecord{{
		Record:    &bullav1.AuditRecord{Encoding: make([]byte, 1<<20), EventSalt: salt, ReplySalt: salt},
		Inclusion: proofs.Proof{Size: 1}.Encode(),
	}}}, nil
}

func TestProofHasALimit(t *testing.T) {
	broker := &endless{}
	_, err := receiveProof(broker, someSession, func() {}, nil)
	if !errors.Is(err, client.ErrVerification) || broker.items > sessionproof.MaxSize>>20+1 {
		t.Errorf("after %d MiB: %v", broker.items, err)
	}
}

// huge is a broker whose events are larger than events are.
type huge struct {
	bullav1.UnimplementedAuditServer
}

func (huge) Tail(_ *bullav1.TailRequest, out grpc.ServerStreamingServer[bullav1.AuditEvent]) error {
	return out.Send(&bullav1.AuditEvent{Event: make([]byte, 2*event.MaxSize)})
}

func TestTailHasALimit(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	bullav1.RegisterAuditServer(s, huge{})
	go func() { _ = s.Serve(l) }()
	defer s.Stop()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(8<<20)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	to := make(chan *bullav1.AuditEvent, 1)
	if err := receiveTail(t.Context(), t.Context(), conn, &bullav1.TailRequest{}, to); status.Code(err) != codes.ResourceExhausted || len(to) > 0 {
		t.Errorf("%d events, %v", len(to), err)
	}
}

// TestAbuse_A54_Proof: a proof has one spelling, without escapes for what a terminal would obey.
func TestAbuse_A54_Proof(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal("no terminal: ", err)
	}
	defer terminal.Close()
	a := &app{stdout: terminal}
	var wrong *usageError
	if err := a.proveSession(newSessionProofCommand(a), someSession, "", "", ""); !errors.As(err, &wrong) || !strings.Contains(err.Error(), "terminal") {
		t.Errorf("%v", err)
	}
}
