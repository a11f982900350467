package abuse

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/sessionproof"
	"github.com/bulla-project/bulla/audit/witness/xtest"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// proven takes the proof of a session over the wire.
func proven(t *testing.T, r *rig.Rig, id string, since []byte) sessionproof.Proof {
	t.Helper()
	session, err := event.ParseID(id)
	if err != nil {
		t.Fatal(err)
	}
	p := sessionproof.Proof{Session: session, Since: since}
	in := &bullav1.ProveSessionRequest{Id: id}
	if since != nil {
		key, err := proofs.ParseKey(r.Server.LogKey())
		if err != nil {
			t.Fatal(err)
		}
		at, err := key.Open(since)
		if err != nil {
			t.Fatal(err)
		}
		in.Since = at.Size
	}
	stream, err := bullav1.NewProofsClient(r.Client("auditor").Conn()).ProveSession(t.Context(), in)
	for err == nil {
		var item *bullav1.ProveSessionItem
		if item, err = stream.Recv(); err != nil {
			break
		}
		if len(item.GetCheckpoint()) > 0 {
			p.Checkpoint, p.LogKey = item.GetCheckpoint(), item.GetLogKey()
		}
		if len(item.GetConsistency()) > 0 {
			c, err := proofs.ParseConsistencyProof(item.GetConsistency())
			if err != nil {
				t.Fatal(err)
			}
			p.Consistency = c.Hashes
		}
		for _, rec := range item.GetRecords() {
			one := audit.Record{
				Index: rec.GetRecord().GetIndex(), Encoding: rec.GetRecord().GetEncoding(),
				EventSalt: event.Salt(rec.GetRecord().GetEventSalt()), ReplySalt: event.Salt(rec.GetRecord().GetReplySalt()),
			}
			if len(rec.GetRecord().GetReply()) > 0 {
				one.Reply = event.Digest(rec.GetRecord().GetReply())
			}
			inclusion, err := proofs.ParseProof(rec.GetInclusion())
			if err != nil {
				t.Fatal(err)
			}
			p.Entries = append(p.Entries, sessionproof.Entry{Record: one, Inclusion: inclusion.Hashes})
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return p
}

func logKey(t *testing.T, r *rig.Rig) proofs.Key {
	t.Helper()
	key, err := proofs.ParseKey(r.Server.LogKey())
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// told verifies a proof in its encoding.
func told(t *testing.T, p sessionproof.Proof, opts sessionproof.Options) sessionproof.Report {
	t.Helper()
	data, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := sessionproof.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	report, err := sessionproof.Verify(again, opts)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func types(r sessionproof.Report) string {
	var out []string
	for _, e := range r.Events {
		out = append(out, string(e.Type))
	}
	return strings.Join(out, " ")
}

const foundation = "log.genesis key.introduced revision.activated trust.observed instance.bound "

// A proof tells the whole life of a session at each grade, to whoever has the log's key, and each single bit of it counts.
func TestAbuse_A29_session_proof(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "hello")
	r.Put("demo/gated", "standard", "s3cret")
	key := logKey(t, r)
	w := r.Raw("workload")
	reply, o := opened(t, w, "demo/hello")
	open := proven(t, r, reply.GetSessionId(), nil)
	report := told(t, open, sessionproof.Options{Key: key})
	if report.State != "issued" || !strings.Contains(strings.Join(report.NotShown, "\n"), "that the envelope was opened") {
		t.Errorf("before its receipt: %+v", report)
	}
	if _, err := acknowledge(t, w, receipt(t, w, o)); err != nil {
		t.Fatal(err)
	}
	seen := exported(t, r).Checkpoint
	s := deliverGated(t, w, "demo/gated", "s3cret", 3)
	for _, number := range []uint32{2, 1} {
		if _, err := s.use(t, w, requestID(), number); err != nil {
			t.Fatal(err)
		}
	}
	_, err := bullav1.NewSessionsClient(r.Client("operator").Conn()).RevokeSession(t.Context(), &bullav1.RevokeSessionRequest{Id: s.reply.GetSessionId(), Reason: "over"})
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{
		reply.GetSessionId():   foundation + "session.issued session.confirmed",
		s.reply.GetSessionId(): foundation + "session.issued session.used session.used session.revoked",
	} {
		report := told(t, proven(t, r, id, seen), sessionproof.Options{Key: key, Against: seen})
		if got := types(report); got != want {
			t.Errorf("the proof holds %q, want %q", got, want)
		}
		if *report.Against == 0 || report.Size <= *report.Against {
			t.Errorf("against %d, size %d", *report.Against, report.Size)
		}
	}
	// The recipient's own word, right and wrong.
	kept := proofs.Reply{
		Session: open.Session, Index: reply.GetLogIndex(), EnvelopeDigest: event.Digest(o.Digest),
		ReplySalt: event.Salt(reply.GetReplySalt()), EventCommitment: event.Digest(reply.GetLeafEventCommitment()),
	}
	told(t, open, sessionproof.Options{Key: key, Reply: &kept})
	for name, change := range map[string]func(k *proofs.Reply){
		"envelope": func(k *proofs.Reply) { k.EnvelopeDigest[0] ^= 1 }, "salt": func(k *proofs.Reply) { k.ReplySalt[0] ^= 1 },
		"event": func(k *proofs.Reply) { k.EventCommitment[0] ^= 1 }, "index": func(k *proofs.Reply) { k.Index++ }, "session": func(k *proofs.Reply) { k.Session[15] ^= 1 },
	} {
		bad := kept
		change(&bad)
		if _, err := sessionproof.Verify(open, sessionproof.Options{Key: key, Reply: &bad}); !errors.Is(err, proofs.ErrVerification) {
			t.Errorf("a recipient with another %s: %v", name, err)
		}
	}
	everyBit(t, proven(t, r, s.reply.GetSessionId(), seen), sessionproof.Options{Key: key, Against: seen})
}

// everyBit flips bits of a proof: all of them in the long run.
func everyBit(t *testing.T, p sessionproof.Proof, opts sessionproof.Options) {
	t.Helper()
	data, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	bits := rand.New(rand.NewPCG(29, 5)).Perm(8 * len(data))
	if !long() {
		bits = bits[:2000]
	}
	for _, bit := range bits {
		bad := bytes.Clone(data)
		bad[bit/8] ^= 1 << (bit % 8)
		again, err := sessionproof.Parse(bad)
		if err == nil {
			_, err = sessionproof.Verify(again, opts)
		}
		var f *audit.Fault
		if !errors.As(err, &f) || f.What == "" || f.File == "" {
			t.Fatalf("bit %d (%q): no fault with a place: %v", bit, data[max(0, bit/8-20):min(len(data), bit/8+20)], err)
		}
	}
}

// What the broker could leave out, put in, swap or take from elsewhere is named with its place.
func TestAbuse_A29_session_proof_edited(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "hello")
	key := logKey(t, r)
	w := r.Raw("workload")
	var all []sessionproof.Proof
	for range 2 {
		reply, o := opened(t, w, "demo/hello")
		if _, err := acknowledge(t, w, receipt(t, w, o)); err != nil {
			t.Fatal(err)
		}
		all = append(all, proven(t, r, reply.GetSessionId(), nil))
	}
	good := proven(t, r, all[0].Session.String(), nil)
	told(t, good, sessionproof.Options{Key: key})
	for i, e := range good.Entries {
		bad := good
		bad.Entries = append(append([]sessionproof.Entry{}, good.Entries[:i]...), good.Entries[i+1:]...)
		_, err := sessionproof.Verify(bad, sessionproof.Options{Key: key})
		last := i == len(good.Entries)-1 // the receipt: that it is not there is nothing that a proof can show
		if last != (err == nil) {
			t.Errorf("without the event at %d: %v", e.Index, err)
		}
	}
	for name, change := range map[string]func(p *sessionproof.Proof){
		"swapped":              func(p *sessionproof.Proof) { p.Entries[4], p.Entries[5] = p.Entries[5], p.Entries[4] },
		"twice":                func(p *sessionproof.Proof) { p.Entries = append(p.Entries, p.Entries[len(p.Entries)-1]) },
		"another session":      func(p *sessionproof.Proof) { p.Session = all[1].Session },
		"an older checkpoint":  func(p *sessionproof.Proof) { p.Checkpoint = all[0].Checkpoint },
		"another log":          func(p *sessionproof.Proof) { p.LogKey = strings.Replace(p.LogKey, "+", "x+", 1) },
		"hashes about nothing": func(p *sessionproof.Proof) { p.Consistency = make([]proofs.Hash, 1) },
	} {
		bad := good
		bad.Entries = append([]sessionproof.Entry{}, good.Entries...)
		change(&bad)
		var f *audit.Fault
		if _, err := sessionproof.Verify(bad, sessionproof.Options{Key: key}); !errors.As(err, &f) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Certificates are judged by others' authorities as well, if they are given.
	foreign := rig.Start(t, rig.Config{})
	authorities := func(r *rig.Rig) sessionproof.Options {
		bundle, err := r.Source("auditor").GetX509BundleForTrustDomain(rig.ID("x").TrustDomain())
		if err != nil {
			t.Fatal(err)
		}
		return sessionproof.Options{Key: key, Authorities: bundle.X509Authorities()}
	}
	told(t, good, authorities(r))
	var f *audit.Fault
	if _, err := sessionproof.Verify(good, authorities(foreign)); !errors.As(err, &f) || f.Index != good.Entries[4].Index {
		t.Errorf("by another authority: %v", err)
	}
	// Only those may have a proof whom the policy lets.
	for _, who := range []string{"workload", "operator", "stranger"} {
		stream, err := bullav1.NewProofsClient(r.Client(who).Conn()).ProveSession(t.Context(), &bullav1.ProveSessionRequest{Id: good.Session.String()})
		if err == nil {
			_, err = stream.Recv()
		}
		if err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s got a proof", who)
		}
	}
}

// A real witness cosigns what the broker signs, the tiles are there for everybody over HTTP, and another implementation
// accepts checkpoint, cosignature, tiles and proofs, and refuses altered ones.
func TestAbuse_A29_witnessed_and_served(t *testing.T) {
	t.Parallel()
	w := xtest.Start(t, "witness.example/w1")
	published := t.TempDir()
	r := rig.Start(t, rig.Config{Edit: func(c *config.Config) {
		c.HTTPListen = "127.0.0.1:0"
		c.Log.Witnesses = config.Witnesses{Quorum: 1, Every: 50 * time.Millisecond, List: []config.Witness{{Key: w.Key, URL: w.URL}}}
		c.Log.Tiles.Listen = "127.0.0.1:0"
		c.Log.Publish = []config.Publication{{Directory: published}}
	}})
	w.Know(t, r.Server.LogKey())
	key, err := proofs.ParseWitnessKey(w.Key)
	if err != nil {
		t.Fatal(err)
	}
	r.Put("demo/hello", "standard", "hello")
	raw := r.Raw("workload")
	var last string
	var index int64
	for range 300 {
		reply, _ := opened(t, raw, "demo/hello")
		last, index = reply.GetSessionId(), reply.GetLogIndex()
	}
	base := "http://" + r.Server.TilesAddr().String()
	var signed []byte
	eventually(t, "the checkpoint is cosigned", func() bool {
		var status int
		status, signed = fetchURL(t, base+"/checkpoint")
		at, sigs, err := logKey(t, r).OpenCosigned(signed, []proofs.WitnessKey{key})
		seen, _ := proofs.VerifiedBy(sigs, []proofs.WitnessKey{key})
		return status == http.StatusOK && err == nil && at.Size > index && len(seen) == 1
	})
	p := proven(t, r, last, nil)
	report := told(t, p, sessionproof.Options{Key: logKey(t, r), Witnesses: []proofs.WitnessKey{key}})
	if !strings.Contains(strings.Join(report.Shown, "\n"), "witness witness.example/w1 saw this log") {
		t.Errorf("the report says nothing of the witness: %v", report.Shown)
	}
	stranger, err := proofs.ParseWitnessKey(xtest.Start(t, "witness.example/w2").Key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sessionproof.Verify(p, sessionproof.Options{Key: logKey(t, r), Witnesses: []proofs.WitnessKey{stranger}}); !errors.Is(err, proofs.ErrVerification) {
		t.Errorf("a witness that did not cosign: %v", err)
	}
	elsewhere(t, r, w, base, signed, p)
	eventually(t, "it is published", func() bool {
		text, err := os.ReadFile(filepath.Join(published, "checkpoint"))
		at, _, openErr := logKey(t, r).OpenCosigned(text, nil)
		return err == nil && openErr == nil && at.Size > index
	})
	// An export carries the witnessed checkpoint, and is verified with it.
	x := exported(t, r)
	dir := filepath.Join(t.TempDir(), "export")
	if _, err := audit.Export(t.Context(), dir, audit.ExportConfig{Checkpoint: x.Checkpoint, Witnessed: x.Witnessed, Key: x.Key, Events: records(x.Records)}); err != nil {
		t.Fatal(err)
	}
	if f := fault(t, dir, x.Key, audit.VerifyOptions{Witnesses: []proofs.WitnessKey{key}}); f != nil {
		t.Error(f)
	}
	if f := fault(t, dir, x.Key, audit.VerifyOptions{Witnesses: []proofs.WitnessKey{stranger}}); f == nil || f.File != "witnessed" {
		t.Errorf("a witness that did not cosign: %v", f)
	}
	for at := 0; at < len(x.Witnessed); at += 7 {
		bad := bytes.Clone(x.Witnessed)
		bad[at] ^= 1
		overwrite(t, filepath.Join(dir, "witnessed"), bad)
		if f := fault(t, dir, x.Key, audit.VerifyOptions{}); f == nil || f.File != "witnessed" && f.File != "manifest" {
			t.Fatalf("byte %d of the witnessed checkpoint was changed: %v", at, f)
		}
	}
	status, metrics := fetchURL(t, "http://"+r.Server.HTTPAddr().String()+"/metrics")
	if status != http.StatusOK || !strings.Contains(string(metrics), "bulla_log_witnessed_entries ") {
		t.Errorf("metrics (%d) have no witnesses:\n%s", status, metrics)
	}
}

// elsewhere is what another implementation makes of what is served.
func elsewhere(t *testing.T, r *rig.Rig, w *xtest.Witness, base string, signed []byte, p sessionproof.Proof) {
	t.Helper()
	v, err := note.NewVerifier(r.Server.LogKey())
	if err != nil {
		t.Fatal(err)
	}
	cosigner, err := torchwood.NewCosignatureVerifier(w.Key)
	if err != nil {
		t.Fatal(err)
	}
	policy := torchwood.ThresholdPolicy(3, torchwood.OriginPolicy(v.Name()), torchwood.SingleVerifierPolicy(v), torchwood.SingleVerifierPolicy(cosigner))
	checkpoint, _, err := torchwood.VerifyCheckpoint(signed, policy)
	if err != nil {
		t.Fatalf("torchwood refuses the checkpoint: %v", err)
	}
	fetcher, err := torchwood.NewTileFetcher(base)
	if err != nil {
		t.Fatal(err)
	}
	client, err := torchwood.NewClient(fetcher)
	if err != nil {
		t.Fatal(err)
	}
	leaves := map[int64][]byte{}
	for i, entry := range client.AllEntries(t.Context(), checkpoint.Tree, 0) {
		leaves[i] = bytes.Clone(entry)
	}
	if err := client.Err(); err != nil || int64(len(leaves)) != checkpoint.N {
		t.Fatalf("torchwood reads %d of %d entries: %v", len(leaves), checkpoint.N, err)
	}
	for _, e := range p.Entries {
		leaf := e.Leaf()
		if !bytes.Equal(leaves[e.Index], leaf.Bytes()) {
			t.Errorf("the leaf at %d is another one", e.Index)
		}
		portable := torchwood.FormatProof(e.Index, e.Inclusion, p.Checkpoint)
		if err := torchwood.VerifyProof(policy, tlog.RecordHash(leaf.Bytes()), portable); err != nil {
			t.Errorf("torchwood refuses the proof of %d: %v", e.Index, err)
		}
		leaf.Event[0] ^= 1
		if err := torchwood.VerifyProof(policy, tlog.RecordHash(leaf.Bytes()), portable); err == nil {
			t.Errorf("torchwood takes another leaf at %d", e.Index)
		}
	}
	wrong := checkpoint.Tree
	wrong.Hash[0] ^= 1
	for range client.AllEntries(t.Context(), wrong, 0) {
		t.Fatal("torchwood reads entries of a tree that is not that of the tiles")
	}
	if client.Err() == nil {
		t.Error("torchwood takes the tiles for those of another tree")
	}
}

func fetchURL(t *testing.T, url string) (int, []byte) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}
