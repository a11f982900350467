package proof

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"testing"
	"time"
)

// againstPrimitive measures ours and the bare primitive in turn, and reports the ratio.
func againstPrimitive(b *testing.B, ours, primitive func()) {
	var a, p time.Duration
	b.ReportAllocs()
	for b.Loop() {
		t0 := time.Now()
		ours()
		t1 := time.Now()
		primitive()
		a, p = a+t1.Sub(t0), p+time.Since(t1)
	}
	b.ReportMetric(float64(a.Nanoseconds())/float64(b.N), "ours-ns")
	b.ReportMetric(float64(p.Nanoseconds())/float64(b.N), "primitive-ns")
	b.ReportMetric(float64(a)/float64(p), "ratio")
}

func BenchmarkRequest(b *testing.B) {
	key := must(GenerateInstanceKey())(b)
	sig := must(SignRequest(key, testRequest()))(b)
	digest := sha256.Sum256([]byte("m"))
	der := must(key.Sign(rand.Reader, digest[:], crypto.SHA256))(b)
	b.Run("sign", func(b *testing.B) {
		againstPrimitive(b, func() { must(SignRequest(key, testRequest()))(b) },
			func() { must(key.Sign(rand.Reader, digest[:], crypto.SHA256))(b) })
	})
	b.Run("verify", func(b *testing.B) {
		againstPrimitive(b, func() {
			if err := VerifyRequest(&key.PublicKey, testRequest(), sig); err != nil {
				b.Fatal(err)
			}
		}, func() {
			if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], der) {
				b.Fatal("signature")
			}
		})
	})
}

func BenchmarkVerifyBinding(b *testing.B) {
	instance := must(GenerateInstanceKey())(b)
	key := ecKey(b, elliptic.P256())
	leaf := svid(b, key, workload)
	enc := must(SignBinding(key, leaf, &instance.PublicKey, testNow.Add(time.Minute)))(b)
	b.ReportAllocs()
	for b.Loop() {
		must(VerifyBinding(enc, leaf, testNow))(b)
	}
}

func BenchmarkThumbprint(b *testing.B) {
	key := must(GenerateInstanceKey())(b)
	b.ReportAllocs()
	for b.Loop() {
		Thumbprint(&key.PublicKey)
	}
}
