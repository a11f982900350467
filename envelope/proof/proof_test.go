package proof

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

var testNow = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

// svid makes a self-signed leaf for a key.
func svid(t testing.TB, key crypto.Signer, ids ...string) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: testNow.Add(-time.Minute), NotAfter: testNow.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	for _, id := range ids {
		tmpl.URIs = append(tmpl.URIs, must(url.Parse(id))(t))
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))(t)
	return must(x509.ParseCertificate(der))(t)
}

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	return must(ecdsa.GenerateKey(c, rand.Reader))(t)
}

// TestThumbprint: an independently computed thumbprint of the P-256 example key in RFC 7517, appendix A.1.
func TestThumbprint(t *testing.T) {
	point, err := hex.DecodeString("04" + "30a0424cd21c2944838a2d75c92b37e76ea20d9f00893a3b4eee8a3c0aafec3e" + "e04b65e92456d9888b52b379bdfbd51ee869ef1f0fc65b6659695b6cce081723")
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		t.Fatal(err)
	}
	const want = "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s"
	if got := Thumbprint(pub); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if Thumbprint(nil) != "" || Thumbprint(&ecKey(t, elliptic.P384()).PublicKey) != "" {
		t.Error("a key that is none has a thumbprint")
	}
}

func TestInstanceKeyHasOneEncoding(t *testing.T) {
	key := must(GenerateInstanceKey())(t)
	spki := must(MarshalInstanceKey(&key.PublicKey))(t)
	if got := must(ParseInstanceKey(spki))(t); !got.Equal(&key.PublicKey) || len(spki) != spkiSize {
		t.Fatalf("%d bytes do not come back", len(spki))
	}
	for i := range spki {
		for bit := range 8 {
			bad := bytes.Clone(spki)
			bad[i] ^= 1 << bit
			if got, err := ParseInstanceKey(bad); err == nil && got.Equal(&key.PublicKey) {
				t.Fatalf("bit %d of byte %d does not count", bit, i)
			}
		}
	}
	p384 := must(x509.MarshalPKIXPublicKey(&ecKey(t, elliptic.P384()).PublicKey))(t)
	edPub, _, _ := ed25519.GenerateKey(rand.Reader)
	ed := must(x509.MarshalPKIXPublicKey(edPub))(t)
	// The compressed point of the same key.
	compressed := append(bytes.Clone(spki[:len(spki)-65]), elliptic.MarshalCompressed(elliptic.P256(), key.X, key.Y)...)
	compressed[1] -= 32
	compressed[len(compressed)-35] -= 32
	for name, bad := range map[string][]byte{
		"nothing": nil, "short": spki[:90], "long": append(bytes.Clone(spki), 0), "P-384": p384, "Ed25519": ed, "compressed": compressed,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseInstanceKey(bad)
			wantErr(t, err, ErrKey)
		})
	}
	_, err := MarshalInstanceKey(&ecKey(t, elliptic.P384()).PublicKey)
	wantErr(t, err, ErrKey)
	_, err = MarshalInstanceKey(nil)
	wantErr(t, err, ErrKey)
	_, err = InstancePublic(ecKey(t, elliptic.P384()))
	wantErr(t, err, ErrKey)
}

// highS is a signer whose s is always in the upper half, as a TPM's may be.
type highS struct{ *ecdsa.PrivateKey }

func (k highS) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	raw, err := k.PrivateKey.Sign(rand.Reader, digest, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	low, err := rawLowS(raw)
	if err != nil {
		return nil, err
	}
	s := new(big.Int).Sub(elliptic.P256().Params().N, new(big.Int).SetBytes(low[32:]))
	return encodeASN1(low[:32], s.FillBytes(make([]byte, 32))), nil
}

func encodeASN1(r, s []byte) []byte {
	var body []byte
	for _, v := range [][]byte{r, s} {
		v = bytes.TrimLeft(v, "\x00")
		if len(v) == 0 || v[0] >= 0x80 {
			v = append([]byte{0}, v...)
		}
		body = append(append(body, 2, byte(len(v))), v...)
	}
	return append([]byte{0x30, byte(len(body))}, body...)
}

