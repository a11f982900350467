package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/secret/keys"
)

// What a caller can tell apart with errors.Is. A Refusal is one of the first four as well.
var (
	// ErrDenied: the policy does not permit it, or wants more than this client can show.
	ErrDenied = errors.New("denied")
	// ErrNotFound: there is no such thing, and the caller may know that.
	ErrNotFound = errors.New("not found")
	// ErrUnavailable: the broker could not be reached, or can't serve now. Trying again may help.
	ErrUnavailable = errors.New("unavailable")
	// ErrInvalid: the broker can't accept the request as it is.
	ErrInvalid = errors.New("invalid request")
	// ErrEnded: the session or the secret is over: expired, revoked, used up or closed.
	ErrEnded = errors.New("session has ended")
	// ErrVerification: what the broker sent does not verify. Nothing of it was used.
	ErrVerification = errors.New("verification failed")
	// ErrConfig: the configuration can't work as it stands.
	ErrConfig = errors.New("configuration")
	// ErrProxied: there is no value to use, since the key never leaves the broker.
	ErrProxied = errors.New("the key never leaves the broker: it signs, verifies, MACs, encrypts or decrypts there")
	// ErrNotAuthentic: a signature, MAC or ciphertext is not of this key, or not of this input. It counted as a use.
	ErrNotAuthentic = keys.ErrNotAuthentic
	// ErrReceipt: the envelope was opened, but its receipt could not be handed in.
	ErrReceipt = errors.New("receipt not acknowledged")
)

// Refusal is an answer of the broker that is not what was asked for.
type Refusal struct {
	Decision  string          // DENY or STEP_UP; "" where no policy was asked
	Reasons   []string        // for callers whom a grant covers
	Requires  json.RawMessage // what would satisfy the policy; nil: nothing would
	SupportID string          // names the event in the ledger
	Check     string          // the check that failed
	Text      string
	Code      codes.Code
}

// Error names the check that failed, the reasons as far as they may be known, and the support id.
func (r *Refusal) Error() string {
	var b strings.Builder
	b.WriteString(r.Text)
	if r.Decision == "STEP_UP" {
		b.WriteString(": the policy wants more than was shown")
	}
	if len(r.Reasons) > 0 {
		fmt.Fprintf(&b, ": %s", strings.Join(r.Reasons, "; "))
	}
	if r.SupportID != "" {
		fmt.Fprintf(&b, " (support id %s)", r.SupportID)
	}
	return b.String()
}

// Is makes a Refusal one of the package's sentinels, or the context's error, by its code.
func (r *Refusal) Is(target error) bool {
	switch r.Code {
	case codes.PermissionDenied:
		return target == ErrDenied
	case codes.NotFound:
		return target == ErrNotFound
	case codes.FailedPrecondition:
		return target == ErrEnded
	case codes.InvalidArgument, codes.AlreadyExists, codes.Unimplemented, codes.OutOfRange:
		return target == ErrInvalid
	case codes.Canceled:
		return target == ErrUnavailable || target == context.Canceled
	case codes.DeadlineExceeded:
		return target == ErrUnavailable || target == context.DeadlineExceeded
	default:
		return target == ErrUnavailable
	}
}

// requirement is the part of Requires that this client can satisfy by itself.
type requirement struct {
	Attestation *struct {
		Kinds []string `json:"kinds"`
	} `json:"attestation"`
	Factor *struct {
		Level string `json:"level"`
	} `json:"factor"`
	Approval json.RawMessage `json:"approval"`
}

// attestable says whether the policy wants an attestation of this kind.
func (r *Refusal) attestable(kind string) bool {
	var want requirement
	if r.Decision != "STEP_UP" || json.Unmarshal(r.Requires, &want) != nil || want.Attestation == nil || want.Approval != nil {
		return false
	}
	if len(want.Attestation.Kinds) == 0 {
		return true
	}
	for _, k := range want.Attestation.Kinds {
		if k == kind {
			return true
		}
	}
	return false
}

// approvable says whether approvals, and nothing else, would satisfy the policy.
func (r *Refusal) approvable() bool {
	var want requirement
	return r.Decision == "STEP_UP" && json.Unmarshal(r.Requires, &want) == nil && want.Approval != nil && want.Factor == nil && want.Attestation == nil
}

// FromStatus makes a Refusal of a gRPC error, or returns err where it is none. Conn's services give such
// errors.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	r := &Refusal{Text: st.Message(), Code: st.Code()}
	for _, d := range st.Details() {
		if detail, ok := d.(*bullav1.Refusal); ok {
			r.Decision, r.Reasons, r.Requires = detail.GetDecision(), detail.GetReasons(), detail.GetRequires()
			r.SupportID, r.Check = detail.GetSupportId(), detail.GetCheck()
			if len(r.Requires) == 0 {
				r.Requires = nil
			}
		}
	}
	return r
}

// nextNonce is the nonce that came with a refusal.
func nextNonce(err error) []byte {
	st, ok := status.FromError(err)
	if !ok {
		return nil
	}
	for _, d := range st.Details() {
		if detail, ok := d.(*bullav1.Refusal); ok {
			return detail.GetNextNonce()
		}
	}
	return nil
}
