package broker

import (
	"errors"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
)

// Peers that connect and say nothing get so many places, and no more; one that hangs up gives its place back.
func TestStrangersAreCounted(t *testing.T) {
	creds := &transport{
		TransportCredentials: credentials.NewTLS(nil), handshakes: make(chan struct{}, 4), wait: time.Second, strangers: newConnSlots(8, 2),
	}
	handshake := func() error {
		ours, theirs := net.Pipe()
		_ = theirs.Close()
		_, _, err := creds.ServerHandshake(ours)
		return err
	}
	host := "pipe" // the address of both ends of a net.Pipe
	for range 2 {
		if !creds.strangers.take(host) {
			t.Fatal("no two places")
		}
	}
	if err := handshake(); !errors.Is(err, errBusy) {
		t.Errorf("a third one: %v, want %v", err, errBusy)
	}
	creds.strangers.free(host)
	for range 3 {
		if err := handshake(); err == nil || errors.Is(err, errBusy) {
			t.Errorf("one that hung up: %v", err)
		}
	}
}
