// Package cloudwatch is a sink in AWS CloudWatch Logs: the lines of package sink as log events of one stream.
//
// A page goes in calls of PutLogEvents that keep to its limits: 10,000 events, 1 MiB with 26 bytes for each event, 256 KiB
// an event, 24 hours from the first to the last, in the order of time. An event keeps its own time, unless that is
// ahead of this machine's clock: then it has the time of its writing, and its own in its line, so that no event of a clock
// that was wrong once holds up all that come later. What the service takes and then rejects is never lost in silence:
// events that are too old, or older than the group keeps, are refusals, which the pump counts and logs; events that are too
// far in the future by the service's clock are tried again until they are not.
//
// A stream that is not there is made, a group is not. Credentials come from where the AWS SDK finds them (environment,
// shared files, web identity, container or instance role), never from Bulla's configuration. What AWS says besides an
// error's code is not passed on; the request id is, for the support case.
package cloudwatch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"
	"github.com/aws/smithy-go/logging"

	"github.com/bulla-project/bulla/audit/sink"
)

// The limits of PutLogEvents.
const (
	maxEvents   = 10_000
	maxBytes    = 1 << 20
	overhead    = 26 // bytes that each event counts for besides its own
	maxEvent    = 256<<10 - overhead
	maxDuration = 24 * time.Hour
)

const (
	// DefaultTimeout is for one call, retries included.
	DefaultTimeout = 20 * time.Second

	attempts   = 3
	backoffMax = 2 * time.Second
)

// ErrConfig is wrapped by every refusal of New.
var ErrConfig = errors.New("CloudWatch Logs")

// The names that CloudWatch Logs allows.
var (
	groupName  = regexp.MustCompile(`^[.\-_/#A-Za-z0-9]{1,512}$`)
	streamName = regexp.MustCompile(`^[^:*\x00-\x1f]{1,512}$`)
	regionName = regexp.MustCompile(`^[a-z0-9-]{0,32}$`)
)

// Config names a log stream.
type Config struct {
	Group, Stream string
	// Region defaults to the SDK's own settings.
	Region string
	// Endpoint overrides the address of the service, for a VPC endpoint or a test. It is https, except on loopback.
	Endpoint string
	// Timeout is for one call; zero is [DefaultTimeout].
	Timeout time.Duration
	// Credentials override the SDK's own search.
	Credentials aws.CredentialsProvider
}

func (c Config) validate() error {
	var faults []error
	if !groupName.MatchString(c.Group) {
		faults = append(faults, fmt.Errorf("%w: %.100q is no name of a log group", ErrConfig, c.Group))
	}
	if !streamName.MatchString(c.Stream) {
		faults = append(faults, fmt.Errorf("%w: %.100q is no name of a log stream", ErrConfig, c.Stream))
	}
	if !regionName.MatchString(c.Region) {
		faults = append(faults, fmt.Errorf("%w: %.100q is no region", ErrConfig, c.Region))
	}
	return errors.Join(append(faults, checkEndpoint(c.Endpoint))...)
}

// checkEndpoint refuses an address over which the record would travel in the clear.
func checkEndpoint(endpoint string) error {
	if endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%w: the endpoint is no URL such as https://logs.eu-central-1.amazonaws.com", ErrConfig)
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme == "https" || u.Scheme == "http" && ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("%w: the endpoint %q is not https: the record would travel in the clear", ErrConfig, u.Redacted())
}

// Sink writes to a log stream. Its methods may be called by one goroutine at a time.
type Sink struct {
	client *cloudwatchlogs.Client
	cfg    Config
}

var _ sink.Sink = (*Sink)(nil)

// New checks c and prepares a client. It calls neither CloudWatch Logs nor a source of credentials.
func New(ctx context.Context, c Config) (*Sink, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	options := []func(*config.LoadOptions) error{
		config.WithLogger(logging.Nop{}), // what goes wrong is returned
		config.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts, o.MaxBackoff = attempts, backoffMax })
		}),
	}
	if c.Region != "" {
		options = append(options, config.WithRegion(c.Region))
	}
	if c.Credentials != nil {
		options = append(options, config.WithCredentialsProvider(c.Credentials))
	}
	loaded, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("%w: read the AWS settings of this environment: %w", ErrConfig, err)
	}
	if loaded.Region == "" {
		return nil, fmt.Errorf("%w: no region: name one, or set AWS_REGION", ErrConfig)
	}
	var environment string // AWS_ENDPOINT_URL and the like
	client := cloudwatchlogs.NewFromConfig(loaded, func(o *cloudwatchlogs.Options) {
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
		environment = aws.ToString(o.BaseEndpoint)
	})
	if err := checkEndpoint(environment); err != nil {
		return nil, err
	}
	return &Sink{client: client, cfg: c}, nil
}