func TestES256IsNotMalleable(t *testing.T) {
	half := new(big.Int).Rsh(elliptic.P256().Params().N, 1)
	if new(big.Int).SetBytes(halfOrder[:]).Cmp(half) != 0 {
		t.Fatal("halfOrder is not (n-1)/2")
	}
	key := ecKey(t, elliptic.P256())
	msg := []byte("message")
	for _, signer := range []crypto.Signer{key, highS{key}} {
		for range 8 {
			sig := must(SignES256(signer, msg))(t)
			if err := VerifyES256(&key.PublicKey, msg, sig); err != nil {
				t.Fatal(err)
			}
			s := new(big.Int).SetBytes(sig[32:])
			other := append(bytes.Clone(sig[:32]), new(big.Int).Sub(elliptic.P256().Params().N, s).FillBytes(make([]byte, 32))...)
			digest := sha256.Sum256(msg)
			if !ecdsa.Verify(&key.PublicKey, digest[:], new(big.Int).SetBytes(other[:32]), new(big.Int).SetBytes(other[32:])) {
				t.Fatal("the test's other signature is not valid ECDSA")
			}
			wantErr(t, VerifyES256(&key.PublicKey, msg, other), ErrSignature)
		}
	}
	sig := must(SignES256(key, msg))(t)
	zero := make([]byte, 64)
	for name, bad := range map[string][]byte{
		"nothing": nil, "short": sig[:63], "long": append(bytes.Clone(sig), 0), "zero": zero,
		"zero s": append(bytes.Clone(sig[:32]), zero[:32]...), "zero r": append(bytes.Clone(zero[:32]), sig[32:]...),
		"ASN.1": encodeASN1(sig[:32], sig[32:]),
	} {
		t.Run(name, func(t *testing.T) { wantErr(t, VerifyES256(&key.PublicKey, msg, bad), ErrSignature) })
	}
	wantErr(t, VerifyES256(&key.PublicKey, []byte("other"), sig), ErrSignature)
	wantErr(t, VerifyES256(nil, msg, sig), ErrSignature)
	wantErr(t, VerifyES256(&ecKey(t, elliptic.P384()).PublicKey, msg, sig), ErrSignature)
	if _, err := SignES256(ecKey(t, elliptic.P384()), msg); err == nil {
		t.Error("signed with P-384")
	}
}

// badSigner answers with what it is told.
type badSigner struct {
	*ecdsa.PrivateKey
	answer []byte
}

func (k badSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return k.answer, nil }

func TestSignES256RefusesOddAnswers(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	n := elliptic.P256().Params().N.Bytes()
	one := []byte{1}
	for name, answer := range map[string][]byte{
		"nothing": nil, "garbage": []byte("garbage"), "r is n": encodeASN1(n, one), "s is n": encodeASN1(one, n),
		"s is 0": encodeASN1(one, nil), "trailing": append(encodeASN1(one, one), 0), "negative": {0x30, 6, 2, 1, 0xff, 2, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			if sig, err := SignES256(badSigner{key, answer}, []byte("m")); err == nil {
				t.Fatalf("returned %x", sig)
			}
		})
	}
}

func testRequest() Request {
	return Request{
		Method: "/bulla.v1.Workload/Deliver", Nonce: sha256.Sum256([]byte("nonce")), Exporter: sha256.Sum256([]byte("exporter")),
		RequestID: "req_01", PayloadSHA256: sha256.Sum256([]byte("payload")),
	}
}

