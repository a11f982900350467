package envelope

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"testing"
	"time"
)

// againstPrimitives measures ours and the primitives it can't avoid in turn, and reports the ratio.
func againstPrimitives(b *testing.B, ours, primitives func()) {
	var a, p time.Duration
	b.ReportAllocs()
	for b.Loop() {
		t0 := time.Now()
		ours()
		t1 := time.Now()
		primitives()
		a, p = a+t1.Sub(t0), p+time.Since(t1)
	}
	b.ReportMetric(float64(a.Nanoseconds())/float64(b.N), "ours-ns")
	b.ReportMetric(float64(p.Nanoseconds())/float64(b.N), "primitives-ns")
	b.ReportMetric(float64(a)/float64(p), "ratio")
}

func BenchmarkSeal(b *testing.B) {
	for _, s := range Suites() {
		b.Run(s.String(), func(b *testing.B) {
			sc := newScene(b, s)
			seal := func() { sc.seal(b) }
			b.Run("alone", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					seal()
				}
			})
			b.Run("ratio", func(b *testing.B) { againstPrimitives(b, seal, func() { sealPrimitives(b, sc) }) })
		})
	}
}

// sealPrimitives is an encapsulation with a sealed content key, one AES-GCM and one ES256 signature.
func sealPrimitives(b *testing.B, sc *scene) {
	suite, pub := sc.input.Recipient.suite, sc.input.Recipient.key
	cek := make([]byte, cekLen)
	_, sender, err := hpke.NewSender(pub, suite.p.kdf, suite.p.aead, cek)
	if err != nil {
		b.Fatal(err)
	}
	must(sender.Seal(nil, cek))(b)
	aead := must(contentAEAD(cek))(b)
	aead.Seal(nil, nil, sc.input.Secret.Expose(), nil)
	digest := sha256.Sum256(cek)
	must(sc.signer.key.Sign(rand.Reader, digest[:], crypto.SHA256))(b)
}

func BenchmarkOpen(b *testing.B) {
	for _, s := range Suites() {
		b.Run(s.String(), func(b *testing.B) {
			sc := newScene(b, s)
			jws := sc.seal(b).Bytes
			open := func() { must(sc.open(jws))(b) }
			b.Run("alone", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					open()
				}
			})
			p, input, _, err := parse(jws)
			if err != nil {
				b.Fatal(err)
			}
			digest := sha256.Sum256(input)
			sig := must(sc.signer.key.Sign(rand.Reader, digest[:], crypto.SHA256))(b)
			extra := sha256.Sum256(p.aad)
			b.Run("ratio", func(b *testing.B) {
				againstPrimitives(b, open, func() {
					if !ecdsa.VerifyASN1(sc.signer.pub, digest[:], sig) {
						b.Fatal("signature")
					}
					must(p.decrypt(sc.recipient.key, s.p.protected, extra[:]))(b)
				})
			})
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	sc := newScene(b, SuiteHybridX25519())
	jws := sc.seal(b).Bytes
	b.ReportAllocs()
	for b.Loop() {
		must(Verify(jws, sc.keys.Lookup))(b)
	}
}

func BenchmarkReceipt(b *testing.B) {
	sc := newScene(b, SuiteHybridX25519())
	sealed := sc.seal(b)
	o := must(sc.open(sealed.Bytes))(b)
	r := must(SignReceipt(o, sc.instance))(b)
	want := ReceiptExpectation{sealed.Context.Session, sealed.Digest, sealed.Context.ReceiptLock, &sc.instance.PublicKey}
	b.Run("sign", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			must(SignReceipt(o, sc.instance))(b)
		}
	})
	b.Run("verify", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := VerifyReceipt(r, want); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkContext(b *testing.B) {
	c := sealedContext(b)
	enc := must(c.encode())(b)
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			must(c.encode())(b)
		}
	})
	b.Run("parse", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			must(ParseContext(enc))(b)
		}
	})
}

func BenchmarkGenerateRecipient(b *testing.B) {
	for _, s := range Suites() {
		b.Run(s.String(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				must(GenerateRecipient(s))(b)
			}
		})
	}
}
