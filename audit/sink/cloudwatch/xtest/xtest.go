// Package xtest is an AWS CloudWatch Logs for tests, behind the frame of package awsfake. It knows PutLogEvents, with its
// limits and rejections, and CreateLogStream. It is imported by tests only.
package xtest

import (
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"
	"github.com/aws/smithy-go"

	"github.com/bulla-project/bulla/test/awsfake"
)

// Server is the fake. Its methods may be called at any time.
type Server struct {
	*awsfake.Server

	mu       sync.Mutex                    // guards all below
	groups   map[string]map[string][]Event // group → stream → what was taken
	keep     time.Duration
	requests int
	now      func() time.Time
}

// Event is a log event that was taken.
type Event struct {
	Time    int64
	Message string
}

// Start serves on a loopback port until the test ends. There is one group, without a stream.
func Start(t testing.TB, group string) *Server {
	s := &Server{groups: map[string]map[string][]Event{group: {}}, now: time.Now}
	s.Server = awsfake.Start(t, awsfake.Service{Name: "logs", Target: "Logs_20140328.", Handle: s.handle})
	return s
}

// Keep has the groups expire events that are older.
func (s *Server) Keep(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep = d
}

// Clock gives the fake a time of its own for what is too old and too new.
func (s *Server) Clock(now func() time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = now
}

// Events returns what was taken into a stream, in the order in which it came.
func (s *Server) Events(group, stream string) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Event(nil), s.groups[group][stream]...)
}

// Puts returns how many calls of PutLogEvents were carried out.
func (s *Server) Puts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

func (s *Server) handle(op string, body []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch op {
	case "PutLogEvents":
		return awsfake.Serve(body, s.put)
	case "CreateLogStream":
		return awsfake.Serve(body, s.create)
	}
	return nil, awsfake.Refuse("UnknownOperationException", "%s", op)
}

func (s *Server) create(in *cloudwatchlogs.CreateLogStreamInput) (*cloudwatchlogs.CreateLogStreamOutput, error) {
	streams, ok := s.groups[aws.ToString(in.LogGroupName)]
	if !ok {
		return nil, awsfake.Refuse("ResourceNotFoundException", "The specified log group does not exist.")
	}
	if _, ok := streams[aws.ToString(in.LogStreamName)]; ok {
		return nil, awsfake.Refuse("ResourceAlreadyExistsException", "The specified log stream already exists")
	}
	streams[aws.ToString(in.LogStreamName)] = nil
	return &cloudwatchlogs.CreateLogStreamOutput{}, nil
}

func (s *Server) put(in *cloudwatchlogs.PutLogEventsInput) (*cloudwatchlogs.PutLogEventsOutput, error) {
	stream := aws.ToString(in.LogStreamName)
	streams, ok := s.groups[aws.ToString(in.LogGroupName)]
	if _, there := streams[stream]; !ok || !there {
		return nil, awsfake.Refuse("ResourceNotFoundException", "The specified log stream does not exist.")
	}
	if err := limits(in.LogEvents); err != nil {
		return nil, err
	}
	s.requests++
	now, info := s.now(), new(types.RejectedLogEventsInfo)
	for i, e := range in.LogEvents {
		age := now.Sub(time.UnixMilli(*e.Timestamp))
		switch {
		case age > 14*24*time.Hour:
			info.TooOldLogEventEndIndex = aws.Int32(int32(i) + 1)
		case s.keep > 0 && age > s.keep:
			info.ExpiredLogEventEndIndex = aws.Int32(int32(i) + 1)
		case age < -2*time.Hour:
			if info.TooNewLogEventStartIndex == nil {
				info.TooNewLogEventStartIndex = aws.Int32(int32(i))
			}
		default:
			streams[stream] = append(streams[stream], Event{*e.Timestamp, *e.Message})
		}
	}
	out := new(cloudwatchlogs.PutLogEventsOutput)
	if *info != (types.RejectedLogEventsInfo{}) {
		out.RejectedLogEventsInfo = info
	}
	return out, nil
}

// limits are those that the manual of PutLogEvents names.
func limits(events []types.InputLogEvent) error {
	size := 0
	for i, e := range events {
		if e.Message == nil || *e.Message == "" || e.Timestamp == nil {
			return awsfake.Refuse("InvalidParameterException", "event %d has no message or no timestamp", i)
		}
		if len(*e.Message)+26 > 256<<10 {
			return awsfake.Refuse("InvalidParameterException", "Log event too large: %d bytes", len(*e.Message))
		}
		if i > 0 && *e.Timestamp < *events[i-1].Timestamp {
			return awsfake.Refuse("InvalidParameterException", "Log events in a single PutLogEvents request must be in chronological order.")
		}
		size += len(*e.Message) + 26
	}
	switch {
	case len(events) == 0 || len(events) > 10_000:
		return awsfake.Refuse("InvalidParameterException", "%d events", len(events))
	case size > 1<<20:
		return awsfake.Refuse("InvalidParameterException", "Upload too large: %d bytes exceeds limit of 1048576", size)
	case *events[len(events)-1].Timestamp-*events[0].Timestamp > 24*time.Hour.Milliseconds():
		return awsfake.Refuse("InvalidParameterException", "The batch of log events in a single PutLogEvents request cannot span more than 24 hours.")
	}
	return nil
}

// The fake's types are those that the SDK can write.
var (
	_ smithy.Serializable = (*cloudwatchlogs.PutLogEventsOutput)(nil)
	_ smithy.Serializable = (*cloudwatchlogs.CreateLogStreamOutput)(nil)
)
