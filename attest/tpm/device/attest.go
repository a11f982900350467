package device

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm/evidence"
)

// quoteAttempts bounds how often a quote is made anew because a PCR changed before its value was read.
const quoteAttempts = 5

// quotedPCRs are what the boot chain measures into: firmware (0 to 7), boot loader and kernel (8, 9, 11 to 13),
// shim (14). Not 10: the kernel's integrity measurements change it all the time.
func quotedPCRs() []uint { return []uint{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14} }

// Attest makes evidence for b: a quote with the PCR values and the event log, and the certification of the keys
// that live in this TPM. instance and recipient may be nil; those given must be the ones that b names.
func (t *TPM) Attest(ctx context.Context, b attest.Binding, instance *InstanceKey, recipient *RecipientKey) ([]byte, error) {
	log, err := t.readLog()
	if err != nil {
		return nil, fmt.Errorf("attest with %s: %w", t.Address(), err)
	}
	if instance != nil {
		if spki, err := instance.SPKI(); err != nil || !bytes.Equal(spki, b.InstanceKey) {
			return nil, errors.New("attest: the instance key of the binding is another one")
		}
	}
	if recipient != nil && !bytes.HasSuffix(b.RecipientKey, recipient.key.Bytes()) {
		return nil, errors.New("attest: the recipient key of the binding is another one")
	}
	digest := b.Digest()
	ev := evidence.Evidence{EventLog: log}
	err = t.do(ctx, func(c transport.TPM) error {
		ak, err := attestationKey(c)
		if err != nil {
			return err
		}
		defer flush(c, ak.Handle)
		if err := quote(c, ak, digest[:], &ev); err != nil {
			return err
		}
		if instance != nil {
			if ev.Instance, err = certify(c, ak, instance.blob, digest[:]); err != nil {
				return fmt.Errorf("certify the instance key: %w", err)
			}
		}
		if recipient != nil {
			if ev.Recipient, err = certify(c, ak, recipient.blob, digest[:]); err != nil {
				return fmt.Errorf("certify the recipient key: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("attest with %s: %w", t.Address(), err)
	}
	return ev.Marshal(), nil
}

func selection(pcrs []uint) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(pcrs...),
	}}}
}

// quote quotes and reads the PCRs, which is not one operation: it does both again while they disagree.
func quote(c transport.TPM, ak object, extra []byte, ev *evidence.Evidence) error {
	for range quoteAttempts {
		r, err := tpm2.Quote{
			SignHandle: ak.auth(), QualifyingData: tpm2.TPM2BData{Buffer: extra},
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: selection(quotedPCRs()),
		}.Execute(c)
		if err != nil {
			return fmt.Errorf("quote: %w", err)
		}
		if ev.PCRs, err = readPCRs(c, quotedPCRs()); err != nil {
			return fmt.Errorf("read PCRs: %w", err)
		}
		attested, err := r.Quoted.Contents()
		if err != nil {
			return fmt.Errorf("quote: %w", err)
		}
		info, err := attested.Attested.Quote()
		if err != nil {
			return fmt.Errorf("quote: %w", err)
		}
		h := sha256.New()
		for _, p := range quotedPCRs() {
			v := ev.PCRs[int(p)]
			h.Write(v[:])
		}
		if bytes.Equal(h.Sum(nil), info.PCRDigest.Buffer) {
			ev.Quote, ev.Signature = r.Quoted.Bytes(), tpm2.Marshal(r.Signature)
			return nil
		}
	}
	return fmt.Errorf("PCRs changed during each of %d attempts to quote them", quoteAttempts)
}

// readPCRs reads the SHA-256 bank; a TPM gives eight values at a time, in ascending order.
func readPCRs(c transport.TPM, pcrs []uint) (map[int][sha256.Size]byte, error) {
	values := map[int][sha256.Size]byte{}
	for missing := pcrs; len(missing) > 0; {
		r, err := tpm2.PCRRead{PCRSelectionIn: selection(missing)}.Execute(c)
		if err != nil {
			return nil, err
		}
		if len(r.PCRSelectionOut.PCRSelections) != 1 || len(r.PCRValues.Digests) == 0 {
			return nil, errors.New("the TPM has no SHA-256 bank")
		}
		got, next := r.PCRSelectionOut.PCRSelections[0].PCRSelect, 0
		var rest []uint
		for _, p := range missing {
			if int(p/8) >= len(got) || got[p/8]&(1<<(p%8)) == 0 {
				rest = append(rest, p)
				continue
			}
			if next == len(r.PCRValues.Digests) || len(r.PCRValues.Digests[next].Buffer) != sha256.Size {
				return nil, errors.New("the TPM gave fewer values than it says")
			}
			values[int(p)] = [sha256.Size]byte(r.PCRValues.Digests[next].Buffer)
			next++
		}
		missing = rest
		if next == 0 {
			return nil, errors.New("the TPM gave no value")
		}
	}
	return values, nil
}

// certify has ak state that key lives in the same TPM.
func certify(c transport.TPM, ak object, key blob, extra []byte) (evidence.Certified, error) {
	o, err := key.load(c)
	if err != nil {
		return evidence.Certified{}, err
	}
	defer flush(c, o.Handle)
	r, err := tpm2.Certify{
		ObjectHandle: o.auth(), SignHandle: ak.auth(),
		QualifyingData: tpm2.TPM2BData{Buffer: extra}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(c)
	if err != nil {
		return evidence.Certified{}, err
	}
	return evidence.Certified{
		Public: tpm2.Marshal(o.public), Attest: r.CertifyInfo.Bytes(), Signature: tpm2.Marshal(r.Signature),
	}, nil
}
