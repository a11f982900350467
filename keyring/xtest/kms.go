// Package xtest is an AWS KMS for tests, behind the frame of package awsfake. It knows Encrypt and Decrypt of symmetric
// keys and DescribeKey. It is imported by tests only.
package xtest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/bulla-project/bulla/test/awsfake"
)

// Where the fake's keys live, and who may call it.
const (
	Account   = awsfake.Account
	Region    = awsfake.Region
	AccessKey = awsfake.AccessKey
	SecretKey = awsfake.SecretKey
)

// Fault is one way to fail the next calls.
type Fault = awsfake.Fault

// Server is the fake. Its methods may be called at any time.
type Server struct {
	*awsfake.Server

	mu       sync.Mutex // guards all below
	keys     map[string]*kmsKey
	aliases  map[string]string // alias → key id
	contexts []map[string]string
}

// Start serves on a loopback port until the test ends.
func Start(t testing.TB) *Server {
	s := &Server{keys: map[string]*kmsKey{}, aliases: map[string]string{}}
	s.Server = awsfake.Start(t, awsfake.Service{Name: "kms", Target: "TrentService.", Handle: s.handle})
	return s
}

// Credentials are those that the fake accepts.
func Credentials() aws.CredentialsProvider { return awsfake.Credentials() }

// Contexts returns the encryption contexts of the operations that were carried out so far.
func (s *Server) Contexts() []map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]map[string]string(nil), s.contexts...)
}

func (s *Server) handle(op string, body []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch op {
	case "Encrypt":
		return awsfake.Serve(body, s.encrypt)
	case "Decrypt":
		return awsfake.Serve(body, s.decrypt)
	case "DescribeKey":
		return awsfake.Serve(body, s.describe)
	}
	return nil, awsfake.Refuse("UnknownOperationException", "%s", op)
}

const keyIDLen = 36

type kmsKey struct {
	id    string
	state types.KeyState
	usage types.KeyUsageType
	aead  cipher.AEAD
}

func (k *kmsKey) arn() string { return "arn:aws:kms:" + Region + ":" + Account + ":key/" + k.id }

// CreateKey makes a symmetric key and returns its ARN.
func (s *Server) CreateKey() string {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw)
	block, err := aes.NewCipher(raw)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	k := &kmsKey{id: uuid(), state: types.KeyStateEnabled, usage: types.KeyUsageTypeEncryptDecrypt, aead: aead}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[k.id] = k
	return k.arn()
}

// SetState changes a key's state, as disabling it or scheduling its deletion does.
func (s *Server) SetState(arn string, state types.KeyState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[arn[strings.LastIndexByte(arn, '/')+1:]].state = state
}

// SetUsage changes what a key is for.
func (s *Server) SetUsage(arn string, usage types.KeyUsageType) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[arn[strings.LastIndexByte(arn, '/')+1:]].usage = usage
}

// SetAlias points an alias, "alias/NAME", at a key.
func (s *Server) SetAlias(alias, arn string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aliases[alias] = arn[strings.LastIndexByte(arn, '/')+1:]
}

// lookup finds a key by what KeyId may hold. The caller holds mu.
func (s *Server) lookup(keyID *string) (*kmsKey, error) {
	name := aws.ToString(keyID)
	prefix := "arn:aws:kms:" + Region + ":" + Account + ":"
	name = strings.TrimPrefix(name, prefix)
	if strings.HasPrefix(name, "alias/") {
		id, ok := s.aliases[name]
		if !ok {
			return nil, awsfake.Refuse("NotFoundException", "Alias %s%s is not found.", prefix, name)
		}
		return s.keys[id], nil
	}
	id := strings.TrimPrefix(name, "key/")
	if k := s.keys[id]; k != nil {
		return k, nil
	}
	return nil, awsfake.Refuse("NotFoundException", "Key '%skey/%s' does not exist", prefix, id)
}

