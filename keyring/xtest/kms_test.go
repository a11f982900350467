package xtest_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/bulla-project/bulla/keyring/xtest"
	alltest "github.com/bulla-project/bulla/test/xtest"
)

func client(s *xtest.Server) *kms.Client {
	return kms.New(kms.Options{Region: xtest.Region, BaseEndpoint: aws.String(s.URL), Credentials: xtest.Credentials()})
}

func TestSDK(t *testing.T) {
	s := xtest.Start(t)
	arn := s.CreateKey()
	k := client(s)
	context := map[string]string{"b": "2", "a": "1", "ü": "\""}
	sealed, err := k.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &arn, Plaintext: []byte{0, 0xFF}, EncryptionContext: context})
	if err != nil {
		t.Fatal(err)
	}
	opened, err := k.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob, EncryptionContext: context})
	if err != nil || !bytes.Equal(opened.Plaintext, []byte{0, 0xFF}) || aws.ToString(opened.KeyId) != arn {
		t.Errorf("%+v, %v", opened, err)
	}
	var invalid *types.InvalidCiphertextException
	if _, err := k.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob}); !errors.As(err, &invalid) {
		t.Errorf("without the context: %v", err)
	}
	about, err := k.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &arn})
	if err != nil || !about.KeyMetadata.Enabled || aws.ToString(about.KeyMetadata.Arn) != arn {
		t.Errorf("%+v, %v", about, err)
	}
	var missing *types.NotFoundException
	if _, err := k.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: aws.String("alias/none")}); !errors.As(err, &missing) {
		t.Errorf("unknown alias: %v", err)
	}
	if _, err := k.ListKeys(t.Context(), &kms.ListKeysInput{}); err == nil {
		t.Error("an operation that the fake does not know is answered")
	}
}

// signedRequest is a good Encrypt, made by hand.
func signedRequest(t *testing.T, s *xtest.Server, arn, extra string) *http.Request {
	t.Helper()
	body := `{"KeyId":"` + arn + `","Plaintext":"AAAA"` + extra + `}`
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Amz-Target", "TrentService.Encrypt")
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	sign(t, r, body)
	return r
}

func TestSignatureIsChecked(t *testing.T) {
	s := xtest.Start(t)
	arn := s.CreateKey()
	for name, c := range map[string]struct {
		change func(r *http.Request)
		want   int
	}{
		"as signed":      {func(*http.Request) {}, 200},
		"another target": {func(r *http.Request) { r.Header.Set("X-Amz-Target", "TrentService.Decrypt") }, 400},
		"another body":   {func(r *http.Request) { setBody(r, `{"KeyId":"`+arn+`","Plaintext":"AAAB"}`) }, 400},
		"another date": {func(r *http.Request) {
			r.Header.Set("X-Amz-Date", time.Now().UTC().Add(time.Minute).Format("20060102T150405Z"))
		}, 400},
		"another path":    {func(r *http.Request) { r.URL.Path = "/x" }, 400},
		"no signature":    {func(r *http.Request) { r.Header.Del("Authorization") }, 400},
		"another scheme":  {func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") }, 400},
		"another region":  {func(r *http.Request) { inAuthorization(r, xtest.Region, "us-east-1") }, 400},
		"another service": {func(r *http.Request) { inAuthorization(r, "/kms/", "/sts/") }, 400},
		"unsigned target": {func(r *http.Request) { inAuthorization(r, ";x-amz-target", "") }, 400},
		"flipped": {func(r *http.Request) {
			a := r.Header.Get("Authorization")
			last := map[bool]string{true: "1", false: "0"}[strings.HasSuffix(a, "0")]
			r.Header.Set("Authorization", a[:len(a)-1]+last)
		}, 400},
	} {
		t.Run(name, func(t *testing.T) {
			r := signedRequest(t, s, arn, "")
			c.change(r)
			if got := status(t, r); got != c.want {
				t.Errorf("status %d, want %d", got, c.want)
			}
		})
	}
	if got := status(t, signedRequest(t, s, arn, `,"Unknown":1`)); got != 400 {
		t.Errorf("a field that AWS does not know: status %d", got)
	}
}

func inAuthorization(r *http.Request, old, new string) {
	r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), old, new, 1))
}

func setBody(r *http.Request, body string) {
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
}

func status(t *testing.T, r *http.Request) int {
	t.Helper()
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // nothing depends on it
	return resp.StatusCode
}

// boto is a client that shares no code with the SDK for Go.
const boto = `
import sys, boto3
from botocore.config import Config
url, arn, region, access, secret = sys.argv[1:]
def client(secret):
    return boto3.client("kms", region_name=region, endpoint_url=url, aws_access_key_id=access,
        aws_secret_access_key=secret, config=Config(retries={"max_attempts": 1}))
k = client(secret)
blob = k.encrypt(KeyId=arn, Plaintext=b"\x00\xff", EncryptionContext={"b": "2", "a": "1"})["CiphertextBlob"]
out = k.decrypt(KeyId=arn, CiphertextBlob=blob, EncryptionContext={"a": "1", "b": "2"})
assert out["Plaintext"] == b"\x00\xff" and out["KeyId"] == arn, out
try:
    k.decrypt(CiphertextBlob=blob)
    raise SystemExit("opened without its context")
except k.exceptions.InvalidCiphertextException:
    pass
meta = k.describe_key(KeyId=arn)["KeyMetadata"]
assert meta["Enabled"] and meta["KeyState"] == "Enabled", meta
try:
    client("wrong").describe_key(KeyId=arn)
    raise SystemExit("accepted a wrong secret")
except Exception as e:
    assert e.response["Error"]["Code"] == "InvalidSignatureException", e
print("done")
`

func TestBoto3(t *testing.T) {
	alltest.Need(t, "python3")
	if exec.CommandContext(t.Context(), "python3", "-c", "import boto3").Run() != nil {
		alltest.Lack(t, "python3-boto3")
	}
	s := xtest.Start(t)
	cmd := exec.CommandContext(t.Context(), "python3", "-c", boto, s.URL, s.CreateKey(), xtest.Region, xtest.AccessKey, xtest.SecretKey)
	cmd.Env = append(cmd.Environ(), "AWS_CONFIG_FILE=/nonexistent", "AWS_EC2_METADATA_DISABLED=true", "NO_PROXY=*", "no_proxy=*")
	if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "done" {
		t.Errorf("%v:\n%s", err, out)
	}
}

func sign(t *testing.T, r *http.Request, body string) {
	t.Helper()
	c, err := xtest.Credentials().Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(body))
	if err := v4.NewSigner().SignHTTP(t.Context(), c, r, hex.EncodeToString(sum[:]), "kms", xtest.Region, time.Now()); err != nil {
		t.Fatal(err)
	}
}
