package tsm

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/bulla-project/bulla/attest"
)

// kernel imitates an entry of configfs-tsm: outblob is a pipe, so that what is read from it is made when it is
// asked for, of what stands in inblob then.
type kernel struct {
	provider string
	aux      []byte // nil: the provider has none
	others   int    // so often somebody else writes in between
	served   chan error
}

// make fills an entry, and serves it until it was read as often as it takes.
func (k *kernel) make(entry string) error {
	files := map[string]string{"provider": k.provider + "\n", "inblob": "", "generation": "0\n"}
	if k.aux != nil {
		files["auxblob"] = string(k.aux)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(entry, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	out := filepath.Join(entry, "outblob")
	if err := syscall.Mkfifo(out, 0o600); err != nil {
		return err
	}
	k.served = make(chan error, 1)
	go func() { k.served <- k.serve(entry, out) }()
	return nil
}

func (k *kernel) serve(entry, out string) error {
	generation := 0
	for others := k.others; ; others-- {
		pipe, err := os.OpenFile(out, os.O_WRONLY, 0) // waits for the reader
		if err != nil {
			return err
		}
		// A new pipe for the next time: who reads this one to its end must not get what comes then.
		next := filepath.Join(entry, "next")
		if err := errors.Join(syscall.Mkfifo(next, 0o600), os.Rename(next, out)); err != nil {
			return err
		}
		in, err := os.ReadFile(filepath.Join(entry, "inblob"))
		generation++
		if others > 0 {
			generation++
		}
		err = errors.Join(err, os.WriteFile(filepath.Join(entry, "generation"), []byte(strconv.Itoa(generation)+"\n"), 0o600))
		_, e := fmt.Fprintf(pipe, "report of %x", in)
		if err := errors.Join(err, e, pipe.Close()); err != nil || others <= 0 {
			return err
		}
	}
}

func binding() attest.Binding {
	return attest.Binding{Nonce: [32]byte{1}, Principal: "spiffe://example.org/db", InstanceKey: []byte("key")}
}

func TestEntry(t *testing.T) {
	data := binding().ReportData()
	want := fmt.Appendf(nil, "report of %x", data)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("der")})
	for _, c := range []struct {
		name string
		k    kernel
		kind attest.Kind
		want []byte
	}{
		{"SEV-SNP with a table", kernel{provider: "sev_guest", aux: []byte("table")}, attest.KindSEVSNP, SEVSNP{want, []byte("table"), [][]byte{[]byte("der")}}.Marshal()},
		{"TDX", kernel{provider: "tdx_guest"}, attest.KindTDX, want},
		{"others write in between", kernel{provider: "tdx_guest", others: 3}, attest.KindTDX, want},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := c.k.make(dir); err != nil {
				t.Fatal(err)
			}
			d, err := Open(Config{Dir: dir, Certificates: cert})
			if err != nil || d.Kind() != c.kind {
				t.Fatal(d, err)
			}
			got, err := d.Attest(t.Context(), binding())
			if err != nil || !bytes.Equal(got, c.want) {
				t.Errorf("%q, %v, want %q", got, err, c.want)
			}
			if err := <-c.k.served; err != nil {
				t.Error(err)
			}
		})
	}
}

// Where no entry was made for the process it makes one, and removes it again.
func TestOwnEntry(t *testing.T) {
	dir := t.TempDir()
	k := &kernel{provider: "tdx_guest"}
	made := 0
	mkdir := func(path string, perm os.FileMode) error {
		made++
		if made == 1 {
			return os.ErrExist // another process of this number was here, and is gone
		}
		if err := os.Mkdir(path, perm); err != nil {
			return err
		}
		return k.make(path)
	}
	d, err := open(Config{Dir: dir}, mkdir)
	// A directory of files can't be removed by rmdir, as one of configfs can: that is what the error is about.
	if !errors.Is(err, syscall.ENOTEMPTY) || d != nil {
		t.Fatalf("%v, %v", d, err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || made != 2 {
		t.Errorf("%d entries, %d made, %v", len(left), made, err)
	}
	pipe, err := os.Open(filepath.Join(dir, left[0].Name(), "outblob")) // lets the imitation end
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(pipe.Close(), <-k.served); err != nil && !errors.Is(err, syscall.EPIPE) {
		t.Error(err)
	}
}

func TestUnavailable(t *testing.T) {
	if _, err := Open(Config{Dir: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("without configfs: %v", err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"inblob": "", "provider": "arm_cca_guest\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(Config{Dir: dir}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("of an unknown provider: %v", err)
	}
	if _, err := Open(Config{Dir: dir, Certificates: []byte("text")}); err == nil {
		t.Error("took a text for certificates")
	}
	if err := os.WriteFile(filepath.Join(dir, "provider"), []byte("sev_guest\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Attest(t.Context(), binding()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("without a generation: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Attest(ctx, binding()); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
}

func FuzzParseSEVSNP(f *testing.F) {
	f.Add(SEVSNP{[]byte("report"), []byte("table"), [][]byte{{1}, {2, 3}}}.Marshal())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := ParseSEVSNP(b); err == nil && !bytes.Equal(e.Marshal(), b) {
			t.Errorf("a second form: %x", b)
		}
	})
}
