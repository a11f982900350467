package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/rego"
)

// primitives is the CPU time of what a delivery can't do without, per operation.
type primitives struct {
	verify   time.Duration // one ES256 verification
	sign     time.Duration // one ES256 signature
	seal     time.Duration // one hybrid HPKE seal of 32 bytes, MLKEM768-X25519, with key parsing
	evaluate time.Duration // one decision of the shipped policy
	append   time.Duration // one durable append of 4 KiB to a file, at 64 callers with group commit
	fsync    time.Duration // wall clock of one write and fsync
}

// useFloor is the sum that a gated use is compared with.
func (p primitives) useFloor(call time.Duration) time.Duration {
	return call + p.verify + p.evaluate + p.append
}

// floor is the sum that the broker is compared with: two bare calls and the primitives of one delivery.
func (p primitives) floor(call time.Duration) time.Duration {
	return 2*call + 2*p.verify + p.evaluate + p.seal + p.sign + 2*p.append
}

func measurePrimitives(ctx context.Context, path string) (p primitives, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return p, err
	}
	digest := sha256.Sum256([]byte("bench"))
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		return p, err
	}
	p.verify = perOperation(2000, func() { ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature) })
	p.sign = perOperation(2000, func() { _, err = ecdsa.SignASN1(rand.Reader, key, digest[:]) })
	if err != nil {
		return p, err
	}
	recipient, err := envelope.GenerateRecipient(envelope.SuiteHybridX25519())
	if err != nil {
		return p, err
	}
	public := recipient.PublicKey()
	p.seal = perOperation(500, func() {
		var pk hpke.PublicKey
		if pk, err = hpke.MLKEM768X25519().NewPublicKey(public); err == nil {
			_, err = hpke.Seal(pk, hpke.SHAKE256(), hpke.AES256GCM(), digest[:], make([]byte, 32))
		}
	})
	if err != nil {
		return p, err
	}
	if p.evaluate, err = evaluation(ctx); err != nil {
		return p, err
	}
	return p, appends(path, &p)
}

// evaluation measures one decision, engine and input included.
func evaluation(ctx context.Context) (time.Duration, error) {
	archive, err := policy.Pack(rego.Development())
	if err != nil {
		return 0, err
	}
	revision, err := policy.Load(ctx, archive, policy.Invariants{})
	if err != nil {
		return 0, err
	}
	engine := policy.NewEngine(policy.Config{})
	defer engine.Close()
	const id = "spiffe://dev.bulla.test/workload"
	now := time.Now()
	signals := policy.Signals{
		Now: now.UnixMicro(), Action: policy.ActionDeliver,
		Principal: policy.Principal{
			ID: id, TrustDomain: "dev.bulla.test", Path: "/workload", Type: policy.TypeService, Level: policy.LevelBasic,
			NotBefore: now.Add(-time.Minute).UnixMicro(), NotAfter: now.Add(time.Hour).UnixMicro(),
		},
		Resource:  policy.Resource{Kind: policy.KindSecret, Secret: &policy.Secret{Name: benchSecret, Exists: true, Class: "standard", Version: 1, Exposure: "open"}},
		Network:   policy.Network{Peer: "127.0.0.1:1", TLSGroup: "X25519MLKEM768", PostQuantum: true},
		Recipient: &policy.Recipient{Suite: int64(envelope.SuiteHybridX25519().Number())}, History: &policy.History{},
	}
	var last policy.Decision
	cost := perOperation(3000, func() { last = engine.Decide(ctx, revision, signals) })
	if last.Effect != policy.Permit {
		return 0, errors.New("the shipped policy does not permit the delivery that is measured: " + last.Fault)
	}
	return cost, nil
}

// appends measures durable appends to a bare file: alone for the wall clock, and shared by 64 callers for
// the CPU.
func appends(path string, p *primitives) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	record := bytes.Repeat([]byte{1}, 4096)
	start := time.Now()
	const alone = 200
	for range alone {
		if _, err := f.Write(record); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	p.fsync = time.Since(start) / alone
	const callers, rounds = 64, 100
	before := cpuOfSelf()
	for range rounds {
		var wg sync.WaitGroup
		var mu sync.Mutex
		for range callers {
			wg.Go(func() {
				mu.Lock()
				defer mu.Unlock()
				_, err = f.Write(record)
			})
		}
		wg.Wait()
		if err := errors.Join(err, f.Sync()); err != nil {
			return err
		}
	}
	p.append = (cpuOfSelf() - before) / (callers * rounds)
	return nil
}

// perOperation is the CPU time of f, after a few calls to warm up.
func perOperation(n int, f func()) time.Duration {
	for range n / 10 {
		f()
	}
	before := cpuOfSelf()
	for range n {
		f()
	}
	return (cpuOfSelf() - before) / time.Duration(n)
}

func cpuOfSelf() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