func (k *kmsKey) usable() error {
	switch {
	case k.state == types.KeyStateDisabled:
		return awsfake.Refuse("DisabledException", "%s is disabled.", k.arn())
	case k.state != types.KeyStateEnabled:
		return awsfake.Refuse("KMSInvalidStateException", "%s is %s.", k.arn(), k.state)
	case k.usage != types.KeyUsageTypeEncryptDecrypt:
		return awsfake.Refuse("InvalidKeyUsageException", "%s key usage is %s which is not valid for Encrypt.", k.arn(), k.usage)
	}
	return nil
}

// contextBytes encodes an encryption context: encoding/json sorts the keys.
func contextBytes(context map[string]string) []byte {
	b, err := json.Marshal(context)
	if err != nil {
		panic(err)
	}
	return b
}

// A blob is a version byte, the key's id and the sealed plaintext.
func (s *Server) encrypt(in *kms.EncryptInput) (*kms.EncryptOutput, error) {
	if len(in.Plaintext) == 0 || len(in.Plaintext) > 4096 {
		return nil, awsfake.Refuse("ValidationException", "Value at 'plaintext' failed to satisfy constraint: Member must have length between 1 and 4096")
	}
	k, err := s.lookup(in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := k.usable(); err != nil {
		return nil, err
	}
	s.contexts = append(s.contexts, in.EncryptionContext)
	blob := k.aead.Seal(append([]byte{1}, k.id...), nil, in.Plaintext, contextBytes(in.EncryptionContext))
	return &kms.EncryptOutput{CiphertextBlob: blob, KeyId: aws.String(k.arn()), EncryptionAlgorithm: types.EncryptionAlgorithmSpecSymmetricDefault}, nil
}

func (s *Server) decrypt(in *kms.DecryptInput) (*kms.DecryptOutput, error) {
	blob := in.CiphertextBlob
	if len(blob) == 0 || len(blob) > 6144 {
		return nil, awsfake.Refuse("ValidationException", "Value at 'ciphertextBlob' failed to satisfy constraint: Member must have length between 1 and 6144")
	}
	if len(blob) < 1+keyIDLen || blob[0] != 1 || s.keys[string(blob[1:1+keyIDLen])] == nil {
		return nil, awsfake.Refuse("InvalidCiphertextException", "")
	}
	k := s.keys[string(blob[1:1+keyIDLen])]
	if in.KeyId != nil {
		named, err := s.lookup(in.KeyId)
		if err != nil {
			return nil, err
		}
		if named != k {
			return nil, awsfake.Refuse("IncorrectKeyException", "The key ID in the request does not identify a CMK that can perform this operation.")
		}
	}
	if err := k.usable(); err != nil {
		return nil, err
	}
	plain, err := k.aead.Open(nil, nil, blob[1+keyIDLen:], contextBytes(in.EncryptionContext))
	if err != nil {
		return nil, awsfake.Refuse("InvalidCiphertextException", "")
	}
	s.contexts = append(s.contexts, in.EncryptionContext)
	return &kms.DecryptOutput{Plaintext: plain, KeyId: aws.String(k.arn()), EncryptionAlgorithm: types.EncryptionAlgorithmSpecSymmetricDefault}, nil
}

func (s *Server) describe(in *kms.DescribeKeyInput) (*kms.DescribeKeyOutput, error) {
	k, err := s.lookup(in.KeyId)
	if err != nil {
		return nil, err
	}
	return &kms.DescribeKeyOutput{KeyMetadata: &types.KeyMetadata{
		KeyId: aws.String(k.id), Arn: aws.String(k.arn()), AWSAccountId: aws.String(Account), KeyState: k.state,
		KeyUsage: k.usage, KeySpec: types.KeySpecSymmetricDefault, Enabled: k.state == types.KeyStateEnabled,
	}}, nil
}

func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0F|0x40, b[8]&0x3F|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
