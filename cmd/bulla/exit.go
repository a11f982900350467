package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/bulla-project/bulla/attest/tpm/device"
	"github.com/bulla-project/bulla/attest/tsm"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/envelope/split"
)

// The exit codes. Scripts rely on them.
const (
	exitDone         = 0
	exitFailed       = 1
	exitUsage        = 2
	exitDenied       = 3
	exitUnavailable  = 4
	exitVerification = 5
)

// usageError says that the command line, or the environment that belongs to it, can't work as it stands.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usage(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// reported ends a command whose answer has been printed already, and says how it went.
type reported struct{ code int }

func (e *reported) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// answered is an error for which there is an answer of its own in JSON.
type answered struct {
	error
	answer any
}

func (e *answered) Unwrap() error { return e.error }

// outcome is what a kind of error means for the exit code, and what a person can do about it.
type outcome struct {
	err  error
	code int
	hint string
}

// seeDoctor ends a hint, unless the doctor gives it.
const seeDoctor = "See `bulla doctor`"

// outcomes are tried in this order: what is wrapped deeper in an error may be of another kind.
func outcomes() []outcome {
	return []outcome{
		{split.ErrInvalid, exitUsage, ""},
		{split.ErrMalformed, exitVerification, "it is damaged, or another kind of file"},
		{split.ErrShare, exitVerification, "get that share again from its holder, or use another holder's"},
		{split.ErrTooFew, exitFailed, "name more share files"},
		{split.ErrCrypto, exitVerification, "nothing of it was used"},
		{client.ErrReceipt, exitFailed, "get it again: the session that was opened for it ends by itself"},
		{context.Canceled, exitFailed, ""},
		{client.ErrNotAuthentic, exitVerification, ""},
		{client.ErrProxied, exitFailed, "use `bulla sign`, verify, mac, encrypt or decrypt; `bulla get --public` prints a public key"},
		{client.ErrVerification, exitVerification, "nothing of it was used; compare the broker's address and SPIFFE ID with what its operator gave you"},
		{proofs.ErrVerification, exitVerification, "keep it as it is, and get the log's key and a checkpoint in another way to compare with"},
		{client.ErrConfig, exitUsage, seeDoctor},
		{certs.ErrConfig, exitUsage, seeDoctor},
		{device.ErrAddress, exitUsage, "a TPM's address is unix:PATH or device:PATH, such as device:/dev/tpmrm0"},
		{proofs.ErrWitnessKey, exitUsage, "the key of a witness is one line, NAME+HASH+KEY, that its operator publishes"},
		{proofs.ErrKey, exitUsage, "the log's key is the file log.pub that the broker writes"},
		{client.ErrDenied, exitDenied, "ask again, when those who have to take part can: they find it with `bulla share list`"},
		{client.ErrNotFound, exitFailed, ""},
		{client.ErrEnded, exitFailed, ""},
		{client.ErrInvalid, exitFailed, ""},
		{certs.ErrNoIdentity, exitUnavailable, "is there a registration entry for this process? " + seeDoctor},
		{certs.ErrUnavailable, exitUnavailable, "is the SPIRE agent, or `bulla dev`, running behind SPIFFE_ENDPOINT_SOCKET? " + seeDoctor},
		{certs.ErrUnexpectedID, exitUnavailable, "somebody else answers at this address: set BULLA_SERVER_ID to the broker's SPIFFE ID"},
		{certs.ErrExpired, exitUnavailable, "compare the clocks of both machines. " + seeDoctor},
		{certs.ErrNotYetValid, exitUnavailable, "compare the clocks of both machines. " + seeDoctor},
		{certs.ErrUntrusted, exitUnavailable, seeDoctor},
		{device.ErrUnavailable, exitUnavailable, "is BULLA_TPM the address of a TPM that this user may use? " + seeDoctor},
		{tsm.ErrUnavailable, exitUnavailable, "is this a confidential machine, and BULLA_TSM a directory of reports that this user may use? " + seeDoctor},
		{errTimeout, exitUnavailable, "raise --timeout. " + seeDoctor},
		{context.DeadlineExceeded, exitUnavailable, "raise --timeout. " + seeDoctor},
		{client.ErrUnavailable, exitUnavailable, "is the broker running? " + seeDoctor},
	}
}

