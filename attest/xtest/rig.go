// Package xtest holds what tests of attestation need in several packages: a real software TPM, enrolled, and
// the tools of a forger. It is imported by tests only.
package xtest

import (
	"context"
	"crypto/rand"
	"testing"
	"time"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm"
	"github.com/bulla-project/bulla/attest/tpm/device"
	"github.com/bulla-project/bulla/attest/tpm/swtpm"
	"github.com/bulla-project/bulla/test/xtest"
)

// A Rig is a running software TPM, reference values that trust its maker, and the record of its enrolment.
type Rig struct {
	Software   *swtpm.TPM
	TPM        *device.TPM
	References attest.References
	YAML       []byte // of References
	Device     attest.Device
}

// NewRig starts and enrols a software TPM. It skips the test where there is none.
func NewRig(t testing.TB) *Rig {
	t.Helper()
	r := StartRig(t, t.TempDir())
	r.Device = r.Enrol(t, r.References)
	return r
}

// StartRig starts a software TPM in dir, without enrolling it.
func StartRig(t testing.TB, dir string) *Rig {
	t.Helper()
	xtest.Need(t, "swtpm", "swtpm_setup")
	ctx := context.Background()
	software, err := swtpm.Start(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := software.Close(); err != nil {
			t.Error(err)
		}
	})
	root, err := software.EKRootPEM()
	if err != nil {
		t.Fatal(err)
	}
	r := &Rig{Software: software, YAML: swtpm.ReferenceYAML(root, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))}
	if r.References, err = attest.ParseReferences(r.YAML); err != nil {
		t.Fatal(err)
	}
	if r.TPM, err = device.Open(ctx, software.Address()); err != nil {
		t.Fatal(err)
	}
	return r
}

// Enrol goes through the whole enrolment, and fails the test if it does not succeed.
func (r *Rig) Enrol(t testing.TB, refs attest.References) attest.Device {
	t.Helper()
	ctx, now, caller := context.Background(), time.Now(), "spiffe://dev.bulla.test/operator"
	chain, err := r.Software.ChainPEM()
	if err != nil {
		t.Fatal(err)
	}
	req, err := r.TPM.EnrolRequest(ctx, chain)
	if err != nil {
		t.Fatal(err)
	}
	challenge, pending, err := tpm.BeginEnrolment(req, refs, caller, now, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := r.TPM.Activate(ctx, challenge)
	if err != nil {
		t.Fatal(err)
	}
	d, err := pending.Finish(caller, secret, now)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
