package nitro

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"

	"github.com/fxamacker/cbor/v2"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/chain"
)

// Limits of a document, in bytes.
const (
	MaxDocument = 32 << 10
	maxModule   = 256
	maxField    = 1024 // user_data, nonce, public_key
	pcrSize     = 48
	sigSize     = 96
)

// A Document is what the Nitro hypervisor says of an enclave, parsed and not verified.
type Document struct {
	Module    string
	Timestamp uint64 // milliseconds since 1970
	PCRs      map[uint64][]byte
	Leaf      []byte
	Bundle    [][]byte // root first
	PublicKey []byte
	UserData  []byte
	Nonce     []byte

	protected, payload, signature []byte
}

// protectedHeader is {1: -35}: ES384, and nothing else.
func protectedHeader() []byte { return []byte{0xa1, 0x01, 0x38, 0x22} }

type envelope struct {
	_           struct{} `cbor:",toarray"`
	Protected   []byte
	Unprotected cbor.RawMessage
	Payload     []byte
	Signature   []byte
}

// fields is the outermost map of a document. Its values are read one by one, by the strict rules.
type fields struct {
	Module    cbor.RawMessage `cbor:"module_id"`
	Digest    cbor.RawMessage `cbor:"digest"`
	Timestamp cbor.RawMessage `cbor:"timestamp"`
	PCRs      cbor.RawMessage `cbor:"pcrs"`
	Leaf      cbor.RawMessage `cbor:"certificate"`
	Bundle    cbor.RawMessage `cbor:"cabundle"`
	PublicKey cbor.RawMessage `cbor:"public_key"`
	UserData  cbor.RawMessage `cbor:"user_data"`
	Nonce     cbor.RawMessage `cbor:"nonce"`
}

// decoders returns the strict rules, and those for the outermost map of a document: the same, but that its length
// may be open, since some versions of the hypervisor write it so. What is inside is held to the strict ones.
var decoders = sync.OnceValues(func() (strict, outermost cbor.DecMode) {
	opts := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		MaxNestedLevels: 4, MaxArrayElements: 16, MaxMapPairs: attest.MaxNitroPCR + 1,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField, UTF8: cbor.UTF8RejectInvalid,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive, FieldNameByteString: cbor.FieldNameByteStringForbidden,
	}
	strict = must(opts)
	opts.IndefLength = cbor.IndefLengthAllowed
	return strict, must(opts)
})

func must(opts cbor.DecOptions) cbor.DecMode {
	mode, err := opts.DecMode()
	if err != nil {
		panic("nitro: internal error: " + err.Error())
	}
	return mode
}

// Parse reads a document strictly. It verifies nothing.
func Parse(b []byte) (Document, error) {
	if len(b) == 0 || len(b) > MaxDocument {
		return Document{}, fmt.Errorf("document of %d bytes, want 1 to %d", len(b), MaxDocument)
	}
	strict, outermost := decoders()
	var e envelope
	if err := strict.Unmarshal(b, &e); err != nil {
		return Document{}, fmt.Errorf("COSE_Sign1: %w", err)
	}
	switch {
	case !bytes.Equal(e.Protected, protectedHeader()):
		return Document{}, fmt.Errorf("protected header %x, want ES384 and nothing else", clip(e.Protected))
	case !bytes.Equal(e.Unprotected, []byte{0xa0}):
		return Document{}, fmt.Errorf("unprotected header %x, want an empty one", clip(e.Unprotected))
	case len(e.Signature) != sigSize:
		return Document{}, fmt.Errorf("signature of %d bytes, want %d", len(e.Signature), sigSize)
	}
	var f fields
	if err := outermost.Unmarshal(e.Payload, &f); err != nil {
		return Document{}, fmt.Errorf("document: %w", err)
	}
	d := Document{protected: e.Protected, payload: e.Payload, signature: e.Signature}
	return d, d.fill(f)
}

func (d *Document) fill(f fields) error {
	strict, _ := decoders()
	var digest string
	for _, field := range []struct {
		name string
		raw  cbor.RawMessage
		into any
	}{
		{"module_id", f.Module, &d.Module},
		{"digest", f.Digest, &digest},
		{"timestamp", f.Timestamp, &d.Timestamp},
		{"pcrs", f.PCRs, &d.PCRs},
		{"certificate", f.Leaf, &d.Leaf},
		{"cabundle", f.Bundle, &d.Bundle},
		{"public_key", f.PublicKey, &d.PublicKey},
		{"user_data", f.UserData, &d.UserData},
		{"nonce", f.Nonce, &d.Nonce},
	} {
		if len(field.raw) == 0 {
			return fmt.Errorf("document has no %s", field.name)
		}
		if err := strict.Unmarshal(field.raw, field.into); err != nil {
			return fmt.Errorf("document: %s: %w", field.name, err)
		}
	}
	switch {
	case digest != "SHA384":
		return fmt.Errorf("digest %q, want SHA384", clip([]byte(digest)))
	case d.Module == "" || len(d.Module) > maxModule:
		return fmt.Errorf("module_id of %d bytes, want 1 to %d", len(d.Module), maxModule)
	case len(d.PCRs) == 0:
		return fmt.Errorf("document without PCRs")
	case len(d.Bundle) == 0 || len(d.Bundle) >= chain.MaxCertificates:
		return fmt.Errorf("cabundle of %d certificates, want 1 to %d", len(d.Bundle), chain.MaxCertificates-1)
	}
	for _, field := range [][]byte{d.PublicKey, d.UserData, d.Nonce} {
		if len(field) > maxField {
			return fmt.Errorf("field of %d bytes, want at most %d", len(field), maxField)
		}
	}
	for n, value := range d.PCRs {
		if n > attest.MaxNitroPCR || len(value) != pcrSize {
			return fmt.Errorf("PCR %d of %d bytes, want 0 to %d of %d", n, len(value), attest.MaxNitroPCR, pcrSize)
		}
	}
	return nil
}

// Values are the PCRs by their names, sorted.
func (d Document) Values() []attest.Named {
	var out []attest.Named
	for n, value := range d.PCRs {
		out = append(out, attest.Named{Name: fmt.Sprintf("pcr%d", n), Value: hex.EncodeToString(value)})
	}
	slices.SortFunc(out, func(a, b attest.Named) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	return out
}

// signed is what the signature is over: the Sig_structure of RFC 9052, 4.4.
func (d Document) signed() ([]byte, error) {
	return cbor.Marshal([]any{"Signature1", d.protected, []byte{}, d.payload})
}

func clip(b []byte) []byte { return b[:min(len(b), 32)] }
