package abuse

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/test/rig"
)

// needles are a value in every form that a careless line of code could have given it, from each of the three
// places that it can have in a base64 text.
func needles(value []byte) map[string][]byte {
	out := map[string][]byte{
		"raw": value, "hex": []byte(hex.EncodeToString(value)), "HEX": []byte(strings.ToUpper(hex.EncodeToString(value))),
		"%v of bytes": []byte(strings.Trim(fmt.Sprint(value), "[]")), "%#v of bytes": []byte(strings.TrimSuffix(strings.SplitN(fmt.Sprintf("%#v", value), "{", 2)[1], "}")),
	}
	for shift := range 3 {
		text := base64.RawStdEncoding.EncodeToString(append(make([]byte, shift), value...))
		text = text[(shift*8+5)/6 : len(text)-2] // without what the neighbours change
		out[fmt.Sprintf("base64 at %d", shift)] = []byte(text)
		out[fmt.Sprintf("base64url at %d", shift)] = []byte(strings.NewReplacer("+", "-", "/", "_").Replace(text))
	}
	return out
}

// search demands that a text holds no needle.
func search(t *testing.T, where string, text []byte, forms map[string][]byte) {
	t.Helper()
	for form, n := range forms {
		if at := bytes.Index(text, n); at >= 0 {
			t.Errorf("%s holds it (%s) at byte %d", where, form, at)
		}
	}
}

// searchTree is search for every file below dir, and returns how many bytes it read.
func searchTree(t *testing.T, dir string, forms map[string][]byte) (read int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		read += len(text)
		search(t, path, text, forms)
		search(t, "the name of "+path, []byte(d.Name()), forms)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return read
}

// errorText is all that a caller gets of an error.
func errorText(err error) []byte {
	st := status.Convert(err)
	text := []byte(fmt.Sprintf("%v %+v %#v %s", err, err, err, st.Proto()))
	for _, d := range st.Proto().GetDetails() {
		text = append(text, d.GetValue()...)
	}
	return text
}

const canary = "Canary-7f3Qx-never-anywhere-but-at-the-client-Zk9"

// The value of a secret is found nowhere but where its owner used it: not in any file of the broker, nor its log,
// metrics, events, export, or answers, after puts, deliveries, denials and errors of all kinds.
func TestAbuse_A24_canary(t *testing.T) {
	forms := needles([]byte(canary))
	r := rig.Start(t, rig.Config{Edit: func(c *config.Config) { c.HTTPListen = "127.0.0.1:0" }})
	put := func(name, class, id string) error {
		_, err := bullav1.NewSecretsClient(r.Client("operator").Conn()).PutSecret(t.Context(), &bullav1.PutSecretRequest{Name: name, Class: class, Value: []byte(canary), RequestId: id})
		return err
	}
	id := requestID()
	for _, c := range []struct{ name, class, id string }{
		{"demo/canary", "standard", id},
		{"demo/canary", "", requestID()},
		{"demo/high", "high", requestID()},
		// refused, each for another reason
		{"demo/canary", "standard", id},
		{"demo/high", "standard", requestID()},
		{"DEMO/x", "standard", requestID()},
		{"demo/x", "nope", requestID()},
		{"demo/x", "standard", "nope"},
	} {
		if err := put(c.name, c.class, c.id); err != nil {
			search(t, "an error of a put", errorText(err), forms)
		}
	}
	_, err := bullav1.NewSecretsClient(r.Client("stranger").Conn()).PutSecret(t.Context(), &bullav1.PutSecretRequest{Name: "demo/x", Class: "standard", Value: []byte(canary), RequestId: requestID()})
	code(t, err, codes.PermissionDenied, "")
	search(t, "a denied put", errorText(err), forms)

	file, _ := r.Device(rig.ID("workload").String())
	c := r.Client("workload", func(c *client.Config) { c.DeviceFile = file })
	for _, name := range []string{"demo/canary", "demo/high"} {
		s := get(t, c, name, canary)
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			search(t, verb+" of the SDK's secret", fmt.Appendf(nil, verb, s), forms)
		}
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("secret", "value", s)
		search(t, "the SDK's secret in a log", log.Bytes(), forms)
		search(t, "the SDK's client", fmt.Appendf(nil, "%v%+v", c, c), forms)
	}
	w := r.Raw("workload")
	reply, o := opened(t, w, "demo/canary")
	search(t, "the reply", []byte(reply.String()+fmt.Sprintf("%+v", reply)), forms)
	search(t, "an opened envelope", fmt.Appendf(nil, "%v %+v %#v", o, *o, o), forms)
	if _, err := acknowledge(t, w, receipt(t, w, o)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"stranger", "auditor"} {
		_, _, err := r.Raw(name).Deliver(t.Context(), "demo/canary")
		search(t, "a denial", errorText(err), forms)
	}

	x := exported(t, r)
	for i, rec := range x.Records {
		search(t, fmt.Sprintf("event %d", i), rec.Encoding, forms)
	}
	searchTree(t, x.write(t), forms)
	res, err := http.Get("http://" + r.Server.HTTPAddr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	metrics, err := io.ReadAll(res.Body)
	if err != nil || !bytes.Contains(metrics, []byte("bulla_deliveries_total")) {
		t.Fatalf("metrics: %v", err)
	}
	search(t, "the metrics", metrics, forms)
	if n := searchTree(t, r.Config.DataDir, forms); n < 50_000 { // with its write-ahead log
		t.Errorf("only %d bytes below the data directory", n)
	}
	searchTree(t, r.Dir, forms)
	r.Stop()
	searchTree(t, r.Dir, forms)
	search(t, "the log", []byte(r.Log.String()), forms)
}

