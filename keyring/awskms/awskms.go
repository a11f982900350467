// Package awskms is a key-encryption key in AWS KMS: [keyring.KEK] over the Encrypt and Decrypt calls.
//
// Each call carries an encryption context with a label of this package and the associated data, so that KMS
// refuses a blob that was wrapped for something else, and CloudTrail shows what it was for. The key is named
// in Decrypt too: a blob under any other key is refused, even one this role may use. The wrapped form is
// KMS's own blob.
//
// Credentials come from where the AWS SDK finds them (environment, shared files, web identity, container or
// instance role), never from Bulla's configuration. Throttling, answers that got lost and errors of the
// server are tried again by the SDK, at most three times within the timeout; both calls may safely be
// repeated. What AWS says besides an error's code is not passed on: a request id is, for the support case.
//
// The package makes, rotates and deletes no keys.
package awskms

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"

	"github.com/bulla-project/bulla/keyring"
)

const (
	contextLabel = "bulla-aws-kms/v1" // value of contextUse in every call
	contextUse   = "bulla"
	contextAAD   = "bulla-aad" // base64 of the associated data

	// DefaultTimeout is for one call of Wrap or Unwrap, retries included.
	DefaultTimeout = 10 * time.Second

	attempts    = 3
	backoffMax  = 250 * time.Millisecond
	maxKeyID    = 2048 // the limit of KMS
	maxPlain    = 4096 // the limit of KMS for Encrypt
	maxBlob     = 6144 // the limit of KMS for Decrypt
	idPrefix    = "aws-kms:"
	serviceName = "kms" // in ARNs
)

// Config names a key. Its zero values besides KeyID are useful where the environment names a region.
type Config struct {
	// KeyID is the key's ARN, id, alias ("alias/…") or alias ARN. The keyset file remembers it as it is
	// written here. An ARN is best: an alias can be pointed elsewhere.
	KeyID string `yaml:"key_id"`
	// Region defaults to that of an ARN, then to the SDK's own settings.
	Region string `yaml:"region"`
	// Endpoint overrides the address of KMS, for a VPC endpoint or a test. It is https, except on loopback.
	Endpoint string `yaml:"endpoint"`
	// Timeout is for one call; zero is [DefaultTimeout].
	Timeout time.Duration `yaml:"timeout"`
	// Credentials override the SDK's own search.
	Credentials aws.CredentialsProvider `yaml:"-"`
}

// Validate reports everything that is wrong with c.
func (c Config) Validate() error {
	var faults []error
	if !validKeyID(c.KeyID) {
		faults = append(faults, fmt.Errorf("aws_kms: key_id %.100q is none: give the key's ARN, id or alias/NAME", c.KeyID))
	}
	if r := arnRegion(c.KeyID); r != "" && c.Region != "" && r != c.Region {
		faults = append(faults, fmt.Errorf("aws_kms: key_id is in region %q, region says %q: remove region", r, c.Region))
	}
	if c.Endpoint != "" {
		if err := checkEndpoint(c.Endpoint); err != nil {
			faults = append(faults, err)
		}
	}
	if c.Timeout < 0 {
		faults = append(faults, fmt.Errorf("aws_kms: timeout %v is negative", c.Timeout))
	}
	return errors.Join(faults...)
}

// validKeyID admits the characters that ids, aliases and ARNs consist of, and ARNs of KMS only.
func validKeyID(id string) bool {
	if id == "" || len(id) > maxKeyID {
		return false
	}
	for _, c := range []byte(id) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-_/:", c) >= 0) {
			return false
		}
	}
	if strings.Contains(id, ":") {
		a, err := arn.Parse(id)
		return err == nil && a.Service == serviceName && a.Region != "" && a.Resource != ""
	}
	return true
}

// arnRegion returns the region of an ARN, "" for other ids.
func arnRegion(id string) string {
	a, err := arn.Parse(id)
	if err != nil {
		return ""
	}
	return a.Region
}

// checkEndpoint refuses an address over which keys would travel in the clear.
func checkEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("aws_kms: endpoint is no URL such as https://kms.eu-central-1.amazonaws.com")
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme == "https" || u.Scheme == "http" && ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("aws_kms: endpoint %q is not https: the key would travel in the clear", u.Redacted())
}

// KEK is a key in AWS KMS. It is safe for concurrent use.
type KEK struct {
	client  *kms.Client
	keyID   string
	timeout time.Duration
}

