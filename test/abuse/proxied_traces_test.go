package abuse

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/keyring"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/secret/keys"
	"github.com/bulla-project/bulla/test/rig"
)

// Of a key nothing is found but its public half, and of what was encrypted, decrypted or MACed nothing at all, nor a
// hash by which it could be guessed: in no file of the broker, its log, events, export, answers or envelopes.
func TestAbuse_A24_keys(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	kinds := []string{"ecdsa-p256", "ed25519", "hmac-sha256", "aes-256-gcm"}
	for _, kind := range kinds {
		r.Generate("demo/"+kind, "standard", kind)
	}
	a := r.Assemble(rig.Parts{})
	w := r.Raw("workload")
	var said bytes.Buffer // all that the workload was told
	var secrets [][]byte
	secrets = append(secrets, []byte(canary), hashOf(canary))
	for _, kind := range kinds {
		name := "demo/" + kind
		raw := keyAtRest(t, r, a.Ledger, name)
		secrets = append(secrets, raw)
		w.Challenge(nil)
		in, recipient := w.Ask(name)
		req := w.Sign(bullav1.Broker_Deliver_FullMethodName, in)
		reply, err := w.Broker.Deliver(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		opened, err := envelope.Open(reply.GetEnvelope(), w.Keys.Lookup, recipient, envelope.Expectation{
			Request: req.GetProof().GetRequestId(), Issuer: rig.ID("bulla/broker").String(), Subject: w.ID, Instance: w.Name, Audience: w.ID,
			Channels: []envelope.Digest{envelope.Digest(w.Exporter)}, MinimumSuite: envelope.SuiteHybridP256(), Now: time.Now(), Skew: time.Minute,
		})
		if err != nil {
			t.Fatal(err)
		}
		said.Write(opened.Secret().Expose())
		said.WriteString(reply.String())
		s := &proxiedSession{w: w, reply: reply}
		switch kind {
		case "hmac-sha256":
			mac := mustOperate(t, s, keys.MAC, []byte(canary))
			secrets = append(secrets, mac.GetOutput()) // it may serve as a key
			check := s.ask(keys.VerifyMAC, []byte(canary))
			check.Signature = mac.GetOutput()
			if got, err := s.send(t, w, requestID(), check); err != nil || !got.GetAuthentic() {
				t.Fatal(err)
			}
		case "aes-256-gcm":
			sealed := mustOperate(t, s, keys.Encrypt, []byte(canary))
			said.WriteString(sealed.String())
			if got := mustOperate(t, s, keys.Decrypt, sealed.GetOutput()); string(got.GetOutput()) != canary {
				t.Fatalf("decrypted to %q", got.GetOutput())
			}
			_, err := s.send(t, w, requestID(), s.ask(keys.Sign, []byte(canary)))
			said.Write(errorText(err))
		default:
			said.WriteString(mustOperate(t, s, keys.Sign, []byte("public words")).String())
			_, err := s.send(t, w, requestID(), s.ask(keys.Encrypt, []byte(canary)))
			said.Write(errorText(err))
		}
	}
	x := exported(t, r)
	dir := x.write(t)
	r.Stop()
	for i, value := range secrets {
		forms := needles(value)
		forms["decimal"] = []byte(new(big.Int).SetBytes(value).String())
		search(t, fmt.Sprintf("secret %d: what the workload was told", i), said.Bytes(), forms)
		for j, rec := range x.Records {
			search(t, fmt.Sprintf("secret %d: event %d", i, j), rec.Encoding, forms)
		}
		searchTree(t, dir, forms)
		searchTree(t, r.Config.DataDir, forms)
		searchTree(t, r.Dir, forms)
		search(t, "the log", []byte(r.Log.String()), forms)
	}
	signed := hex.EncodeToString(hashOf("public words"))
	found := 0
	for _, rec := range x.Records {
		if bytes.Contains(rec.Encoding, []byte(`"object":"`+signed+`"`)) {
			found++
		}
	}
	if found != 2 {
		t.Errorf("%d events name the message that was signed, want 2", found)
	}
}

func hashOf(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return sum[:]
}

func mustOperate(t *testing.T, s *proxiedSession, operation keys.Operation, input []byte) *bullav1.OperateReply {
	t.Helper()
	reply, err := s.send(t, s.w, requestID(), s.ask(operation, input))
	if err != nil || !reply.GetAuthentic() {
		t.Fatalf("%s: %v", operation, err)
	}
	return reply
}

// keyAtRest opens a key as only the broker can, with the key-encryption key.
func keyAtRest(t *testing.T, r *rig.Rig, l *ledger.Ledger, name string) []byte {
	t.Helper()
	ring, err := keyring.OpenLocal(t.Context(), keyring.LocalConfig{Path: filepath.Join(r.Config.DataDir, "keyring"), KEKFile: r.Config.Keyring.KEKFile})
	if err != nil {
		t.Fatal(err)
	}
	row, _, err := l.Secret(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	v := row.Versions[0]
	sealed, err := l.Blob(t.Context(), ledger.SecretBlob(v.RecordID), v.CiphertextDigest)
	if err != nil {
		t.Fatal(err)
	}
	aad := keyring.SecretAAD{RecordID: v.RecordID.String(), Name: name, Version: 1, Class: v.Class, PolicyDigest: v.Policy, Owner: v.Owner, Type: v.Type}
	raw, err := ring.Open(keyring.PurposeSecret, sealed, aad.Bytes())
	if err != nil || len(raw) != keys.Size {
		t.Fatalf("open %s: %d bytes, %v", name, len(raw), err)
	}
	aad.Type = ""
	if _, err := ring.Open(keyring.PurposeSecret, sealed, aad.Bytes()); err == nil {
		t.Errorf("%s opens without its type", name)
	}
	return raw
}

// An edited row lets no key out: not as an opaque secret, not as a key of another type, not with another public key.
func TestAbuse_A50_edited_keys(t *testing.T) {
	for what, edit := range map[string][2]string{
		"opaque":             {`"type":"ecdsa-p256"`, `"public_key":"AAAA"`},
		"another type":       {`"type":"ecdsa-p256"`, `"type":"aes-256-gcm"`},
		"another public key": {`"public_key":"`, `"public_key":"AAAA`},
	} {
		t.Run(what, func(t *testing.T) {
			r := rig.Start(t, rig.Config{})
			r.Generate("demo/key", "standard", "ecdsa-p256")
			s := deliverProxied(t, r.Raw("workload"), "demo/key", 0)
			e := &edited{Rig: r, t: t}
			r.Stop()
			if what == "opaque" { // a row without either, which is one that a put would have made
				e.exec(`UPDATE states SET value = CAST(substr(CAST(value AS TEXT), 1, instr(CAST(value AS TEXT), ',"type":') - 1) || '}]}' AS BLOB) WHERE kind = 'secret' AND key = 'demo/key'`)
			} else {
				e.exec(`UPDATE states SET value = CAST(replace(CAST(value AS TEXT), ?, ?) AS BLOB) WHERE kind = 'secret' AND key = 'demo/key'`, edit[0], edit[1])
			}
			e.found(`secret "demo/key"`)
			e.withheld("demo/key", 0)
			if what == "another public key" {
				return // operations do without it
			}
			r.Run()
			w := r.RawWith("workload", s.w.Key)
			reply, err := s.send(t, w, requestID(), s.ask(keys.Sign, []byte("m")))
			if err == nil || len(reply.GetOutput()) > 0 {
				t.Error("it signs")
			}
		})
	}
}
