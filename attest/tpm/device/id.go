package device

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bulla-project/bulla/attest"
)

// DeviceID is the id under which this TPM is enrolled: it follows from its endorsement key.
func (t *TPM) DeviceID(ctx context.Context) (attest.DeviceID, error) {
	var public tpm2.TPMTPublic
	err := t.do(ctx, func(c transport.TPM) error {
		ek, _, err := endorsementKey(c)
		if err != nil {
			return err
		}
		flush(c, ek.Handle)
		public = ek.public
		return nil
	})
	if err != nil {
		return attest.DeviceID{}, fmt.Errorf("endorsement key of %s: %w", t.Address(), err)
	}
	key, err := tpm2.Pub(public)
	if err != nil {
		return attest.DeviceID{}, fmt.Errorf("endorsement key of %s: %w", t.Address(), err)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return attest.DeviceID{}, fmt.Errorf("endorsement key of %s: %w", t.Address(), err)
	}
	return attest.NewDeviceID(attest.KindTPM2, sha256.Sum256(der))
}
