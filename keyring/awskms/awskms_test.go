package awskms_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/bulla-project/bulla/internal/strictyaml"
	"github.com/bulla-project/bulla/keyring"
	"github.com/bulla-project/bulla/keyring/awskms"
	"github.com/bulla-project/bulla/keyring/xtest"
)

// isolate keeps this machine's AWS settings out of a test.
func isolate(t testing.TB) {
	t.Helper()
	none := filepath.Join(t.TempDir(), "none")
	for name, value := range map[string]string{
		"AWS_CONFIG_FILE": none, "AWS_SHARED_CREDENTIALS_FILE": none, "AWS_EC2_METADATA_DISABLED": "true", "AWS_REGION": "",
		"AWS_DEFAULT_REGION": "", "AWS_PROFILE": "", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SESSION_TOKEN": "",
		"AWS_ENDPOINT_URL": "", "AWS_ENDPOINT_URL_KMS": "", "AWS_WEB_IDENTITY_TOKEN_FILE": "", "AWS_ROLE_ARN": "",
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "", "AWS_CONTAINER_CREDENTIALS_FULL_URI": "", "AWS_MAX_ATTEMPTS": "", "AWS_RETRY_MODE": "",
	} {
		t.Setenv(name, value)
	}
}

func newKEK(t testing.TB, c awskms.Config) *awskms.KEK {
	t.Helper()
	if c.Credentials == nil {
		c.Credentials = xtest.Credentials()
	}
	k, err := awskms.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// start gives a server, a key of it and the KEK.
func start(t testing.TB) (*xtest.Server, string, *awskms.KEK) {
	t.Helper()
	isolate(t)
	s := xtest.Start(t)
	arn := s.CreateKey()
	return s, arn, newKEK(t, awskms.Config{KeyID: arn, Endpoint: s.URL})
}

func TestWrap(t *testing.T) {
	s, arn, k := start(t)
	if k.ID() != "aws-kms:"+arn {
		t.Errorf("ID %s", k.ID())
	}
	for _, size := range []int{1, 32, 4096} {
		plaintext := bytes.Repeat([]byte{0xFE}, size)
		wrapped, err := k.Wrap(t.Context(), plaintext, []byte("aad\x00\xff"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := k.Unwrap(t.Context(), wrapped, []byte("aad\x00\xff")); err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	want := map[string]string{"bulla": "bulla-aws-kms/v1", "bulla-aad": "YWFkAP8="}
	for _, context := range s.Contexts() {
		if len(context) != len(want) || context["bulla"] != want["bulla"] || context["bulla-aad"] != want["bulla-aad"] {
			t.Errorf("encryption context %v", context)
		}
	}
	for _, size := range []int{0, 4097} {
		if _, err := k.Wrap(t.Context(), make([]byte, size), nil); err == nil {
			t.Errorf("wrapped %d bytes", size)
		}
	}
}

func TestUnwrapRefusesWhatWasNotWrapped(t *testing.T) {
	s, _, k := start(t)
	wrapped, err := k.Wrap(t.Context(), []byte("key"), []byte("aad"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Unwrap(t.Context(), wrapped, []byte("aae")); !errors.Is(err, keyring.ErrOpen) {
		t.Errorf("other aad: %v", err)
	}
	for i := range wrapped {
		altered := bytes.Clone(wrapped)
		altered[i] ^= 1
		if _, err := k.Unwrap(t.Context(), altered, []byte("aad")); !errors.Is(err, keyring.ErrOpen) {
			t.Errorf("byte %d: %v", i, err)
		}
	}
	for _, size := range []int{0, 1, 6145} {
		if _, err := k.Unwrap(t.Context(), make([]byte, size), []byte("aad")); !errors.Is(err, keyring.ErrOpen) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	// Another key of the same account, which these credentials may use, is refused all the same.
	other := newKEK(t, awskms.Config{KeyID: s.CreateKey(), Endpoint: s.URL})
	if _, err := other.Unwrap(t.Context(), wrapped, []byte("aad")); !errors.Is(err, keyring.ErrKEKRefused) {
		t.Errorf("another key: %v", err)
	}
}

func TestAlias(t *testing.T) {
	s, arn, _ := start(t)
	s.SetAlias("alias/bulla", arn)
	k := newKEK(t, awskms.Config{KeyID: "alias/bulla", Region: xtest.Region, Endpoint: s.URL})
	wrapped, err := k.Wrap(t.Context(), []byte("key"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.Unwrap(t.Context(), wrapped, nil); err != nil || string(got) != "key" {
		t.Errorf("%q, %v", got, err)
	}
	s.SetAlias("alias/bulla", s.CreateKey())
	if _, err := k.Unwrap(t.Context(), wrapped, nil); !errors.Is(err, keyring.ErrKEKRefused) || !strings.Contains(err.Error(), "point it back") {
		t.Errorf("after the alias was moved: %v", err)
	}
}

// checkSentence holds for every error that an operator gets to see.
func checkSentence(t *testing.T, err error, call, arn, want string) {
	t.Helper()
	text := err.Error()
	if !strings.HasPrefix(text, call+" with key "+arn+": ") || !strings.Contains(text, want) {
		t.Errorf("error %q, want the call, the key and %q", text, want)
	}
	if strings.Contains(text, "must not be passed on") || strings.ContainsAny(text, "\n\r\x1b") || len(text) > 400 {
		t.Errorf("error %q passes on what came from outside, or is too long", text)
	}
}

func TestFaults(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault xtest.Fault
		class error // nil: it works in the end
		want  string
		calls int
	}{
		{"access denied", xtest.Fault{Code: "AccessDeniedException"}, keyring.ErrKEKRefused, "access denied: allow this role the call", 1},
		{"not found", xtest.Fault{Code: "NotFoundException"}, keyring.ErrKEKRefused, "no such key", 1},
		{"unknown code", xtest.Fault{Code: "WeirdException"}, keyring.ErrKEKRefused, `refuses the request ("WeirdException", request "`, 1},
		{"hostile code", xtest.Fault{Times: 9, Code: "Weird\x1b[31m\n" + strings.Repeat("x", 500)}, keyring.ErrKEKRefused, "refuses the request", 1},
		{"expired", xtest.Fault{Code: "ExpiredTokenException", Times: 9}, keyring.ErrKEKUnavailable, "have expired", 1},
		{"throttled once", xtest.Fault{Code: "ThrottlingException"}, nil, "", 2},
		{"throttled", xtest.Fault{Code: "ThrottlingException", Times: 9}, keyring.ErrKEKUnavailable, "throttled: try again", 3},
		{"500 twice", xtest.Fault{Code: "KMSInternalException", Status: 500, Times: 2}, nil, "", 3},
		{"500", xtest.Fault{Code: "KMSInternalException", Status: 500, Times: 9}, keyring.ErrKEKUnavailable, "AWS KMS has a fault", 3},
		{"503 of a proxy", xtest.Fault{Code: "Overloaded", Status: 503, Times: 9}, keyring.ErrKEKUnavailable, "AWS KMS has a fault", 3},
		{"429", xtest.Fault{Code: "SlowDownThere", Status: 429, Times: 9}, keyring.ErrKEKUnavailable, "AWS KMS has a fault", 1},
		{"dropped once", xtest.Fault{Drop: true}, nil, "", 2},
		{"answer lost", xtest.Fault{Drop: true, After: true}, nil, "", 2},
		{"dropped", xtest.Fault{Drop: true, Times: 9}, keyring.ErrKEKUnavailable, "can't be reached", 3},
		{"cut once", xtest.Fault{Cut: true}, nil, "", 2},
		{"cut", xtest.Fault{Cut: true, After: true, Times: 9}, keyring.ErrKEKUnavailable, "the answer was cut off", 3},
	} {
		for _, op := range []string{"Encrypt", "Decrypt"} {
			t.Run(c.name+"/"+op, func(t *testing.T) {
				t.Parallel()
				s := xtest.Start(t)
				arn := s.CreateKey()
				k := newKEK(t, awskms.Config{KeyID: arn, Endpoint: s.URL})
				wrapped, err := k.Wrap(t.Context(), []byte("key"), []byte("aad"))
				if err != nil {
					t.Fatal(err)
				}
				fault, before := c.fault, len(s.Calls())
				fault.Op = op
				s.Inject(fault)
				if op == "Encrypt" {
					_, err = k.Wrap(t.Context(), []byte("key"), []byte("aad"))
				} else {
					_, err = k.Unwrap(t.Context(), wrapped, []byte("aad"))
				}
				if c.class == nil && err != nil || c.class != nil && !errors.Is(err, c.class) {
					t.Fatalf("error %v, want %v", err, c.class)
				}
				if err != nil {
					checkSentence(t, err, "kms:"+op, arn, c.want)
				}
				if n := len(s.Calls()) - before; n != c.calls {
					t.Errorf("%d calls, want %d", n, c.calls)
				}
			})
		}
	}
}

func TestKeyStates(t *testing.T) {
	s, arn, k := start(t)
	wrapped, err := k.Wrap(t.Context(), []byte("key"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for state, want := range map[types.KeyState]string{
		types.KeyStateDisabled:        "the key is disabled: enable it",
		types.KeyStatePendingDeletion: "its deletion is pending: cancel that",
	} {
		s.SetState(arn, state)
		_, err := k.Unwrap(t.Context(), wrapped, nil)
		if !errors.Is(err, keyring.ErrKEKRefused) {
			t.Fatalf("%s: %v", state, err)
		}
		checkSentence(t, err, "kms:Decrypt", arn, want)
	}
	s.SetState(arn, types.KeyStateEnabled)
	s.SetUsage(arn, types.KeyUsageTypeSignVerify)
	_, err = k.Wrap(t.Context(), []byte("key"), nil)
	if !errors.Is(err, keyring.ErrKEKRefused) {
		t.Fatal(err)
	}
	checkSentence(t, err, "kms:Encrypt", arn, "use a symmetric key")
	missing := strings.TrimSuffix(arn, arn[len(arn)-4:]) + "0000"
	_, err = newKEK(t, awskms.Config{KeyID: missing, Endpoint: s.URL}).Wrap(t.Context(), []byte("key"), nil)
	if !errors.Is(err, keyring.ErrKEKRefused) {
		t.Fatal(err)
	}
	checkSentence(t, err, "kms:Encrypt", missing, "no such key in this account and region")
}

func TestCredentials(t *testing.T) {
	s, arn, k := start(t)
	for name, c := range map[string]aws.CredentialsProvider{
		"wrong secret": credentials.NewStaticCredentialsProvider(xtest.AccessKey, "wrong", ""),
		"unknown key":  credentials.NewStaticCredentialsProvider("AKIAUNKNOWN", xtest.SecretKey, ""),
	} {
		_, err := newKEK(t, awskms.Config{KeyID: arn, Endpoint: s.URL, Credentials: c}).Wrap(t.Context(), []byte("key"), nil)
		if !errors.Is(err, keyring.ErrKEKRefused) {
			t.Fatalf("%s: %v", name, err)
		}
		checkSentence(t, err, "kms:Encrypt", arn, "AWS does not accept the credentials")
	}
	s.SetNow(func() time.Time { return time.Now().Add(time.Hour) })
	_, err := k.Wrap(t.Context(), []byte("key"), nil)
	if !errors.Is(err, keyring.ErrKEKRefused) {
		t.Fatalf("clock an hour off: %v", err)
	}
	checkSentence(t, err, "kms:Encrypt", arn, "this machine's clock")
	none, err := awskms.New(t.Context(), awskms.Config{KeyID: arn, Endpoint: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	_, err = none.Wrap(t.Context(), []byte("key"), nil)
	if !errors.Is(err, keyring.ErrKEKUnavailable) {
		t.Fatalf("no credentials: %v", err)
	}
	checkSentence(t, err, "kms:Encrypt", arn, "no AWS credentials were found")
}

func TestTimeouts(t *testing.T) {
	s, arn, _ := start(t)
	s.Inject(xtest.Fault{Hang: true, Times: 9})
	k := newKEK(t, awskms.Config{KeyID: arn, Endpoint: s.URL, Timeout: 50 * time.Millisecond})
	_, err := k.Wrap(t.Context(), []byte("key"), nil)
	if !errors.Is(err, keyring.ErrKEKUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	checkSentence(t, err, "kms:Encrypt", arn, "no answer in time")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = k.Unwrap(ctx, []byte("x"), nil)
	if !errors.Is(err, keyring.ErrKEKUnavailable) || !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	checkSentence(t, err, "kms:Decrypt", arn, "it was cancelled")
}

func TestServerAway(t *testing.T) {
	_, arn, _ := start(t)
	k := newKEK(t, awskms.Config{KeyID: arn, Endpoint: "http://127.0.0.1:1"})
	_, err := k.Wrap(t.Context(), []byte("key"), nil)
	if !errors.Is(err, keyring.ErrKEKUnavailable) {
		t.Fatal(err)
	}
	checkSentence(t, err, "kms:Encrypt", arn, "can't be reached")
}

func TestConfig(t *testing.T) {
	isolate(t)
	const arn = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	for _, c := range []struct{ name, yaml, want string }{
		{"ARN", "key_id: " + arn, ""},
		{"id and region", "{key_id: 1234abcd-12ab-34cd-56ef-1234567890ab, region: eu-west-1, timeout: 3s}", ""},
		{"alias", "{key_id: alias/bulla, region: eu-west-1, endpoint: 'https://kms.example.org'}", ""},
		{"loopback", "{key_id: alias/bulla, region: eu-west-1, endpoint: 'http://[::1]:1'}", ""},
		{"nothing", "{}", `key_id "" is none`},
		{"control character", `key_id: "a\nb"`, `key_id "a\nb" is none`},
		{"not KMS", "key_id: arn:aws:s3:::bucket", "is none: give the key's ARN"},
		{"no region", "key_id: alias/bulla", "no region: set aws_kms.region"},
		{"two regions", "{key_id: '" + arn + "', region: eu-west-1}", `is in region "eu-central-1", region says "eu-west-1"`},
		{"cleartext", "{key_id: '" + arn + "', endpoint: 'http://kms.example.org'}", "is not https: the key would travel in the clear"},
		{"localhost by name", "{key_id: '" + arn + "', endpoint: 'http://localhost:1'}", "is not https"},
		{"other scheme", "{key_id: '" + arn + "', endpoint: 'unix:///x'}", "aws_kms: endpoint"},
		{"password in it", "{key_id: '" + arn + "', endpoint: 'https://u:secret@x'}", "endpoint is no URL"},
		{"negative", "{key_id: '" + arn + "', timeout: -1s}", "timeout -1s is negative"},
		{"all at once", "{endpoint: 'x', timeout: -1s}", "aws_kms: endpoint is no URL"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var config awskms.Config
			if err := strictyaml.Decode("c.yaml", []byte(c.yaml), &config); err != nil {
				t.Fatal(err)
			}
			_, err := awskms.New(t.Context(), config)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret@") {
				t.Errorf("the password is shown: %v", err)
			}
		})
	}
}

// The whole ring under KMS: one call to open it, none to use it, and a move from a file to KMS and back.
func TestRingUnderKMS(t *testing.T) {
	s, _, k := start(t)
	c := keyring.Config{Path: filepath.Join(t.TempDir(), "keyset"), KEK: k, Create: true}
	r, err := keyring.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	// A ring far beyond what KMS encrypts at once.
	for range 60 {
		if err := r.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ct, err := r.Seal(keyring.PurposeSecret, []byte("v"), nil)
	if err != nil {
		t.Fatal(err)
	}
	before := len(s.Calls())
	again, err := keyring.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if got, err := again.Open(keyring.PurposeSecret, ct, nil); err != nil || string(got) != "v" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if calls := s.Calls()[before:]; !slices.Equal(calls, []string{"Decrypt"}) {
		t.Errorf("calls to open and use a ring: %v", calls)
	}
	file, err := keyring.CreateFileKEK(filepath.Join(t.TempDir(), "kek"))
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Rewrap(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	if _, err := keyring.Open(t.Context(), c); !errors.Is(err, keyring.ErrWrongKEK) {
		t.Errorf("still opens with KMS: %v", err)
	}
	if err := again.Rewrap(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	if back, err := keyring.Open(t.Context(), c); err != nil || len(back.Keys()) != 61 {
		t.Errorf("after the way back: %v", err)
	}
}

// Whatever KMS does while a ring is made, rotated or rewrapped, the file is one that opens, or none.
func TestRingSurvivesEveryFault(t *testing.T) {
	for _, op := range []string{"Encrypt", "Decrypt"} {
		for name, fault := range map[string]xtest.Fault{
			"denied": {Code: "AccessDeniedException"}, "500": {Code: "KMSInternalException", Status: 500, Times: 3},
			"cut": {Cut: true, After: true, Times: 3}, "answers lost": {Drop: true, After: true, Times: 3},
		} {
			t.Run(op+"/"+name, func(t *testing.T) {
				t.Parallel()
				s := xtest.Start(t)
				k := newKEK(t, awskms.Config{KeyID: s.CreateKey(), Endpoint: s.URL})
				c := keyring.Config{Path: filepath.Join(t.TempDir(), "keyset"), KEK: k, Create: true}
				fault.Op = op
				s.Inject(fault)
				if _, err := keyring.Open(t.Context(), c); err == nil {
					t.Fatal("a ring was made in spite of the fault")
				}
				r, err := keyring.Open(t.Context(), c)
				if err != nil {
					t.Fatal(err)
				}
				s.Inject(fault)
				if err := r.Rotate(t.Context()); err == nil || len(r.Keys()) != 1 {
					t.Fatalf("rotated in spite of the fault: %v", err)
				}
				s.Inject(fault)
				if err := r.Rewrap(t.Context(), k); err == nil {
					t.Fatal("rewrapped in spite of the fault")
				}
				if again, err := keyring.Open(t.Context(), c); err != nil || len(again.Keys()) != 1 {
					t.Fatal(err)
				}
			})
		}
	}
}