// Write implements [sink.Sink].
func (s *Sink) Write(ctx context.Context, lines []sink.Line) ([]sink.Refusal, error) {
	var refused []sink.Refusal
	for _, batch := range batches(lines, time.Now(), &refused) {
		more, err := s.put(ctx, batch)
		refused = append(refused, more...)
		if err != nil {
			return nil, err // all of it comes again, and is counted then
		}
	}
	return refused, nil
}

// Close implements [sink.Sink].
func (s *Sink) Close() error { return nil }

// batches cuts a page into calls, and dates back what is ahead of now. An event that is larger than the service takes is
// refused; package ocsf makes none.
func batches(lines []sink.Line, now time.Time, refused *[]sink.Refusal) (out [][]sink.Line) {
	ordered := make([]sink.Line, 0, len(lines))
	for _, l := range lines {
		if len(l.JSON) > maxEvent {
			*refused = append(*refused, sink.Refusal{Index: l.Index, Reason: fmt.Sprintf("it has %d bytes, CloudWatch Logs takes %d", len(l.JSON), maxEvent)})
			continue
		}
		if l.Time.After(now) {
			l.Time = now
		}
		ordered = append(ordered, l)
	}
	slices.SortStableFunc(ordered, func(a, b sink.Line) int { return a.Time.Compare(b.Time) })
	size, start := 0, 0
	for i, l := range ordered {
		cost := len(l.JSON) + overhead
		if i > start && (i-start == maxEvents || size+cost > maxBytes || l.Time.Sub(ordered[start].Time) >= maxDuration) {
			out, size, start = append(out, ordered[start:i]), 0, i
		}
		size += cost
	}
	if start < len(ordered) {
		out = append(out, ordered[start:])
	}
	return out
}

// put makes one call, and the stream first where it is not there.
func (s *Sink) put(ctx context.Context, batch []sink.Line) ([]sink.Refusal, error) {
	in := &cloudwatchlogs.PutLogEventsInput{LogGroupName: &s.cfg.Group, LogStreamName: &s.cfg.Stream, LogEvents: make([]types.InputLogEvent, len(batch))}
	for i, l := range batch {
		in.LogEvents[i] = types.InputLogEvent{Message: aws.String(string(l.JSON)), Timestamp: aws.Int64(l.Time.UnixMilli())}
	}
	out, err := s.call(ctx, in)
	var missing *types.ResourceNotFoundException
	if errors.As(err, &missing) {
		if err := s.makeStream(ctx); err != nil {
			return nil, err
		}
		out, err = s.call(ctx, in)
	}
	var again *types.DataAlreadyAcceptedException
	if errors.As(err, &again) {
		return nil, nil
	}
	if err != nil {
		return nil, s.explain(ctx, "logs:PutLogEvents", err)
	}
	return s.rejected(batch, out.RejectedLogEventsInfo)
}

func (s *Sink) call(ctx context.Context, in *cloudwatchlogs.PutLogEventsInput) (*cloudwatchlogs.PutLogEventsOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	return s.client.PutLogEvents(ctx, in)
}

func (s *Sink) makeStream(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	_, err := s.client.CreateLogStream(ctx, &cloudwatchlogs.CreateLogStreamInput{LogGroupName: &s.cfg.Group, LogStreamName: &s.cfg.Stream})
	var exists *types.ResourceAlreadyExistsException
	if err != nil && !errors.As(err, &exists) {
		return s.explain(ctx, "logs:CreateLogStream", err)
	}
	return nil
}

// rejected reads which events of a call were not taken. The service names the ends of three ranges: the batch is in the
// order of time.
func (s *Sink) rejected(batch []sink.Line, info *types.RejectedLogEventsInfo) (refused []sink.Refusal, err error) {
	if info == nil {
		return nil, nil
	}
	end := func(p *int32) int { return min(max(int(aws.ToInt32(p)), 0), len(batch)) }
	old, expired := end(info.TooOldLogEventEndIndex), end(info.ExpiredLogEventEndIndex)
	for i, l := range batch[:max(old, expired)] {
		reason := "it is too old for CloudWatch Logs: more than 14 days"
		if i >= old || i < expired {
			reason = "it is older than the log group keeps"
		}
		refused = append(refused, sink.Refusal{Index: l.Index, Reason: reason})
	}
	if p := info.TooNewLogEventStartIndex; p != nil {
		first := batch[min(max(int(*p), 0), len(batch)-1)]
		return nil, fmt.Errorf("CloudWatch Logs does not take event %d yet: %s is more than two hours ahead of its clock; compare the broker's clock", first.Index, first.Time.UTC().Format(time.RFC3339))
	}
	return refused, nil
}
