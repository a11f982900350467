package envelope

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/test/xtest"
)

// TestGoJoseVerifies: a general JOSE library takes our JWS, our JWKS and our JWE's form.
func TestGoJoseVerifies(t *testing.T) {
	forSuites(t, func(t *testing.T, s Suite) {
		sc := newScene(t, s)
		sealed := sc.seal(t)
		var set jose.JSONWebKeySet
		if err := json.Unmarshal(must(json.Marshal(sc.keys))(t), &set); err != nil {
			t.Fatal(err)
		}
		sig := must(jose.ParseSignedCompact(string(sealed.Bytes), []jose.SignatureAlgorithm{jose.ES256}))(t)
		head := sig.Signatures[0].Protected
		payload := must(sig.Verify(set.Key(head.KeyID)[0]))(t)
		if head.ExtraHeaders[jose.HeaderType] != Type {
			t.Errorf("typ is %v", head.ExtraHeaders[jose.HeaderType])
		}
		jwe := must(jose.ParseEncryptedJSON(string(payload), []jose.KeyAlgorithm{jose.KeyAlgorithm(s.String())}, []jose.ContentEncryption{jose.A256GCM}))(t)
		c := must(ParseContext(jwe.GetAuthData()))(t)
		if c.ReceiptLock != sealed.Context.ReceiptLock {
			t.Error("go-jose finds another context")
		}
	})
}

// TestGoJoseSigns: what go-jose signs with the same key and payload, we verify, when its s is in the lower half.
func TestGoJoseSigns(t *testing.T) {
	sc := newScene(t, SuiteP256())
	p, _, _, err := parse(sc.seal(t).Bytes)
	if err != nil {
		t.Fatal(err)
	}
	opts := (&jose.SignerOptions{}).WithType(Type).WithHeader("kid", sc.signer.kid)
	signer := must(jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: sc.signer.key}, opts))(t)
	for range 64 { // each time it is in the lower half with probability 1/2
		jws := must(must(signer.Sign(p.payload()))(t).CompactSerialize())(t)
		if _, err := sc.open([]byte(jws)); err == nil {
			return
		}
	}
	t.Fatal("none of 64 opened")
}

// TestPythonOpens: an implementation that shares no line with this one opens our envelopes.
func TestPythonOpens(t *testing.T) {
	xtest.Need(t, "python3")
	if exec.Command("python3", "-c", "from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey").Run() != nil {
		// An oracle that no Debian release packages yet, so test/run can't install it: used where it is there.
		t.Skip("needs the Python package cryptography 48 or later")
	}
	for _, s := range []Suite{SuiteHybridX25519(), SuiteP256()} { // the package has no MLKEM768-P256
		t.Run(s.String(), func(t *testing.T) {
			sc := newScene(t, s)
			sealed := sc.seal(t)
			point := must(sc.signer.pub.Bytes())(t)
			in := must(json.Marshal(map[string]string{
				"jws": string(sealed.Bytes), "x": b64.EncodeToString(point[1:33]), "y": b64.EncodeToString(point[33:]),
				"private": b64.EncodeToString(must(sc.recipient.key.Bytes())(t)),
			}))(t)
			cmd := exec.Command("python3", filepath.Join("testdata", "open.py"))
			var stderr bytes.Buffer
			cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, stderr.String())
			}
			var got struct{ Secret, R, Context string }
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(bin(t, got.Secret), sc.input.Secret.Expose()) {
				t.Error("another secret")
			}
			if DigestOf(bin(t, got.R)) != sealed.Context.ReceiptLock {
				t.Error("another r")
			}
			if c := must(ParseContext([]byte(got.Context)))(t); c.Session != sealed.Context.Session {
				t.Error("another context")
			}
		})
	}
}
