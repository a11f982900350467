package abuse

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/base64"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	_ "modernc.org/sqlite" // the driver

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/broker/server"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// edited is a broker whose database somebody edits while it is stopped.
type edited struct {
	*rig.Rig
	t       *testing.T
	w       *rig.Raw
	session string
}

func newEdited(t *testing.T) *edited {
	t.Helper()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/one", "standard", "first")
	r.Put("demo/two", "standard", "second")
	r.Put("demo/high", "high", "top")
	r.Put("demo/high", "high", "top again")
	e := &edited{Rig: r, t: t, w: r.Raw("workload")}
	reply, _, err := e.w.Deliver(t.Context(), "demo/one")
	if err != nil {
		t.Fatal(err)
	}
	e.session = reply.GetSessionId()
	_, err = bullav1.NewSessionsClient(r.Client("operator").Conn()).RevokeSession(t.Context(), &bullav1.RevokeSessionRequest{Id: e.session, Reason: "over"})
	if err != nil {
		t.Fatal(err)
	}
	r.Stop()
	return e
}

// exec runs a statement, which has to change something.
func (e *edited) exec(statement string, args ...any) {
	e.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(e.Config.DataDir, "ledger.db"))
	if err != nil {
		e.t.Fatal(err)
	}
	defer db.Close()
	res, err := db.ExecContext(e.t.Context(), statement, args...)
	if err != nil {
		e.t.Fatalf("%s: %v", statement, err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		e.t.Fatalf("%s: %d rows, %v", statement, n, err)
	}
}