// Every field of a request counts, and so do the borders between them (A06, A12).
func TestRequestProof(t *testing.T) {
	key := must(GenerateInstanceKey())(t)
	sig := must(SignRequest(key, testRequest()))(t)
	if err := VerifyRequest(&key.PublicKey, testRequest(), sig); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Request){
		"method":      func(r *Request) { r.Method = "/bulla.v1.Workload/Acknowledge" },
		"no method":   func(r *Request) { r.Method = "" },
		"long method": func(r *Request) { r.Method = strings.Repeat("a", MaxMethod+1) },
		"nonce":       func(r *Request) { r.Nonce[31] ^= 1 },
		"no nonce":    func(r *Request) { r.Nonce = [32]byte{} },
		"exporter":    func(r *Request) { r.Exporter[0] ^= 1 },
		"no exporter": func(r *Request) { r.Exporter = [32]byte{} },
		"request id":  func(r *Request) { r.RequestID = "req_02" },
		"long id":     func(r *Request) { r.RequestID = strings.Repeat("a", MaxRequestID+1) },
		"payload":     func(r *Request) { r.PayloadSHA256[0] ^= 1 },
	} {
		t.Run(name, func(t *testing.T) {
			r := testRequest()
			change(&r)
			wantErr(t, VerifyRequest(&key.PublicKey, r, sig), ErrSignature)
		})
	}
	t.Run("sibling", func(t *testing.T) {
		wantErr(t, VerifyRequest(&must(GenerateInstanceKey())(t).PublicKey, testRequest(), sig), ErrSignature)
	})
	t.Run("incomplete request is not signed", func(t *testing.T) {
		if _, err := SignRequest(key, Request{Method: "/x"}); err == nil {
			t.Fatal("signed")
		}
	})
	t.Run("each byte of the signature", func(t *testing.T) {
		for i := range sig {
			bad := bytes.Clone(sig)
			bad[i] ^= 1
			wantErr(t, VerifyRequest(&key.PublicKey, testRequest(), bad), ErrSignature)
		}
	})
}

// TestStatementIsUnambiguous: fields can't be cut differently, and labels keep purposes apart.
func TestStatementIsUnambiguous(t *testing.T) {
	b := func(s string) []byte { return []byte(s) }
	all := [][]byte{
		Statement("l"), Statement("l", nil), Statement("l", nil, nil), Statement("l", b("ab")), Statement("l", b("a"), b("b")),
		Statement("l", b(""), b("ab")), Statement("l", b("ab"), b("")), Statement("la", b("b")), Statement("lab"),
		Statement("l", b("\x00\x00\x00\x01b")),
	}
	for i, x := range all {
		for j, y := range all {
			if i != j && bytes.Equal(x, y) {
				t.Errorf("statements %d and %d are equal: %q", i, j, x)
			}
		}
	}
	if got, want := Statement("l", b("ab")), b("l\x00\x00\x00\x00\x02ab"); !bytes.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

const workload = "spiffe://dev.bulla.test/workload"

func svidKeys(t testing.TB) map[string]crypto.Signer {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]crypto.Signer{
		"P-256": ecKey(t, elliptic.P256()), "P-384": ecKey(t, elliptic.P384()), "Ed25519": ed, "RSA-2048": must(rsa.GenerateKey(rand.Reader, 2048))(t),
	}
}

func TestBinding(t *testing.T) {
	instance := must(GenerateInstanceKey())(t)
	for name, key := range svidKeys(t) {
		t.Run(name, func(t *testing.T) {
			leaf := svid(t, key, workload)
			end := testNow.Add(10*time.Minute + 300*time.Millisecond)
			enc := must(SignBinding(key, leaf, &instance.PublicKey, end))(t)
			b := must(VerifyBinding(enc, leaf, testNow))(t)
			if b.SPIFFEID != workload || !b.InstanceKey.Equal(&instance.PublicKey) || !b.NotAfter.Equal(end.Truncate(time.Second)) || b.LeafSHA256 != sha256.Sum256(leaf.Raw) {
				t.Fatalf("got %+v", b)
			}
			if len(enc) > MaxBinding {
				t.Errorf("%d bytes", len(enc))
			}
			if p := must(ParseBinding(enc))(t); !p.InstanceKey.Equal(b.InstanceKey) || p.SPIFFEID != b.SPIFFEID {
				t.Error("ParseBinding and VerifyBinding disagree")
			}
			for i := range enc {
				bad := bytes.Clone(enc)
				for _, mask := range []byte{0x01, 0x80} {
					bad[i] = enc[i] ^ mask
					if _, err := VerifyBinding(bad, leaf, testNow); err == nil {
						t.Fatalf("byte %d changed by %#x, and it verifies", i, mask)
					}
				}
				if _, err := VerifyBinding(slices.Delete(bytes.Clone(enc), i, i+1), leaf, testNow); err == nil {
					t.Fatalf("byte %d left out, and it verifies", i)
				}
			}
			if _, err := VerifyBinding(append(bytes.Clone(enc), 0), leaf, testNow); err == nil {
				t.Fatal("trailing byte accepted")
			}
		})
	}
}

