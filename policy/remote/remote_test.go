package remote_test

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
	"testing"

	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/policy/remote"
	"github.com/bulla-project/bulla/rego"
)

func bundle(t *testing.T) (archive, tarball []byte) {
	t.Helper()
	archive, err := policy.Pack(rego.Base())
	if err != nil {
		t.Fatal(err)
	}
	files, err := policy.Unpack(archive)
	if err != nil {
		t.Fatal(err)
	}
	files[policy.SignatureFile] = []byte("signature")
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
	return archive, out.Bytes()
}

// server answers with f, and returns a source that trusts it.
func server(t *testing.T, f http.HandlerFunc) *remote.Source {
	t.Helper()
	s := httptest.NewTLSServer(f)
	t.Cleanup(s.Close)
	dir := t.TempDir()
	ca, token := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "token")
	err := errors.Join(
		os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600),
		os.WriteFile(token, []byte("hunter2\n"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	source, err := remote.New(remote.Config{URL: s.URL + "/bundle.tar.gz", CAFile: ca, BearerFile: token})
	if err != nil {
		t.Fatal(err)
	}
	return source
}

func TestFetch(t *testing.T) {
	archive, tarball := bundle(t)
	calls := 0
	s := server(t, func(w http.ResponseWriter, r *http.Request) {
		calls++
		if r.Header.Get("Authorization") != "Bearer hunter2" {
			t.Errorf("authorization %q", r.Header.Get("Authorization"))
		}
		w.Header().Set("ETag", `"one"`)
		if r.Header.Get("If-None-Match") == `"one"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = w.Write(tarball)
	})
	got, signature, err := s.Fetch(t.Context())
	if err != nil || !bytes.Equal(got, archive) || string(signature) != "signature" {
		t.Fatalf("%d bytes, %q, %v", len(got), signature, err)
	}
	if got, _, err := s.Fetch(t.Context()); err != nil || got != nil {
		t.Errorf("the same again: %d bytes, %v", len(got), err)
	}
	s.Forget()
	if got, _, err := s.Fetch(t.Context()); err != nil || !bytes.Equal(got, archive) || calls != 3 {
		t.Errorf("after Forget: %d bytes, %v, %d calls", len(got), err, calls)
	}
}

func TestServersThatAreNotBelieved(t *testing.T) {
	_, tarball := bundle(t)
	for name, f := range map[string]http.HandlerFunc{
		"an error":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"a redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/other", http.StatusFound) },
		"no bundle":  func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"cut":        func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(tarball[:100]) },
		"without end": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		},
	} {
		if archive, _, err := server(t, f).Fetch(t.Context()); !errors.Is(err, remote.ErrFetch) || archive != nil {
			t.Errorf("%s: %d bytes, %v; want ErrFetch", name, len(archive), err)
		}
	}
	plain := httptest.NewTLSServer(http.NotFoundHandler()) // signed by nobody that the system knows
	defer plain.Close()
	s, err := remote.New(remote.Config{URL: plain.URL})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Fetch(t.Context()); !errors.Is(err, remote.ErrFetch) {
		t.Error(err)
	}
	for _, address := range []string{"", "http://127.0.0.1/b.tar.gz", "https://", "https://a:b@example.org/b", "file:///etc/passwd", "https://x/#y"} {
		if _, err := remote.New(remote.Config{URL: address}); !errors.Is(err, remote.ErrConfig) {
			t.Errorf("%q: %v, want ErrConfig", address, err)
		}
	}
}