// The needles are found where they are.
func TestAbuse_A24_needles(t *testing.T) {
	value := []byte(canary)
	for name, text := range map[string]string{
		"raw": "x" + canary, "hex": fmt.Sprintf("%x", value), "HEX": fmt.Sprintf("%X", "ab"+canary+"cd"), "bytes": fmt.Sprint(value), "go": fmt.Sprintf("%#v", value),
		"base64 0": base64.StdEncoding.EncodeToString(value), "base64 1": base64.URLEncoding.EncodeToString([]byte("a" + canary + "b")), "base64 2": base64.StdEncoding.EncodeToString([]byte("ab" + canary)),
		"JSON": jsonText(t, value),
	} {
		found := false
		for _, n := range needles(value) {
			found = found || bytes.Contains([]byte(text), n)
		}
		if !found {
			t.Errorf("%s is not found in %s", name, text)
		}
	}
}

func jsonText(t *testing.T, value []byte) string {
	t.Helper()
	text, err := json.Marshal(map[string][]byte{"value": value})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// leakyStore panics, or fails, with the bytes that it was given in its words.
type leakyStore struct {
	ledger.Store
	mode string
}

func (s *leakyStore) Snapshot(ctx context.Context) (ledger.Snapshot, error) {
	snap, err := s.Store.Snapshot(ctx)
	return leakySnapshot{snap, s}, err
}

type leakySnapshot struct {
	ledger.Snapshot
	s *leakyStore
}

func (s leakySnapshot) Blob(ctx context.Context, key string) ([]byte, error) {
	if strings.HasPrefix(key, "secret/") {
		switch s.s.mode {
		case "panic":
			panic(canary)
		case "error":
			return nil, fmt.Errorf("blob: %s", canary)
		}
	}
	return s.Snapshot.Blob(ctx, key)
}

// A panic in the middle of a delivery, whatever its value is, ends that call alone and says nothing of the value,
// to nobody.
func TestAbuse_A24_panic(t *testing.T) {
	forms := needles([]byte(canary))
	r := rig.Start(t, rig.Config{})
	r.Put("demo/canary", "standard", canary)
	leaky := &leakyStore{}
	a := r.Assemble(rig.Parts{Store: func(s ledger.Store) ledger.Store { leaky.Store = s; return leaky }})
	w := r.Raw("workload")
	leaky.mode = "panic"
	_, _, err := w.Deliver(t.Context(), "demo/canary")
	code(t, err, codes.Internal, "internal error; it is in the broker's log")
	search(t, "the answer to a panic", errorText(err), forms)
	if log := r.Log.String(); !strings.Contains(log, "panic in a call") || !strings.Contains(log, "panic_type=string") {
		t.Errorf("the log does not tell of the panic: %s", log)
	}
	leaky.mode = "error"
	_, _, err = w.Deliver(t.Context(), "demo/canary")
	code(t, err, codes.Unavailable, "the ledger can't record now")
	search(t, "the answer to an error", errorText(err), forms)
	before := len(r.Log.String())
	leaky.mode = ""
	if _, _, err := w.Deliver(t.Context(), "demo/canary"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	_ = a
	// The store's own words are an operator's business and stand in the log; the panic's value never does.
	log := r.Log.String()[:before]
	log, _, _ = strings.Cut(log, "call failed")
	search(t, "the log", []byte(log), forms)
	searchTree(t, r.Config.DataDir, forms)
}
