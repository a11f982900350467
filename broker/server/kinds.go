package server

import (
	"errors"
	"fmt"
	"time"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/nitro"
	"github.com/bulla-project/bulla/attest/sevsnp"
	"github.com/bulla-project/bulla/attest/tdx"
	"github.com/bulla-project/bulla/broker"
)

// confidential are the verifiers of confidential machines. Whether one is accepted is for the reference values to
// say: without a root there, nothing of its kind is.
func confidential(now func() time.Time) []attest.Verifier {
	return []attest.Verifier{nitro.Verifier{Now: now}, sevsnp.Verifier{Now: now}, tdx.Verifier{Now: now}}
}

// enrolImage is the broker.Enroller of kind k, whose devices are images. The operator says what the image is: there
// is no challenge, and each attestation has to show it.
func enrolImage(k attest.Kind) broker.Enroller {
	return func(request []byte, refs attest.References, _ string, now time.Time) ([]byte, func([]byte) (attest.Device, error), error) {
		if !refs.ValidAt(now) {
			return nil, nil, errors.New("the reference values of the active policy are out of date")
		}
		if !refs.Accepts(k) {
			return nil, nil, fmt.Errorf("the reference values of the active policy name no root for devices of kind %s", k)
		}
		image, err := attest.ParseImage(k, request)
		if err != nil {
			return nil, nil, err
		}
		device, err := image.Enrol(k)
		return nil, func([]byte) (attest.Device, error) { return device, nil }, err
	}
}