func TestBindingRefuses(t *testing.T) {
	instance := must(GenerateInstanceKey())(t)
	key := ecKey(t, elliptic.P256())
	leaf := svid(t, key, workload)
	enc := must(SignBinding(key, leaf, &instance.PublicKey, testNow.Add(time.Minute)))(t)

	t.Run("ended", func(t *testing.T) {
		_, err := VerifyBinding(enc, leaf, testNow.Add(time.Minute))
		wantErr(t, err, ErrBindingExpired)
	})
	t.Run("another certificate of the same key and identity", func(t *testing.T) {
		other := svid(t, key, workload)
		if bytes.Equal(other.Raw, leaf.Raw) {
			t.Fatal("the test made the same certificate")
		}
		_, err := VerifyBinding(enc, other, testNow)
		wantErr(t, err, ErrBindingMismatch)
	})
	t.Run("not longer than the certificate", func(t *testing.T) {
		enc := must(SignBinding(key, leaf, &instance.PublicKey, leaf.NotAfter.Add(time.Hour)))(t)
		if b := must(VerifyBinding(enc, leaf, testNow))(t); !b.NotAfter.Equal(leaf.NotAfter) {
			t.Fatalf("ends %v, the certificate %v", b.NotAfter, leaf.NotAfter)
		}
		long := forge(t, key, Binding{SPIFFEID: workload, LeafSHA256: sha256.Sum256(leaf.Raw), InstanceKey: &instance.PublicKey, NotAfter: leaf.NotAfter.Add(time.Second)})
		_, err := VerifyBinding(long, leaf, testNow)
		wantErr(t, err, ErrBindingExpired)
	})
	t.Run("another identity", func(t *testing.T) {
		bad := forge(t, key, Binding{SPIFFEID: workload + "2", LeafSHA256: sha256.Sum256(leaf.Raw), InstanceKey: &instance.PublicKey, NotAfter: testNow.Add(time.Minute)})
		_, err := VerifyBinding(bad, leaf, testNow)
		wantErr(t, err, ErrBindingMismatch)
	})
	t.Run("signed by another key", func(t *testing.T) {
		bad := forge(t, instance, Binding{SPIFFEID: workload, LeafSHA256: sha256.Sum256(leaf.Raw), InstanceKey: &instance.PublicKey, NotAfter: testNow.Add(time.Minute)})
		_, err := VerifyBinding(bad, leaf, testNow)
		wantErr(t, err, ErrSignature)
	})
	t.Run("SVID key as instance key", func(t *testing.T) {
		_, err := SignBinding(key, leaf, &key.PublicKey, testNow.Add(time.Minute))
		wantErr(t, err, ErrBindingMismatch)
		bad := forge(t, key, Binding{SPIFFEID: workload, LeafSHA256: sha256.Sum256(leaf.Raw), InstanceKey: &key.PublicKey, NotAfter: testNow.Add(time.Minute)})
		_, err = VerifyBinding(bad, leaf, testNow)
		wantErr(t, err, ErrBindingMismatch)
	})
	t.Run("two or no or foreign URIs", func(t *testing.T) {
		for _, ids := range [][]string{{workload, workload + "2"}, {}, {"https://dev.bulla.test/workload"}} {
			leaf := svid(t, key, ids...)
			_, err := SignBinding(key, leaf, &instance.PublicKey, testNow.Add(time.Minute))
			wantErr(t, err, ErrBindingMismatch)
			_, err = VerifyBinding(enc, leaf, testNow)
			wantErr(t, err, ErrBindingMismatch)
		}
	})
	t.Run("private key of another certificate", func(t *testing.T) {
		if _, err := SignBinding(ecKey(t, elliptic.P256()), leaf, &instance.PublicKey, testNow.Add(time.Minute)); err == nil {
			t.Fatal("signed")
		}
	})
	t.Run("keys that are too weak or of other kinds", func(t *testing.T) {
		weak := ecKey(t, elliptic.P521())
		leaf := svid(t, weak, workload)
		if _, err := SignBinding(weak, leaf, &instance.PublicKey, testNow.Add(time.Minute)); err == nil {
			t.Fatal("signed with P-521")
		}
		large := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), maxRSABits), E: 65537}
		small := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), minRSABits-2), E: 65537}
		for _, pub := range []*rsa.PublicKey{large, small} {
			if err := verifySVID(pub, []byte("m"), make([]byte, 256)); err == nil || errors.Is(err, ErrSignature) {
				t.Fatalf("RSA key of %d bits is tried: %v", pub.N.BitLen(), err)
			}
		}
	})
	t.Run("forms", func(t *testing.T) {
		for _, bad := range [][]byte{nil, []byte(LabelBinding), append([]byte("bulla-request/v1"), 0), make([]byte, MaxBinding+1)} {
			_, err := VerifyBinding(bad, leaf, testNow)
			wantErr(t, err, ErrBindingMalformed)
		}
	})
}

