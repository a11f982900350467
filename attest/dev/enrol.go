package dev

import "github.com/bulla-project/bulla/attest"

const (
	enrolmentLabel = "bulla-development-enrolment/v1"

	maxPublic = 128 // a P-256 key in PKIX form has 91 bytes
)

// EnrolRequest is what the enrolment of d starts with: its public key and the voucher for it. There is no
// challenge after it, since the voucher says everything that is known of such a device.
func (d *Device) EnrolRequest() []byte {
	return attest.Pack(enrolmentLabel, d.public, d.voucher)
}

// ParseEnrolRequest takes apart what EnrolRequest made. It only frames: [Verifier.Enrol] judges both.
func ParseEnrolRequest(request []byte) (devicePublic, voucher []byte, err error) {
	f, err := attest.Unpack(enrolmentLabel, request, maxPublic, maxSignature)
	if err != nil {
		return nil, nil, err
	}
	return f[0], f[1], nil
}
