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

// work is what a delivery can't do without, each part by itself. Its methods are safe for concurrent use.
type work struct {
	key       *ecdsa.PrivateKey
	digest    [32]byte
	signature []byte
	recipient []byte
	engine    *policy.Engine
	revision  *policy.Revision
	signals   policy.Signals
	journal   *journal
}

func newWork(ctx context.Context, path string) (*work, error) {
	w := &work{digest: sha256.Sum256([]byte("bench")), engine: policy.NewEngine(policy.Config{})}
	var err error
	if w.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	if w.signature, err = ecdsa.SignASN1(rand.Reader, w.key, w.digest[:]); err != nil {
		return nil, err
	}
	recipient, err := envelope.GenerateRecipient(envelope.SuiteHybridX25519())
	if err != nil {
		return nil, err
	}
	w.recipient = recipient.PublicKey()
	archive, err := policy.Pack(rego.Development())
	if err != nil {
		return nil, err
	}
	if w.revision, err = policy.Load(ctx, archive, policy.Invariants{}); err != nil {
		return nil, err
	}
	w.signals = delivery(time.Now())
	w.journal, err = newJournal(path)
	return w, err
}

// delivery is what the policy is asked about.
func delivery(now time.Time) policy.Signals {
	return policy.Signals{
		Now: now.UnixMicro(), Action: policy.ActionDeliver,
		Principal: policy.Principal{
			ID: "spiffe://dev.bulla.test/workload", TrustDomain: "dev.bulla.test", Path: "/workload", Type: policy.TypeService, Level: policy.LevelBasic,
			NotBefore: now.Add(-time.Minute).UnixMicro(), NotAfter: now.Add(time.Hour).UnixMicro(),
		},
		Resource:  policy.Resource{Kind: policy.KindSecret, Secret: &policy.Secret{Name: benchSecret, Exists: true, Class: "standard", Version: 1, Exposure: "open"}},
		Network:   policy.Network{Peer: "127.0.0.1:1", TLSGroup: "X25519MLKEM768", PostQuantum: true},
		Recipient: &policy.Recipient{Suite: int64(envelope.SuiteHybridX25519().Number())}, History: &policy.History{},
	}
}

// verify is one ES256 verification.
func (w *work) verify() error {
	if !ecdsa.VerifyASN1(&w.key.PublicKey, w.digest[:], w.signature) {
		return errors.New("a signature does not verify")
	}
	return nil
}

// sign is one ES256 signature.
func (w *work) sign() error {
	_, err := ecdsa.SignASN1(rand.Reader, w.key, w.digest[:])
	return err
}

// seal is one hybrid HPKE seal of 32 bytes, MLKEM768-X25519, with key parsing.
func (w *work) seal() error {
	pk, err := hpke.MLKEM768X25519().NewPublicKey(w.recipient)
	if err != nil {
		return err
	}
	_, err = hpke.Seal(pk, hpke.SHAKE256(), hpke.AES256GCM(), w.digest[:], make([]byte, 32))
	return err
}

// evaluate is one decision of the shipped policy, engine and input included.
func (w *work) evaluate() error {
	if d := w.engine.Decide(context.Background(), w.revision, w.signals); d.Effect != policy.Permit {
		return errors.New("the shipped policy does not permit the delivery that is measured: " + d.Fault)
	}
	return nil
}

// append is one durable append of 4 KiB to a file, with group commit.
func (w *work) append() error { return w.journal.append(make([]byte, recordSize)) }

// use, deliver and receive are the calls of which the broker's are made, with nothing else in them.
func (w *work) use() error { return first(w.verify, w.evaluate, w.append) }

func (w *work) deliver() error { return first(w.verify, w.evaluate, w.seal, w.sign, w.append) }

func (w *work) receive() error { return first(w.verify, w.append) }

// first runs the steps until one of them fails.
func first(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

const recordSize = 4096

// journal is a file that is appended to in groups: whoever begins a group writes and syncs it when the one before is
// durable.
type journal struct {
	file *os.File
	turn sync.Mutex // held by the one that writes

	mu  sync.Mutex // guards cur
	cur *group
}

type group struct {
	data []byte
	done chan struct{}
	err  error // set before done is closed
}

func newJournal(path string) (*journal, error) {
	f, err := os.Create(path)
	return &journal{file: f}, err
}

func (j *journal) append(record []byte) error {
	j.mu.Lock()
	g := j.cur
	begins := g == nil
	if begins {
		g = &group{done: make(chan struct{})}
		j.cur = g
	}
	g.data = append(g.data, record...)
	j.mu.Unlock()
	if !begins {
		<-g.done
		return g.err
	}
	j.turn.Lock()
	defer j.turn.Unlock()
	j.mu.Lock()
	j.cur = nil
	j.mu.Unlock()
	_, err := j.file.Write(g.data)
	g.err = errors.Join(err, j.file.Sync())
	close(g.done)
	return g.err
}

// primitives is the CPU time of each part of work, alone and over and over.
type primitives struct {
	verify, sign, seal, evaluate time.Duration
	append, transact             time.Duration // of 64 at once
	fsync                        time.Duration // wall clock of one write and fsync
}

// useFloor is the sum that a gated use is compared with.
func (p primitives) useFloor(call time.Duration) time.Duration {
	return call + p.verify + p.evaluate + p.append
}

// floor is the sum that a confirmed delivery is compared with; calls are the two bare ones.
func (p primitives) floor(calls time.Duration) time.Duration {
	return calls + 2*p.verify + p.evaluate + p.seal + p.sign + 2*p.append
}

func measurePrimitives(ctx context.Context, path string) (p primitives, err error) {
	w, err := newWork(ctx, path)
	if err != nil {
		return p, err
	}
	for _, m := range []struct {
		n    int
		into *time.Duration
		f    func() error
	}{{2000, &p.verify, w.verify}, {2000, &p.sign, w.sign}, {500, &p.seal, w.seal}, {3000, &p.evaluate, w.evaluate}} {
		if *m.into, err = perOperation(m.n, m.f); err != nil {
			return p, err
		}
	}
	if p.transact, err = transactions(ctx, path+".db"); err != nil {
		return p, err
	}
	return p, appends(w.journal.file, &p)
}

// appends measures durable appends to a bare file: alone for the wall clock, and shared by 64 callers for
// the CPU.
func appends(f *os.File, p *primitives) error {
	record := bytes.Repeat([]byte{1}, recordSize)
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
		var err error
		for range callers {
			wg.Go(func() {
				mu.Lock()
				defer mu.Unlock()
				_, writeErr := f.Write(record)
				err = errors.Join(err, writeErr)
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
func perOperation(n int, f func() error) (time.Duration, error) {
	var errs error
	for range n / 10 {
		errs = errors.Join(errs, f())
	}
	before := cpuOfSelf()
	for range n {
		if err := f(); err != nil {
			return 0, err
		}
	}
	return (cpuOfSelf() - before) / time.Duration(n), errs
}

func cpuOfSelf() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
