package policy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	opabundle "github.com/open-policy-agent/opa/v1/bundle"
)

// SignatureFile is the name of the file beside a bundle's own that holds its signature, as OPA writes and reads it.
const SignatureFile = ".signatures.json"

const (
	maxSignature = 96 << 10 // 256 files, each with a name of 64 bytes and a digest, in base64
	maxKeyFile   = 16 << 10
	minRSABits   = 2048
)

// ErrSignature says that a bundle is not signed by a key that counts here.
var ErrSignature = errors.New("policy bundle not signed as it has to be")

// BundleKey is a public key under which bundles may be signed. The algorithm follows from the key: ES256, ES384,
// EdDSA or RS256. There is no HMAC, since who can check such a signature can make it, and no "none".
type BundleKey struct {
	ID     string // SHA-256 of the PKIX encoding, in hexadecimal
	Public []byte // PKIX
	alg    string
	pem    string
}

// NewBundleKey reads a public key in its PKIX encoding.
func NewBundleKey(pkix []byte) (BundleKey, error) {
	public, err := x509.ParsePKIXPublicKey(pkix)
	if err != nil {
		return BundleKey{}, fmt.Errorf("bundle key: %w", err)
	}
	alg, err := algorithm(public)
	if err != nil {
		return BundleKey{}, fmt.Errorf("bundle key: %w", err)
	}
	sum := sha256.Sum256(pkix)
	return BundleKey{
		ID: hex.EncodeToString(sum[:]), Public: bytes.Clone(pkix), alg: alg,
		pem: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkix})),
	}, nil
}

// ParseBundleKey reads a public key from a PEM file of exactly one block.
func ParseBundleKey(text []byte) (BundleKey, error) {
	block, rest := pem.Decode(text)
	if len(text) > maxKeyFile || block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return BundleKey{}, errors.New("bundle key: want a PEM file with one PUBLIC KEY")
	}
	return NewBundleKey(block.Bytes)
}

func algorithm(public any) (string, error) {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return "ES256", nil
		case elliptic.P384():
			return "ES384", nil
		}
	case ed25519.PublicKey:
		return "EdDSA", nil
	case *rsa.PublicKey:
		if k.N.BitLen() >= minRSABits {
			return "RS256", nil
		}
	}
	return "", fmt.Errorf("a key of type %T (or its curve or size) is not taken: use P-256, P-384, Ed25519, or RSA of at least %d bits", public, minRSABits)
}

// VerifySignature checks by OPA's own code that signature, the content of SignatureFile, is over exactly the files of
// the archive and made by one of the keys, and returns the key's id. Each file must be named with a digest of SHA-256
// or longer. Which key the signature says it is from is not looked at: every key that counts is tried.
func VerifySignature(archive, signature []byte, keys []BundleKey) (keyID string, err error) {
	files, err := Unpack(archive)
	if err != nil {
		return "", err
	}
	if len(signature) == 0 {
		return "", fmt.Errorf("%w: there is no %s: sign it with `bulla policy sign --sign-key FILE DIR`", ErrSignature, SignatureFile)
	}
	sig, err := parseSignature(signature)
	if err != nil {
		return "", err
	}
	for _, k := range keys {
		config := opabundle.NewVerificationConfig(map[string]*opabundle.KeyConfig{k.ID: {Key: k.pem, Algorithm: k.alg}}, k.ID, "", nil)
		signed, err := opabundle.VerifyBundleSignature(sig, config)
		if err != nil {
			continue // not by this key
		}
		if err := matches(files, signed); err != nil {
			return "", fmt.Errorf("%w: %w", ErrSignature, err)
		}
		return k.ID, nil
	}
	return "", fmt.Errorf("%w: none of the %d bundle keys of this broker made its signature", ErrSignature, len(keys))
}

