package awsfake

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	algorithm = "AWS4-HMAC-SHA256"
	dateForm  = "20060102T150405Z"
	maxSkew   = 15 * time.Minute
)

// authenticate checks a request's Signature Version 4 by signing what arrived again.
func authenticate(r *http.Request, service string, body []byte, now time.Time) error {
	header, ok := strings.CutPrefix(r.Header.Get("Authorization"), algorithm+" ")
	if !ok {
		return Refuse("MissingAuthenticationTokenException", "Missing Authentication Token")
	}
	fields := map[string]string{}
	for field := range strings.SplitSeq(header, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		fields[name] = value
	}
	scope := strings.Split(fields["Credential"], "/")
	if len(scope) != 5 || scope[4] != "aws4_request" {
		return Refuse("IncompleteSignature", "no credential scope")
	}
	if scope[0] != AccessKey {
		return Refuse("UnrecognizedClientException", "The security token included in the request is invalid.")
	}
	date, err := time.Parse(dateForm, r.Header.Get("X-Amz-Date"))
	if err != nil || date.Before(now.Add(-maxSkew)) || date.After(now.Add(maxSkew)) {
		return Refuse("InvalidSignatureException", "Signature expired")
	}
	signed := strings.Split(fields["SignedHeaders"], ";")
	if scope[2] != Region || scope[3] != service || !slices.Contains(signed, "host") || !slices.Contains(signed, "x-amz-target") {
		return Refuse("InvalidSignatureException", "Credential should be scoped to a valid region and service.")
	}
	again, err := signAgain(r, service, body, signed, date)
	if err != nil || subtle.ConstantTimeCompare([]byte(again), []byte(fields["Signature"])) != 1 {
		return Refuse("InvalidSignatureException", "The request signature we calculated does not match the signature you provided.")
	}
	return nil
}

// signAgain returns the signature that the request must have, over the headers that it says are signed.
func signAgain(r *http.Request, service string, body []byte, signed []string, date time.Time) (string, error) {
	q := r.Clone(context.Background())
	q.Header, q.ContentLength = http.Header{}, 0
	q.URL.Host, q.Host = r.Host, r.Host
	for _, name := range signed {
		switch name {
		case "host":
		case "content-length":
			q.ContentLength = int64(len(body))
		default:
			q.Header[http.CanonicalHeaderKey(name)] = r.Header.Values(name)
		}
	}
	sum := sha256.Sum256(body)
	c := aws.Credentials{AccessKeyID: AccessKey, SecretAccessKey: SecretKey}
	if err := v4.NewSigner().SignHTTP(context.Background(), c, q, hex.EncodeToString(sum[:]), service, Region, date); err != nil {
		return "", err
	}
	_, signature, _ := strings.Cut(q.Header.Get("Authorization"), "Signature=")
	return signature, nil
}