var _ keyring.KEK = (*KEK)(nil)

// New checks c and prepares a client. It calls neither KMS nor a source of credentials.
func New(ctx context.Context, c Config) (*KEK, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	region := c.Region
	if region == "" {
		region = arnRegion(c.KeyID)
	}
	options := []func(*config.LoadOptions) error{
		config.WithLogger(logging.Nop{}), // what goes wrong is returned
		config.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) {
				o.MaxAttempts, o.MaxBackoff = attempts, backoffMax
				o.Retryables = append(o.Retryables, retry.IsErrorRetryableFunc(isCutOff))
			})
		}),
	}
	if region != "" {
		options = append(options, config.WithRegion(region))
	}
	if c.Credentials != nil {
		options = append(options, config.WithCredentialsProvider(c.Credentials))
	}
	loaded, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("aws_kms: read the AWS settings of this environment: %w", err)
	}
	if loaded.Region == "" {
		return nil, errors.New("aws_kms: no region: set aws_kms.region, or AWS_REGION, or give the key's ARN as key_id")
	}
	loaded.Credentials = markedCredentials{loaded.Credentials}
	k := &KEK{keyID: c.KeyID, timeout: c.Timeout}
	if k.timeout == 0 {
		k.timeout = DefaultTimeout
	}
	k.client = kms.NewFromConfig(loaded, func(o *kms.Options) {
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
	})
	return k, nil
}

// isCutOff adds answers that ended early to what the SDK tries again.
func isCutOff(err error) aws.Ternary {
	var cut *smithy.DeserializationError
	if errors.As(err, &cut) {
		return aws.TrueTernary
	}
	return aws.UnknownTernary
}

// errCredentials is in the error of a call that could not be signed.
var errCredentials = errors.New("no AWS credentials")

// markedCredentials tells errors of finding credentials from those of KMS: both may be an answer of AWS.
type markedCredentials struct{ aws.CredentialsProvider }

func (m markedCredentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c, err := m.CredentialsProvider.Retrieve(ctx)
	if err != nil {
		return aws.Credentials{}, fmt.Errorf("%w: %w", errCredentials, err)
	}
	return c, nil
}

// ID is "aws-kms:" and the key's id as it was configured.
func (k *KEK) ID() string { return idPrefix + k.keyID }

func encryptionContext(aad []byte) map[string]string {
	return map[string]string{contextUse: contextLabel, contextAAD: base64.StdEncoding.EncodeToString(aad)}
}

// Wrap implements [keyring.KEK] by the Encrypt call.
func (k *KEK) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if len(plaintext) == 0 || len(plaintext) > maxPlain {
		return nil, fmt.Errorf("wrap with AWS KMS: %d bytes, 1 to %d are possible", len(plaintext), maxPlain)
	}
	ctx, cancel := context.WithTimeout(ctx, k.timeout)
	defer cancel()
	out, err := k.client.Encrypt(ctx, &kms.EncryptInput{KeyId: &k.keyID, Plaintext: plaintext, EncryptionContext: encryptionContext(aad)})
	if err != nil {
		return nil, k.explain(ctx, "kms:Encrypt", err)
	}
	if len(out.CiphertextBlob) == 0 || len(out.CiphertextBlob) > maxBlob {
		return nil, fmt.Errorf("kms:Encrypt with key %s: %w: the answer holds no ciphertext", k.keyID, keyring.ErrKEKUnavailable)
	}
	return out.CiphertextBlob, nil
}

// Unwrap implements [keyring.KEK] by the Decrypt call.
func (k *KEK) Unwrap(ctx context.Context, ciphertext, aad []byte) ([]byte, error) {
	if len(ciphertext) == 0 || len(ciphertext) > maxBlob {
		return nil, keyring.ErrOpen
	}
	ctx, cancel := context.WithTimeout(ctx, k.timeout)
	defer cancel()
	out, err := k.client.Decrypt(ctx, &kms.DecryptInput{KeyId: &k.keyID, CiphertextBlob: ciphertext, EncryptionContext: encryptionContext(aad)})
	if err != nil {
		return nil, k.explain(ctx, "kms:Decrypt", err)
	}
	if len(out.Plaintext) == 0 {
		return nil, fmt.Errorf("kms:Decrypt with key %s: %w: the answer holds no plaintext", k.keyID, keyring.ErrKEKUnavailable)
	}
	return out.Plaintext, nil
}