func parseSignature(text []byte) (opabundle.SignaturesConfig, error) {
	var sig opabundle.SignaturesConfig
	if len(text) > maxSignature {
		return sig, fmt.Errorf("%w: %s has more than %d bytes", ErrSignature, SignatureFile, maxSignature)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	err := dec.Decode(&sig)
	if _, end := dec.Token(); err != nil || !errors.Is(end, io.EOF) || len(sig.Signatures) != 1 {
		return sig, fmt.Errorf("%w: %s is not {\"signatures\": [TOKEN]} with one token", ErrSignature, SignatureFile)
	}
	if sig.Plugin != "" { // it would choose the verifier
		return sig, fmt.Errorf("%w: %s names a plugin", ErrSignature, SignatureFile)
	}
	return sig, nil
}

// matches compares the files with what was signed, as OPA's bundle reader does.
func matches(files map[string][]byte, signed map[string]opabundle.FileInfo) error {
	for _, name := range sortedNames(files) {
		switch opabundle.HashingAlgorithm(signed[name].Algorithm) {
		case opabundle.SHA256, opabundle.SHA384, opabundle.SHA512, "": // "": OPA says what is missing
		default:
			return fmt.Errorf("%s: the digest in the signature is %s: sign with SHA-256", name, signed[name].Algorithm)
		}
		if opabundle.IsStructuredDoc(name) { // OPA hashes what it parses, and we might parse it otherwise
			return fmt.Errorf("%s: a file of this name can't be signed byte by byte: give it another name", name)
		}
		if err := opabundle.VerifyBundleFile(name, *bytes.NewBuffer(files[name]), signed); err != nil {
			return err
		}
	}
	if len(signed) > 0 {
		return fmt.Errorf("the signature names files that the bundle does not have: %s", strings.Join(slices.Sorted(maps.Keys(signed)), ", "))
	}
	return nil
}

// SignArchive signs the files of an archive with a private key in PEM form and returns the content of SignatureFile
// as `opa sign` would write it, and the id of the key.
func SignArchive(archive, privatePEM []byte) (signature []byte, keyID string, err error) {
	files, err := Unpack(archive)
	if err != nil {
		return nil, "", err
	}
	key, err := publicOf(privatePEM)
	if err != nil {
		return nil, "", fmt.Errorf("signing key: %w", err)
	}
	hasher, err := opabundle.NewSignatureHasher(opabundle.SHA256)
	if err != nil {
		return nil, "", err
	}
	var infos []opabundle.FileInfo
	for _, name := range sortedNames(files) {
		sum, err := hasher.HashFile(files[name])
		if err != nil {
			return nil, "", err
		}
		infos = append(infos, opabundle.NewFile(name, hex.EncodeToString(sum), opabundle.SHA256.String()))
	}
	token, err := opabundle.GenerateSignedToken(infos, opabundle.NewSigningConfig(string(bytes.TrimSpace(privatePEM)), key.alg, ""), "")
	if err != nil {
		return nil, "", errors.New("signing key: it does not sign") // the cause could quote the key
	}
	signature, err = json.MarshalIndent(map[string][]string{"signatures": {token}}, "", " ")
	if err != nil {
		return nil, "", err
	}
	signature = append(signature, '\n')
	if _, err := VerifySignature(archive, signature, []BundleKey{key}); err != nil {
		return nil, "", err
	}
	return signature, key.ID, nil
}

// publicOf reads a private key and returns the public one. Errors don't quote the text.
func publicOf(privatePEM []byte) (BundleKey, error) {
	block, rest := pem.Decode(privatePEM)
	if len(privatePEM) > maxKeyFile || block == nil || len(bytes.TrimSpace(rest)) > 0 || !bytes.HasPrefix(bytes.TrimSpace(privatePEM), []byte("-----BEGIN")) {
		return BundleKey{}, errors.New("want a PEM file with one private key and nothing else")
	}
	var private any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		private, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		private, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		private, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return BundleKey{}, errors.New("want a PEM block PRIVATE KEY, EC PRIVATE KEY or RSA PRIVATE KEY, not encrypted")
	}
	if err != nil {
		return BundleKey{}, errors.New("the private key can't be read")
	}
	var public any
	switch k := private.(type) {
	case *ecdsa.PrivateKey:
		public = &k.PublicKey
	case ed25519.PrivateKey:
		public = k.Public()
	case *rsa.PrivateKey:
		public = &k.PublicKey
	}
	pkix, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return BundleKey{}, errors.New("this kind of private key is not taken")
	}
	return NewBundleKey(pkix)
}
