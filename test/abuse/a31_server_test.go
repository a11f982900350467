package abuse

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/test/rig"
)

// served is a bundle as a bundle server has it.
func served(t *testing.T, archive, signature []byte) []byte {
	t.Helper()
	files, err := policy.Unpack(archive)
	if err != nil {
		t.Fatal(err)
	}
	files[policy.SignatureFile] = signature
	var out bytes.Buffer
	zipped := gzip.NewWriter(&out)
	w := tar.NewWriter(zipped)
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(text)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), zipped.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// A bundle server gets in what a bundle key signed, and nothing else; and it activates nothing.
func TestAbuse_A31_bundle_server(t *testing.T) {
	t.Parallel()
	private, public := bundleKey(t)
	mallory, _ := bundleKey(t)
	var content atomic.Pointer[[]byte]
	var asked atomic.Int64
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		if now := content.Load(); now != nil {
			_, _ = w.Write(*now)
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(web.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	r := rig.Start(t, rig.Config{Edit: func(c *config.Config) {
		c.Policy.BundleKeys, c.Policy.BundleServer = []string{public}, config.BundleServer{URL: web.URL, CAFile: ca, Poll: time.Second}
		archive, err := policy.Pack(os.DirFS(c.Policy.Dir))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(c.Policy.Dir, policy.SignatureFile), signedBundle(t, archive, private), 0o600); err != nil {
			t.Fatal(err)
		}
	}})
	serve := func(tarball []byte) { // and wait until it was asked for, and looked at
		t.Helper()
		content.Store(&tarball)
		for from := asked.Load(); asked.Load() < from+2; runtime.Gosched() {
			if t.Context().Err() != nil {
				t.Fatal("nobody asks the bundle server")
			}
		}
	}
	archive := variant(t, r, "served")
	serve(served(t, archive, signedBundle(t, archive, mallory)))
	serve(served(t, archive, nil))
	serve([]byte("no bundle"))
	if n := len(of[event.RevisionStaged](r.Events())); n != 1 {
		t.Errorf("%d staged", n)
	}
	serve(served(t, archive, signedBundle(t, archive, private)))
	staged := of[event.RevisionStaged](r.Events())
	if len(staged) != 2 || staged[1].Digest != event.Digest(policy.ArchiveDigest(archive)) || staged[1].Source != web.URL || staged[1].By != nil {
		t.Errorf("%+v", staged)
	}
	if n := len(of[event.RevisionActivated](r.Events())); n != 1 {
		t.Errorf("%d activations", n)
	}
	if log := r.Log.String(); !strings.Contains(log, "none of the 1 bundle keys") || !strings.Contains(log, "the active revision stays") {
		t.Error("the log does not say why")
	}
	r.Check()
}
