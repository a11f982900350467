package cloudwatch

import (
	"context"
	"errors"
	"fmt"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// advice says what to do about an error code.
func advice(code string) string {
	switch code {
	case "AccessDeniedException":
		return "access denied: allow this role logs:PutLogEvents and logs:CreateLogStream on the log group"
	case "ResourceNotFoundException":
		return "there is no such log group in this account and region: make it, with the retention that you want"
	case "UnrecognizedClientException", "InvalidClientTokenId", "MissingAuthenticationTokenException", "InvalidSignatureException", "IncompleteSignature":
		return "AWS does not accept the credentials: check them, and this machine's clock"
	case "ExpiredTokenException":
		return "the session credentials have expired: renew them"
	case "ThrottlingException", "Throttling", "TooManyRequestsException", "LimitExceededException":
		return "throttled: it goes on by itself; ask AWS for a higher quota if it lasts"
	case "ServiceUnavailableException", "InternalFailure", "ServiceUnavailable":
		return "the service has a fault: it goes on by itself"
	}
	return "the service refuses the call"
}

// explain turns an error of the SDK into one sentence. It passes on no text of an answer besides the code and the request
// id, quoted and cut.
func (s *Sink) explain(ctx context.Context, call string, err error) error {
	where := fmt.Sprintf("%s to %s/%s", call, s.cfg.Group, s.cfg.Stream)
	var api smithy.APIError
	var response *awshttp.ResponseError
	var unsent *smithyhttp.RequestSendError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", where, ctx.Err())
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: no answer within %s: check the network, region and endpoint", where, s.cfg.Timeout)
	case errors.As(err, &api):
		id := ""
		if errors.As(err, &response) {
			id = response.ServiceRequestID()
		}
		return fmt.Errorf("%s: %s (%.80q, request %.80q)", where, advice(api.ErrorCode()), api.ErrorCode(), id)
	case errors.As(err, &unsent):
		return fmt.Errorf("%s: the service can't be reached: check the network, region and endpoint", where)
	case errors.As(err, &response):
		return fmt.Errorf("%s: the answer was cut off, or is none of CloudWatch Logs: check the endpoint", where)
	}
	return fmt.Errorf("%s: the call failed before an answer came: are there AWS credentials? Give this process a role, or set AWS_PROFILE", where)
}