// TestBindingIsNoOtherSignature: what an SVID key signs here never starts like what it signs elsewhere.
func TestBindingIsNoOtherSignature(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	instance := must(GenerateInstanceKey())(t)
	enc := must(SignBinding(key, svid(t, key, workload), &instance.PublicKey, testNow.Add(time.Minute)))(t)
	for what, start := range map[string]string{
		"TLS 1.3 CertificateVerify": strings.Repeat(" ", 64), "JWS": "ey", "certificate": "\x30",
		"request proof": LabelRequest, "receipt": "bulla-receipt/v1",
	} {
		if strings.HasPrefix(string(enc), start[:min(len(start), 14)]) {
			t.Errorf("a binding starts like a %s", what)
		}
	}
}

// forge makes the encoding of any binding, as the holder of key could.
func forge(t testing.TB, key crypto.Signer, b Binding) []byte {
	t.Helper()
	msg := must(b.statement())(t)
	sig := must(signSVID(key, msg))(t)
	return append(binary.BigEndian.AppendUint32(msg, uint32(len(sig))), sig...)
}

func FuzzBinding(f *testing.F) {
	key := ecKey(f, elliptic.P256())
	leaf := svid(f, key, workload)
	instance := must(GenerateInstanceKey())(f)
	good := must(SignBinding(key, leaf, &instance.PublicKey, testNow.Add(time.Minute)))(f)
	f.Add(good)
	f.Add([]byte(LabelBinding + "\x00\x00\x00\x00\x00"))
	f.Add([]byte(LabelBinding + "\x00\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, enc []byte) {
		b, msg, sig, err := parseBinding(enc)
		if err == nil {
			again := append(binary.BigEndian.AppendUint32(must(b.statement())(t), uint32(len(sig))), sig...)
			if !bytes.Equal(again, enc) || !bytes.HasPrefix(enc, msg) {
				t.Fatal("accepted, but written differently")
			}
		}
		if _, err := VerifyBinding(enc, leaf, testNow); err == nil && !bytes.HasPrefix(enc, good[:100]) {
			t.Fatal("a forged binding verifies")
		}
	})
}

func FuzzInstanceKey(f *testing.F) {
	f.Add(must(MarshalInstanceKey(&must(GenerateInstanceKey())(f).PublicKey))(f))
	f.Add([]byte{0x30, 0x59})
	f.Fuzz(func(t *testing.T, spki []byte) {
		pub, err := ParseInstanceKey(spki)
		if err != nil {
			return
		}
		if again := must(MarshalInstanceKey(pub))(t); !bytes.Equal(again, spki) {
			t.Fatal("accepted, but written differently")
		}
	})
}
