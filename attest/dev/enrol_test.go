package dev_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/dev"
)

func TestEnrolRequest(t *testing.T) {
	r := newRig(t)
	request := r.device.EnrolRequest()
	public, voucher, err := dev.ParseEnrolRequest(request)
	if err != nil {
		t.Fatal(err)
	}
	record, err := r.verifier.Enrol(public, voucher, time.Now())
	if err != nil || record.ID != r.record.ID {
		t.Errorf("enrolled %s instead of %s, %v", record.ID, r.record.ID, err)
	}
	for name, bad := range map[string][]byte{
		"empty": nil, "cut": request[:len(request)-1], "tail": append(bytes.Clone(request), 0),
		"evidence": attest.Pack(dev.Label, public, voucher),
		"large":    attest.Pack(attest.Label(request), make([]byte, 129), voucher),
	} {
		if _, _, err := dev.ParseEnrolRequest(bad); !errors.Is(err, attest.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseEnrolRequest(f *testing.F) {
	f.Add(attest.Pack("bulla-development-enrolment/v1", make([]byte, 91), make([]byte, 71)))
	f.Add([]byte{0, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		public, voucher, err := dev.ParseEnrolRequest(in)
		if err != nil {
			return
		}
		if again := attest.Pack("bulla-development-enrolment/v1", public, voucher); !bytes.Equal(again, in) {
			t.Errorf("%x was read, but is written as %x", in, again)
		}
	})
}
