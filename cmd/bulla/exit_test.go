package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/bulla-project/bulla/attest/tpm/device"
	"github.com/bulla-project/bulla/attest/tsm"
	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/client"
)

// TestExitCodes says for every kind of error what scripts get.
func TestExitCodes(t *testing.T) {
	refusal := func(code codes.Code, decision string) error { return &client.Refusal{Code: code, Decision: decision} }
	for _, c := range []struct {
		err  error
		code int
	}{
		{usage("x"), exitUsage},
		{client.ErrConfig, exitUsage},
		{certs.ErrConfig, exitUsage},
		{device.ErrAddress, exitUsage},
		{proofs.ErrKey, exitUsage},
		{refusal(codes.PermissionDenied, "DENY"), exitDenied},
		{refusal(codes.PermissionDenied, ""), exitDenied},
		{refusal(codes.PermissionDenied, "STEP_UP"), exitDenied},
		{refusal(codes.FailedPrecondition, "STEP_UP"), exitDenied},
		{refusal(codes.NotFound, ""), exitFailed},
		{refusal(codes.InvalidArgument, ""), exitFailed},
		{refusal(codes.AlreadyExists, ""), exitFailed},
		{refusal(codes.FailedPrecondition, ""), exitFailed},
		{refusal(codes.Internal, ""), exitFailed},
		{refusal(codes.Canceled, ""), exitFailed},
		{refusal(codes.Unavailable, ""), exitUnavailable},
		{refusal(codes.Unauthenticated, ""), exitUnavailable},
		{refusal(codes.ResourceExhausted, ""), exitUnavailable},
		{refusal(codes.DeadlineExceeded, ""), exitUnavailable},
		{client.ErrNotFound, exitFailed},
		{client.ErrEnded, exitFailed},
		{client.ErrInvalid, exitFailed},
		{client.ErrUnavailable, exitUnavailable},
		{certs.ErrUnavailable, exitUnavailable},
		{certs.ErrNoIdentity, exitUnavailable},
		{certs.ErrUntrusted, exitUnavailable},
		{certs.ErrUnexpectedID, exitUnavailable},
		{certs.ErrExpired, exitUnavailable},
		{certs.ErrNotYetValid, exitUnavailable},
		{device.ErrUnavailable, exitUnavailable},
		{tsm.ErrUnavailable, exitUnavailable},
		{context.DeadlineExceeded, exitUnavailable},
		{errTimeout, exitUnavailable},
		{context.Canceled, exitFailed},
		{client.ErrVerification, exitVerification},
		{proofs.ErrVerification, exitVerification},
		{&audit.Fault{What: "x"}, exitVerification},
		// The policy demands the receipt, and the broker was away: the delivery failed.
		{fmt.Errorf("%w: %w", client.ErrReceipt, client.ErrUnavailable), exitFailed},
		{fmt.Errorf("%w: %w", client.ErrReceipt, refusal(codes.PermissionDenied, "DENY")), exitFailed},
		{errors.New("anything else"), exitFailed},
		{&reported{7}, 7},
		{nil, exitDone},
	} {
		wrapped := c.err
		if wrapped != nil {
			wrapped = fmt.Errorf("do it: %w", c.err)
		}
		for _, output := range []string{outputText, outputJSON} {
			var stdout, stderr bytes.Buffer
			a := &app{stdout: &stdout, stderr: &stderr, output: output}
			if got := a.finish(wrapped); got != c.code {
				t.Errorf("%v: exit code %d, want %d", c.err, got, c.code)
			}
			if output == outputText && stdout.Len() > 0 || stdout.Len() > 0 && !json.Valid(stdout.Bytes()) {
				t.Errorf("%v: stdout has %q", c.err, stdout.String())
			}
			var silent *reported
			if c.err != nil && !errors.As(c.err, &silent) && !strings.HasPrefix(stderr.String(), "bulla: ") {
				t.Errorf("%v: stderr has %q", c.err, stderr.String())
			}
		}
	}
}

// When the time is up, it is chance whether this side or the server's reset of the call is heard of first.
func TestTimeoutsReadTheSame(t *testing.T) {
	for _, text := range []string{"context deadline exceeded", "stream terminated by RST_STREAM with error code: CANCEL"} {
		var stderr bytes.Buffer
		a := &app{stdout: &bytes.Buffer{}, stderr: &stderr}
		code := a.finish(fmt.Errorf("do it: %w", &client.Refusal{Code: codes.DeadlineExceeded, Text: text}))
		if want := "bulla: do it: no answer in time\n"; code != exitUnavailable || !strings.HasPrefix(stderr.String(), want) {
			t.Errorf("%s: exit code %d, %q; want %q", text, code, stderr.String(), want)
		}
	}
}

func TestDenialInJSON(t *testing.T) {
	var stdout, stderr bytes.Buffer
	a := &app{stdout: &stdout, stderr: &stderr, output: outputJSON}
	code := a.finish(fmt.Errorf("get x: %w", &client.Refusal{
		Decision: "STEP_UP", Reasons: []string{"a \x1b[31mreason"}, Requires: json.RawMessage(`{"attestation":{"max_age_seconds":300}}`),
		SupportID: "id", Text: "denied", Code: codes.PermissionDenied,
	}))
	want := `{
  "decision": "STEP_UP",
  "reasons": [
    "a \u001b[31mreason"
  ],
  "requires": {
    "attestation": {
      "max_age_seconds": 300
    }
  },
  "support_id": "id"
}
`
	if code != exitDenied || stdout.String() != want {
		t.Errorf("exit code %d, stdout %s", code, stdout.String())
	}
	for _, needed := range []string{`a \x1b[31mreason`, "max_age_seconds", "support id id", "BULLA_TPM"} {
		if !strings.Contains(stderr.String(), needed) {
			t.Errorf("stderr lacks %q: %s", needed, stderr.String())
		}
	}
	if strings.Contains(stderr.String(), "\x1b") {
		t.Errorf("stderr has an escape character: %q", stderr.String())
	}

	stdout.Reset()
	a.finish(&client.Refusal{Code: codes.PermissionDenied, Text: "denied", SupportID: "id", Requires: json.RawMessage("{broken")})
	var constant map[string]any
	if err := json.Unmarshal(stdout.Bytes(), &constant); err != nil || constant["decision"] != "DENY" || constant["requires"] != nil || len(constant["reasons"].([]any)) != 0 {
		t.Errorf("constant denial: %s, %v", stdout.String(), err)
	}
}
