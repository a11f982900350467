package device_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/bulla-project/bulla/attest/tpm/device"
)

func TestAddresses(t *testing.T) {
	for _, addr := range []string{"", "unix", "unix:", "unix:relative", "tcp:localhost:1", "/dev/tpmrm0", "device:tpm0"} {
		if _, err := device.Open(t.Context(), addr); !errors.Is(err, device.ErrAddress) {
			t.Errorf("%q: %v", addr, err)
		}
	}
	if _, err := device.Open(t.Context(), "device:"+filepath.Join(t.TempDir(), "tpmrm0")); !errors.Is(err, device.ErrUnavailable) {
		t.Errorf("no device: %v", err)
	}
}

func TestNobodyListens(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := device.Open(ctx, "unix:"+filepath.Join(t.TempDir(), "s")); !errors.Is(err, device.ErrUnavailable) {
		t.Errorf("open: %v", err)
	}
}

// A TPM that hangs or talks nonsense ends in an error, not in waiting for ever.
func TestBrokenTPM(t *testing.T) {
	for name, response := range map[string][]byte{
		"silent": nil,
		"huge":   {0x80, 0x01, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0},
		"short":  {0x80, 0x01, 0, 0, 0, 1, 0, 0, 0, 0},
		"failed": {0x80, 0x01, 0, 0, 0, 10, 0, 0, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				buffer := make([]byte, 4096)
				for {
					if _, err := c.Read(buffer); err != nil {
						return
					}
					if _, err := c.Write(response); err != nil {
						return
					}
				}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if _, err := device.Open(ctx, "unix:"+path); err == nil {
				t.Error("opened")
			}
		})
	}
}
