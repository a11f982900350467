package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
)

// The checks that a refusal can name.
const (
	checkIdentity    = "identity"
	checkNonce       = "nonce"
	checkProof       = "proof"
	checkInstance    = "instance"
	checkRequest     = "request"
	checkLimit       = "limit"
	checkAttestation = "attestation"
	checkPolicy      = "policy"
	checkSession     = "session"
	checkReceipt     = "receipt"
	checkLedger      = "ledger"
	checkGrade       = "grade"
	checkFactor      = "factor"
	checkRound       = "round"
)

// constantDenial is all that a caller whom no grant covers is told, besides a support id: the same for a
// secret that is denied and one that does not exist.
const constantDenial = "denied"

// refusal is an answer that is not what the caller asked for. It holds nothing that the caller may not see.
type refusal struct {
	code     codes.Code
	text     string
	check    string
	decision string
	reasons  []string
	requires json.RawMessage
	support  string
	nonce    []byte
	cause    error // of the ledger, for callers inside; it never leaves
}

func (r *refusal) Error() string { return r.check + ": " + r.text }

func (r *refusal) Unwrap() error { return r.cause }

// twice calls f, and once more when what its decision relied on changed before the commit.
func twice[T any](f func() (T, error)) (T, error) {
	out, err := f()
	if errors.Is(err, ledger.ErrPrecondition) {
		return f()
	}
	return out, err
}

// GRPCStatus makes the refusal a gRPC status with a bulla.v1.Refusal detail.
func (r *refusal) GRPCStatus() *status.Status {
	st := status.New(r.code, r.text)
	detailed, err := st.WithDetails(&bullav1.Refusal{
		Decision: r.decision, Reasons: r.reasons, Requires: r.requires, SupportId: r.support, Check: r.check, NextNonce: r.nonce,
	})
	if err != nil {
		return st
	}
	return detailed
}

func refuse(code codes.Code, check, format string, args ...any) *refusal {
	return &refusal{code: code, check: check, text: fmt.Sprintf(format, args...)}
}

// ledgerCodes maps the ledger's outcomes to gRPC; what is not listed is UNAVAILABLE, since then nothing is
// known to be durable.
var ledgerCodes = []struct {
	err  error
	code codes.Code
	text string
}{
	{ledger.ErrPrecondition, codes.Aborted, "what the decision relied on changed twice while it was made: try again"},
	{ledger.ErrLimit, codes.ResourceExhausted, "the policy's limit for this window is reached: try again later"},
	{ledger.ErrTransition, codes.FailedPrecondition, "the state does not allow this any more"},
	{ledger.ErrDuplicateRequest, codes.AlreadyExists, "this request id was used before"},
	{ledger.ErrNotFound, codes.NotFound, "not found"},
	{ledger.ErrErased, codes.NotFound, "erased"},
	{context.Canceled, codes.Canceled, "the caller went away"},
	{context.DeadlineExceeded, codes.DeadlineExceeded, "it took too long"},
}

// fromLedger makes a refusal of an error of the ledger; its text goes to the log, not to the caller.
func fromLedger(err error) *refusal {
	for _, m := range ledgerCodes {
		if errors.Is(err, m.err) {
			r := refuse(m.code, checkLedger, "%s", m.text)
			r.cause = err
			return r
		}
	}
	return refuse(codes.Unavailable, checkLedger, "the ledger can't record now, so nothing is released: try again, and see the broker's log")
}