// found demands that the comparison with the events names the place.
func (e *edited) found(where string) {
	e.t.Helper()
	report, err := server.CheckStopped(e.t.Context(), e.Config.DataDir, e.Config.Keyring.KEKFile, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	for _, d := range report.Differences {
		if strings.Contains(d.Where, where) {
			return
		}
	}
	e.t.Errorf("rebuild names %v, not %s", report.Differences, where)
}

// withheld demands that a running broker gives nothing of it away.
func (e *edited) withheld(name string, version uint32) {
	e.t.Helper()
	e.Run()
	defer e.Stop()
	w := e.Raw("workload")
	ask, _ := w.Ask(name)
	ask.Version = version
	w.Challenge(nil)
	reply, err := w.Broker.Deliver(e.t.Context(), w.Sign(bullav1.Broker_Deliver_FullMethodName, ask))
	code(e.t, err, codes.Unavailable, "the ledger can't record now")
	if len(reply.GetEnvelope()) > 0 {
		e.t.Error("it came with an envelope")
	}
}

// Somebody who can write to the database does not get at a secret in this way, and does not stay unseen.
func TestAbuse_A50_edited_rows(t *testing.T) {
	t.Run("class of the secret", func(t *testing.T) {
		e := newEdited(t)
		e.exec(`UPDATE states SET value = CAST(replace(CAST(value AS TEXT), '"demo/high","class":"high"', '"demo/high","class":"standard"') AS BLOB) WHERE kind = 'secret' AND key = 'demo/high'`)
		e.found(`secret "demo/high"`)
		e.withheld("demo/high", 0)
		e.withheld("demo/high", 1)
	})
	t.Run("class of the secret and its newest version", func(t *testing.T) {
		e := newEdited(t)
		e.exec(`UPDATE states SET value = CAST(replace(CAST(value AS TEXT), '"demo/high","class":"high"', '"demo/high","class":"standard"') AS BLOB) WHERE kind = 'secret' AND key = 'demo/high'`)
		e.exec(`UPDATE states SET value = CAST(substr(CAST(value AS TEXT), 1, instr(CAST(value AS TEXT), '"version":2')) || replace(substr(CAST(value AS TEXT), instr(CAST(value AS TEXT), '"version":2') + 1), '"class":"high"', '"class":"standard"') AS BLOB) WHERE kind = 'secret' AND key = 'demo/high'`)
		e.found(`secret "demo/high"`)
		e.withheld("demo/high", 0)
		e.withheld("demo/high", 1)
	})
	t.Run("class everywhere", func(t *testing.T) {
		e := newEdited(t)
		e.exec(`UPDATE states SET value = CAST(replace(CAST(value AS TEXT), '"class":"high"', '"class":"standard"') AS BLOB) WHERE kind = 'secret' AND key = 'demo/high'`)
		e.found(`secret "demo/high"`)
		e.withheld("demo/high", 0)
		e.withheld("demo/high", 1)
	})
	t.Run("owner", func(t *testing.T) {
		e := newEdited(t)
		e.exec(`UPDATE states SET value = CAST(replace(CAST(value AS TEXT), 'dev.bulla.test/operator', 'dev.bulla.test/workload') AS BLOB) WHERE kind = 'secret' AND key = 'demo/one'`)
		e.found(`secret "demo/one"`)
		e.withheld("demo/one", 0)
	})
	t.Run("ciphertexts swapped", func(t *testing.T) {
		e := newEdited(t)
		swap(e, "data")
		e.found(`blob "secret/`)
		e.withheld("demo/one", 0)
		e.withheld("demo/two", 0)
	})
	t.Run("ciphertexts swapped with their digests", func(t *testing.T) {
		e := newEdited(t)
		swap(e, "data")
		swap(e, "digest")
		one, two := digestOf(e, "demo/one"), digestOf(e, "demo/two")
		replace := `UPDATE states SET value = CAST(replace(CAST(value AS TEXT), ?, ?) AS BLOB) WHERE kind = 'secret' AND key = ?`
		e.exec(replace, one, two, "demo/one")
		e.exec(replace, two, one, "demo/two")
		e.found(`secret "demo/one"`)
		e.withheld("demo/one", 0)
		e.withheld("demo/two", 0)
	})
	t.Run("one secret under another's name", func(t *testing.T) {
		e := newEdited(t)
		e.exec(`UPDATE states SET value = (SELECT CAST(replace(CAST(value AS TEXT), 'demo/high', 'demo/one') AS BLOB) FROM states WHERE kind = 'secret' AND key = 'demo/high') WHERE kind = 'secret' AND key = 'demo/one'`)
		e.exec(`UPDATE states SET value = CAST(replace(CAST(value AS TEXT), '"class":"high"', '"class":"standard"') AS BLOB) WHERE kind = 'secret' AND key = 'demo/one'`)
		e.found(`secret "demo/one"`)
		e.withheld("demo/one", 0)
	})
	t.Run("a revoked session made confirmed", func(t *testing.T) {
		e := newEdited(t)
		e.exec(`UPDATE sessions SET state = 'confirmed', value = CAST(replace(CAST(value AS TEXT), '"state":"revoked"', '"state":"confirmed"') AS BLOB) WHERE id = ?`, e.session)
		e.found(`session "` + e.session)
	})
	t.Run("its column alone", func(t *testing.T) {
		e := newEdited(t)
		e.exec(`UPDATE sessions SET state = 'confirmed' WHERE id = ?`, e.session)
		e.found(`session "` + e.session)
	})
	t.Run("uses", func(t *testing.T) {
		e := newEdited(t)
		e.exec(`UPDATE sessions SET value = CAST(replace(CAST(value AS TEXT), '"uses":1000', '"uses":9999') AS BLOB) WHERE id = ?`, e.session)
		e.found(`session "` + e.session)
	})
	t.Run("a session deleted", func(t *testing.T) {
		e := newEdited(t)
		e.exec(`DELETE FROM sessions WHERE id = ?`, e.session)
		e.found(`session "` + e.session)
	})
	t.Run("a device made up", func(t *testing.T) {
		e := newEdited(t)
		e.exec(`INSERT INTO states (kind, key, seq, value) VALUES ('device', 'dev-x', 3, CAST('{}' AS BLOB))`)
		e.found(`device "dev-x"`)
	})
	t.Run("the active revision", func(t *testing.T) {
		e := newEdited(t)
		e.exec(`UPDATE states SET value = CAST(replace(CAST(value AS TEXT), '"source":"server init"', '"source":"nobody"') AS BLOB) WHERE kind = 'revision' AND key = 'active'`)
		e.found(`revision "active"`)
	})
}

// An event that was changed, swapped or deleted is named, and the auditor is not shown it in silence.
func TestAbuse_A50_edited_events(t *testing.T) {
	for name, statement := range map[string]string{
		"changed":                `UPDATE events SET body = CAST(substr(body, 1, length(body) - 1) || x'00' AS BLOB) WHERE idx = 5`,
		"given another subject":  `UPDATE events SET subject = 'spiffe://dev.bulla.test/workload' WHERE idx = 5`,
		"its leaf swapped":       `UPDATE events SET leaf = (SELECT leaf FROM events WHERE idx = 4) WHERE idx = 5`,
		"its body swapped":       `UPDATE events SET body = (SELECT body FROM events WHERE idx = 4) WHERE idx = 5`,
		"its id changed":         `UPDATE events SET id = x'0190aaaaaaaa7aaaaaaaaaaaaaaaaaaa' WHERE idx = 5`,
		"its place given away":   `UPDATE events SET idx = 9999 WHERE idx = 5`,
		"deleted, none in place": `DELETE FROM events WHERE idx = 5`,
	} {
		t.Run(name, func(t *testing.T) {
			e := newEdited(t)
			e.exec(statement)
			e.found("event 5")
			s, err := server.Open(t.Context(), e.Config, server.Options{DevelopmentKey: e.Authority.DeviceKeyPublic()})
			if err != nil {
				return // the log beside it does not know such a history
			}
			cut, cancel := context.WithCancel(t.Context())
			cancel()
			if err := s.Serve(cut); err != nil {
				t.Error(err)
			}
			e.Run()
			stream, err := bullav1.NewAuditClient(e.Client("auditor").Conn()).Tail(t.Context(), &bullav1.TailRequest{})
			for err == nil {
				_, err = stream.Recv()
			}
			code(t, err, codes.Unavailable, "")
		})
	}
}

// swap exchanges a column of the blobs of two secrets, by way of the old values that one statement sees.
func swap(e *edited, column string) {
	e.t.Helper()
	one, two := blobOf(e, "demo/one"), blobOf(e, "demo/two")
	e.exec(`UPDATE blobs SET `+column+` = old.v FROM (SELECT key AS k, `+column+` AS v FROM blobs) AS old WHERE old.k = iif(blobs.key = ?1, ?2, ?1) AND blobs.key IN (?1, ?2)`, one, two)
}

func blobOf(e *edited, name string) string { return "secret/" + field(e, name, "record_id") }

func digestOf(e *edited, name string) string { return field(e, name, "ciphertext_digest") }

// field is a field of the first version of a secret.
func field(e *edited, name, field string) (out string) {
	e.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(e.Config.DataDir, "ledger.db"))
	if err != nil {
		e.t.Fatal(err)
	}
	defer db.Close()
	err = db.QueryRowContext(e.t.Context(), `SELECT json_extract(CAST(value AS TEXT), '$.versions[0].'||?) FROM states WHERE kind = 'secret' AND key = ?`, field, name).Scan(&out)
	if err != nil {
		e.t.Fatal(err)
	}
	return out
}

