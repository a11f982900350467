package awskms

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/bulla-project/bulla/keyring"
)

// verdict is what an error code of KMS means to the keyring, and what to do about it.
type verdict struct {
	class error
	say   string
}

// verdictOf knows the codes that an operator can act on, or that are worth waiting for.
func verdictOf(code string) (verdict, bool) {
	switch code {
	case "AccessDeniedException":
		return verdict{keyring.ErrKEKRefused, "access denied: allow this role the call in the key's policy and in its IAM policy"}, true
	case "NotFoundException":
		return verdict{keyring.ErrKEKRefused, "no such key in this account and region: check key_id and region"}, true
	case "DisabledException":
		return verdict{keyring.ErrKEKRefused, "the key is disabled: enable it in KMS"}, true
	case "KMSInvalidStateException":
		return verdict{keyring.ErrKEKRefused, "the key's state does not allow it, perhaps its deletion is pending: cancel that in KMS at once"}, true
	case "IncorrectKeyException":
		return verdict{keyring.ErrKEKRefused, "it was wrapped by another key: if key_id is an alias, point it back"}, true
	case "InvalidKeyUsageException":
		return verdict{keyring.ErrKEKRefused, "the key is not for encryption: use a symmetric key of usage ENCRYPT_DECRYPT"}, true
	case "InvalidCiphertextException":
		return verdict{keyring.ErrOpen, "the wrapped key is not one of this key, or was altered"}, true
	case "UnrecognizedClientException", "InvalidClientTokenId", "MissingAuthenticationToken", "MissingAuthenticationTokenException", "InvalidSignatureException", "IncompleteSignature":
		return verdict{keyring.ErrKEKRefused, "AWS does not accept the credentials: check them, and this machine's clock"}, true
	case "ExpiredTokenException":
		return verdict{keyring.ErrKEKUnavailable, "the session credentials have expired: renew them"}, true
	case "ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "LimitExceededException":
		return verdict{keyring.ErrKEKUnavailable, "throttled: try again, or ask AWS for a higher request quota"}, true
	case "KeyUnavailableException", "DependencyTimeoutException", "KMSInternalException", "InternalFailure", "ServiceUnavailable", "ServiceUnavailableException":
		return verdict{keyring.ErrKEKUnavailable, "AWS KMS has a fault: try again"}, true
	}
	return verdict{}, false
}

// explain turns an error of the SDK into one sentence that is one of the keyring's errors.
func (k *KEK) explain(ctx context.Context, call string, err error) error {
	v := judge(err)
	if ctx.Err() != nil {
		v = verdict{keyring.ErrKEKUnavailable, "it was cancelled"}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			v.say = "no answer in time: check the network, region and endpoint"
		}
		return fmt.Errorf("%s with key %s: %w: %s (%w)", call, k.keyID, v.class, v.say, ctx.Err())
	}
	return fmt.Errorf("%s with key %s: %w: %s", call, k.keyID, v.class, v.say)
}

// judge never passes on text that came with the answer, besides its code and request id, quoted and cut.
func judge(err error) verdict {
	var api smithy.APIError
	var response *awshttp.ResponseError
	var unsent *smithyhttp.RequestSendError
	switch {
	case errors.Is(err, errCredentials):
		return verdict{keyring.ErrKEKUnavailable, "no AWS credentials were found: give this process a role, or set AWS_PROFILE"}
	case errors.As(err, &api):
		v, known := verdictOf(api.ErrorCode())
		if !known {
			v = verdict{keyring.ErrKEKRefused, "AWS KMS refuses the request"}
		}
		if errors.As(err, &response) {
			if status := response.HTTPStatusCode(); !known && (status >= http.StatusInternalServerError || status == http.StatusTooManyRequests) {
				v = verdict{keyring.ErrKEKUnavailable, "AWS KMS has a fault: try again"}
			}
			v.say += fmt.Sprintf(" (%.80q, request %.80q)", api.ErrorCode(), response.ServiceRequestID())
		}
		return v
	case errors.As(err, &unsent):
		return verdict{keyring.ErrKEKUnavailable, "AWS KMS can't be reached: check the network, region and endpoint"}
	case errors.As(err, &response):
		return verdict{keyring.ErrKEKUnavailable, "the answer was cut off or is none of AWS KMS: try again, and check endpoint"}
	}
	return verdict{keyring.ErrKEKUnavailable, "the call failed before an answer came: try again"}
}