// judge returns what an error means.
func judge(err error) outcome {
	var wrong *usageError
	if errors.As(err, &wrong) {
		return outcome{err, exitUsage, ""}
	}
	var refused *client.Refusal
	if errors.As(err, &refused) && !errors.Is(err, client.ErrReceipt) {
		switch {
		case refused.Decision != "" || refused.Code == codes.PermissionDenied:
			return outcome{err, exitDenied, denialHint(refused)}
		case refused.Code == codes.Canceled || refused.Code == codes.Internal || refused.Code == codes.Unknown:
			return outcome{err, exitFailed, ""}
		case refused.Code == codes.DeadlineExceeded:
			return outcome{err, exitUnavailable, "raise --timeout. " + seeDoctor}
		}
	}
	for _, o := range outcomes() {
		if errors.Is(err, o.err) {
			return o
		}
	}
	return outcome{err, exitFailed, ""}
}

// denialHint says what would help against a denial, as far as the caller was told.
func denialHint(r *client.Refusal) string {
	var want struct {
		Attestation *struct{} `json:"attestation"`
		Factor      *struct{} `json:"factor"`
		Approval    *struct{} `json:"approval"`
	}
	_ = json.Unmarshal(r.Requires, &want) // what is not understood is printed as it is
	switch {
	case want.Factor != nil:
		return "the policy wants a further factor for this identity"
	case want.Approval != nil:
		return "the policy wants somebody else's approval: see `bulla share --help`"
	case want.Attestation != nil:
		return "the policy wants a fresh attestation of a device that is enrolled for this identity: set BULLA_TPM to a TPM's address"
	case len(r.Reasons) == 0 && r.SupportID != "":
		return "an auditor of the broker sees how it came about with `bulla session replay " + show.Text(r.SupportID) + " --explain`"
	}
	return ""
}

// denial is a denied request in JSON.
type denial struct {
	Decision  string          `json:"decision"`
	Reasons   []string        `json:"reasons"`
	Requires  json.RawMessage `json:"requires"`
	SupportID string          `json:"support_id"`
}

func newDenial(r *client.Refusal) denial {
	d := denial{Decision: r.Decision, Reasons: r.Reasons, Requires: r.Requires, SupportID: r.SupportID}
	if d.Decision == "" {
		d.Decision = "DENY"
	}
	if d.Reasons == nil {
		d.Reasons = []string{}
	}
	if len(d.Requires) == 0 || !json.Valid(d.Requires) {
		d.Requires = json.RawMessage("null")
	}
	return d
}

// failure is any other error in JSON.
type failure struct {
	Error    string `json:"error"`
	ExitCode int    `json:"exit_code"`
}

// finish says what went wrong, if anything did, and returns the exit code.
func (a *app) finish(err error) int {
	if err == nil {
		return exitDone
	}
	var done *reported
	if errors.As(err, &done) {
		return done.code
	}
	o := judge(err)
	fmt.Fprintf(a.stderr, "bulla: %s\n", show.Lines(sentence(err)))
	var refused *client.Refusal
	denied := o.code == exitDenied && errors.As(err, &refused)
	if denied && len(refused.Requires) > 0 {
		fmt.Fprintf(a.stderr, "  it would take: %s\n", show.Text(string(refused.Requires)))
	}
	if o.hint != "" {
		fmt.Fprintf(a.stderr, "  %s\n", o.hint)
	}
	if !a.json() {
		return o.code
	}
	var answer any = failure{sentence(err), o.code}
	var own *answered
	switch {
	case denied:
		answer = newDenial(refused)
	case errors.As(err, &own):
		answer = own.answer
	}
	if err := show.JSON(a.stdout, answer); err != nil {
		fmt.Fprintf(a.stderr, "bulla: write the answer: %s\n", show.Text(err.Error()))
	}
	return o.code
}

// sentence is an error's text without words that only its programmer needs.
func sentence(err error) string {
	text := err.Error()
	if errors.Is(err, context.Canceled) {
		return "interrupted"
	}
	if errors.Is(err, context.DeadlineExceeded) { // the server's end of the time was the first to be heard of
		text = strings.ReplaceAll(text, "stream terminated by RST_STREAM with error code: CANCEL", errTimeout.Error())
	}
	return strings.NewReplacer("certs: ", "", context.DeadlineExceeded.Error(), errTimeout.Error()).Replace(text)
}