// What proves something for a moment is stored nowhere: nonces, signatures of requests, the receipt's secret before it
// was handed in. What the ledger keeps of an envelope is its digest.
func TestAbuse_A57_only_hashes(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "hello")
	w := r.Raw("workload")
	nonces := [][]byte{bytes.Clone(w.Nonce[:])}
	ask, recipient := w.Ask("demo/hello")
	q := w.Sign(bullav1.Broker_Deliver_FullMethodName, ask)
	reply, err := w.Broker.Deliver(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	nonces = append(nonces, reply.GetNextNonce())
	o, err := envelope.Open(reply.GetEnvelope(), w.Keys.Lookup, recipient, envelope.Expectation{
		Request: q.GetProof().GetRequestId(), Issuer: rig.ID("bulla/broker").String(), Subject: w.ID, Instance: w.Name, Audience: w.ID,
		Channels: []envelope.Digest{envelope.Digest(w.Exporter)}, MinimumSuite: envelope.SuiteHybridP256(), Now: time.Now(), Skew: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	rec := receipt(t, w, o)
	x := exported(t, r)
	var bodies bytes.Buffer
	for _, record := range x.Records {
		bodies.Write(record.Encoding)
		bodies.WriteByte('\n')
	}
	look := func(what string, secret []byte) {
		forms := needles(secret)
		search(t, "the events ("+what+")", bodies.Bytes(), forms)
		searchTree(t, x.write(t), forms)
		searchTree(t, r.Config.DataDir, forms)
		search(t, "the log ("+what+")", []byte(r.Log.String()), forms)
	}
	for _, n := range nonces {
		look("nonce", n)
	}
	look("signature of a request", q.GetProof().GetSignature())
	look("r of a receipt", rec.GetR())
	search(t, "the events", bodies.Bytes(), map[string][]byte{"envelope": reply.GetEnvelope(), "envelope in base64": []byte(base64.StdEncoding.EncodeToString(reply.GetEnvelope())[:400])})
	if issued := of[event.SessionIssued](r.Events()); len(issued) != 1 || issued[0].EnvelopeDigest != event.Digest(o.Digest) {
		t.Errorf("recorded: %v", issued)
	}
	// With the receipt, r has done its work, and becomes the proof of the opening.
	if _, err := acknowledge(t, w, rec); err != nil {
		t.Fatal(err)
	}
	if got := of[event.SessionConfirmed](r.Events()); len(got) != 1 || !bytes.Equal(got[0].R, rec.GetR()) {
		t.Errorf("receipts: %v", got)
	}
}
