package split

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/secret"
)

// LabelFile is the version that stands first in a share file.
const LabelFile = "bulla-share/v1"

// MaxFile is the largest share file in bytes.
const MaxFile = 2*MaxManifest + 4096

// File is one holder's share of a secret that was split at its source, with the manifest that it belongs to: what a
// custodian keeps offline. Whoever reads the file has the share.
type File struct {
	Holder string
	Share  secret.Bytes

	manifest Manifest
	signed   Signed
}

// fileJSON is the one form of a file: these fields in this order, indented, with a line break at the end.
type fileJSON struct {
	Version   string `json:"v"`
	Secret    string `json:"secret"` // for whoever looks at the file
	Holder    string `json:"holder"`
	Manifest  []byte `json:"manifest"`
	Key       []byte `json:"key"` // of the manifest's signer, DER SubjectPublicKeyInfo
	Signature []byte `json:"signature"`
	Share     []byte `json:"share"`
}

// NewFile makes the file of a holder. The share is copied.
func NewFile(pkg []byte, holder string, share secret.Bytes) (*File, error) {
	p, err := ParsePackage(pkg)
	if err != nil {
		return nil, err
	}
	if err := p.Manifest.Check(holder, share); err != nil {
		return nil, err
	}
	return &File{
		Holder: holder, Share: secret.NewBytes(bytes.Clone(share.Expose())), manifest: p.Manifest,
		signed: Signed{Manifest: bytes.Clone(p.Signed.Manifest), Key: p.Signed.Key, Signature: bytes.Clone(p.Signed.Signature)},
	}, nil
}

// Manifest is what the share belongs to.
func (f *File) Manifest() Manifest { return f.manifest }

// Digest is the SHA-256 of the encoded manifest.
func (f *File) Digest() envelope.Digest { return envelope.DigestOf(f.signed.Manifest) }

// Encode writes the file. The bytes hold the share.
func (f *File) Encode() ([]byte, error) {
	spki, err := proof.MarshalInstanceKey(f.signed.Key)
	if err != nil {
		return nil, fmt.Errorf("encode share file: %w", err)
	}
	b, err := json.MarshalIndent(fileJSON{LabelFile, f.manifest.Secret, f.Holder, f.signed.Manifest, spki, f.signed.Signature, f.Share.Expose()}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode share file: %w", err)
	}
	return append(b, '\n'), nil
}

// ParseFile reads a share file in its one form, so that damage shows: the manifest is signed, and the share checked
// against it. That the manifest is the right one is for its reader to know.
func ParseFile(b []byte) (*File, error) {
	if len(b) > MaxFile {
		return nil, fmt.Errorf("share file of %d bytes: %w", len(b), ErrMalformed)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var in fileJSON
	if err := dec.Decode(&in); err != nil {
		return nil, fmt.Errorf("share file: %w: not the JSON of a share", ErrMalformed)
	}
	key, err := proof.ParseInstanceKey(in.Key)
	if err != nil {
		return nil, fmt.Errorf("share file: %w: the signer's key", ErrMalformed)
	}
	signed := Signed{Manifest: in.Manifest, Key: key, Signature: in.Signature}
	m, err := signed.Verify()
	if err != nil {
		return nil, fmt.Errorf("share file: %w", err)
	}
	f := &File{Holder: in.Holder, Share: secret.NewBytes(in.Share), manifest: m, signed: signed}
	again, err := f.Encode()
	defer clear(again)
	if err != nil || in.Version != LabelFile || !bytes.Equal(again, b) {
		f.Share.Zero()
		return nil, fmt.Errorf("share file: %w: not in its one form", ErrMalformed)
	}
	if err := m.Check(f.Holder, f.Share); err != nil {
		f.Share.Zero()
		return nil, fmt.Errorf("share file: %w", err)
	}
	return f, nil
}
