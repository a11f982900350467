package cloudwatch_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/audit/sink"
	"github.com/bulla-project/bulla/audit/sink/cloudwatch"
	"github.com/bulla-project/bulla/audit/sink/cloudwatch/xtest"
	"github.com/bulla-project/bulla/test/awsfake"
)

const (
	group  = "/security/bulla"
	stream = "broker-1"
)

func open(t *testing.T, s *xtest.Server) *cloudwatch.Sink {
	t.Helper()
	w, err := cloudwatch.New(t.Context(), cloudwatch.Config{
		Group: group, Stream: stream, Region: awsfake.Region, Endpoint: s.URL, Credentials: awsfake.Credentials(), Timeout: 5 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// line is a line of so many bytes.
func line(index int64, at time.Time, size int) sink.Line {
	text := fmt.Sprintf(`{"index":%d}`, index)
	return sink.Line{Index: index, Time: at, JSON: []byte(text + strings.Repeat(" ", max(0, size-len(text))))}
}

// indexes are those of the stream, in the order in which they came.
func indexes(t *testing.T, s *xtest.Server) (out []int64) {
	t.Helper()
	for _, e := range s.Events(group, stream) {
		var index int64
		if _, err := fmt.Sscanf(e.Message, `{"index":%d}`, &index); err != nil {
			t.Fatalf("%q: %v", e.Message, err)
		}
		out = append(out, index)
	}
	return out
}

// TestLimits: the fake refuses what AWS refuses, so every page has to be cut to its limits.
func TestLimits(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		n, size int
		step    time.Duration
		puts    int
	}{
		"few":           {3, 100, time.Second, 1},
		"many":          {20_001, 20, 0, 3},
		"a full MiB":    {1 << 20 / 1024, 1024 - 26, 0, 1},
		"one byte more": {1 << 20 / 1024, 1024 - 25, 0, 2},
		"largest":       {8, 256<<10 - 26, 0, 2},
		"days":          {5, 100, 13 * time.Hour, 3},
		"a day":         {2, 100, 24 * time.Hour, 2},
		"less":          {2, 100, 24*time.Hour - time.Second, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := xtest.Start(t, group)
			w := open(t, s)
			var lines []sink.Line
			for i := range c.n {
				lines = append(lines, line(int64(i), now.Add(-time.Duration(c.n-i)*c.step), c.size))
			}
			refused, err := w.Write(t.Context(), lines)
			if err != nil || len(refused) > 0 {
				t.Fatalf("%v, %v", refused, err)
			}
			got := indexes(t, s)
			for i, index := range got {
				if index != int64(i) {
					t.Fatalf("event %d came as number %d", index, i)
				}
			}
			if len(got) != c.n || s.Puts() != c.puts {
				t.Errorf("%d events in %d calls, want %d in %d", len(got), s.Puts(), c.n, c.puts)
			}
		})
	}
}

func TestOrderOfTime(t *testing.T) {
	s := xtest.Start(t, group)
	now := time.Now()
	refused, err := open(t, s).Write(t.Context(), []sink.Line{line(0, now, 0), line(1, now.Add(-time.Second), 0), line(2, now, 0)})
	if got := fmt.Sprint(indexes(t, s)); err != nil || len(refused) > 0 || got != "[1 0 2]" {
		t.Errorf("%s, %v, %v", got, refused, err)
	}
}

// TestRejections: what is too old is a refusal, with its index; what is in the service's future is an error, so that it comes
// again.
func TestRejections(t *testing.T) {
	s := xtest.Start(t, group)
	s.Keep(10 * 24 * time.Hour)
	w, now := open(t, s), time.Now()
	day := 24 * time.Hour
	lines := []sink.Line{
		line(5, now.Add(-20*day), 0), line(6, now.Add(-15*day), 0), line(7, now.Add(-11*day), 0), line(8, now.Add(-day), 0), line(9, now, 256<<10),
	}
	refused, err := w.Write(t.Context(), lines)
	got := ""
	for _, r := range refused {
		got += fmt.Sprintf("%d: %s\n", r.Index, r.Reason)
	}
	want := "9: it has 262144 bytes, CloudWatch Logs takes 262118\n5: it is too old for CloudWatch Logs: more than 14 days\n" +
		"6: it is too old for CloudWatch Logs: more than 14 days\n7: it is older than the log group keeps\n"
	if err != nil || got != want || fmt.Sprint(indexes(t, s)) != "[8]" {
		t.Errorf("%v, %v\n%s", indexes(t, s), err, got)
	}
	early := []sink.Line{line(10, now.Add(-2*time.Hour), 0), line(11, now, 0)}
	s.Clock(func() time.Time { return now.Add(-3 * time.Hour) })
	if refused, err = w.Write(t.Context(), early); err == nil || refused != nil || !strings.Contains(err.Error(), "event 11") {
		t.Errorf("%v, %v", refused, err)
	}
	s.Clock(time.Now)
	if refused, err = w.Write(t.Context(), early); err != nil || refused != nil || fmt.Sprint(indexes(t, s)) != "[8 10 10 11]" {
		t.Errorf("%v, %v, %v", indexes(t, s), refused, err)
	}
}

// TestWrongClock: an event of a clock that was wrong for a while holds up nothing.
func TestWrongClock(t *testing.T) {
	s := xtest.Start(t, group)
	now := time.Now()
	refused, err := open(t, s).Write(t.Context(), []sink.Line{line(0, now, 0), line(1, now.AddDate(1, 0, 0), 0), line(2, now, 0)})
	if got := fmt.Sprint(indexes(t, s)); err != nil || len(refused) > 0 || got != "[0 2 1]" || s.Puts() != 1 {
		t.Errorf("%s, %v, %v", got, refused, err)
	}
}

// TestFaults: throttling and lost answers are tried again; what does not end is an error that says what to do, without
// the words of the answer.
func TestFaults(t *testing.T) {
	for name, c := range map[string]struct {
		fault awsfake.Fault
		want  string // "" : no error
	}{
		"throttled":   {awsfake.Fault{Code: "ThrottlingException", Times: 2}, ""},
		"fault":       {awsfake.Fault{Code: "ServiceUnavailableException", Status: 503}, ""},
		"lost answer": {awsfake.Fault{Drop: true, After: true}, ""},
		"accepted":    {awsfake.Fault{Code: "DataAlreadyAcceptedException", After: true}, ""},
		"for long":    {awsfake.Fault{Code: "ThrottlingException", Times: 100}, "throttled"},
		"denied":      {awsfake.Fault{Code: "AccessDeniedException", Times: 100}, "logs:PutLogEvents"},
		"odd":         {awsfake.Fault{Code: "WeirdException", Times: 100}, "WeirdException"},
		"hangs":       {awsfake.Fault{Hang: true, Times: 100}, "no answer within"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := xtest.Start(t, group)
			w := open(t, s)
			if _, err := w.Write(t.Context(), []sink.Line{line(0, time.Now(), 0)}); err != nil {
				t.Fatal(err)
			}
			s.Inject(c.fault)
			_, err := w.Write(t.Context(), []sink.Line{line(1, time.Now(), 0)})
			switch {
			case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v", err)
			case err != nil && strings.Contains(err.Error(), "must not be passed on"):
				t.Errorf("the words of the answer are in %v", err)
			}
			if got := indexes(t, s); err == nil && got[len(got)-1] != 1 {
				t.Errorf("%v", got)
			}
		})
	}
}

func TestNoGroup(t *testing.T) {
	s := xtest.Start(t, "/another")
	if _, err := open(t, s).Write(t.Context(), []sink.Line{line(0, time.Now(), 0)}); err == nil || !strings.Contains(err.Error(), "no such log group") {
		t.Error(err)
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  cloudwatch.Config
		env  string
		want string
	}{
		"good":             {cloudwatch.Config{Group: group, Stream: stream, Region: "eu-central-1"}, "", ""},
		"private endpoint": {cloudwatch.Config{Group: group, Stream: stream, Region: "eu-central-1", Endpoint: "https://vpce-1.example.org"}, "", ""},
		"loopback":         {cloudwatch.Config{Group: group, Stream: stream, Region: "eu-central-1", Endpoint: "http://127.0.0.1:1"}, "", ""},
		"no group":         {cloudwatch.Config{Stream: stream, Region: "eu-central-1"}, "", "log group"},
		"bad stream":       {cloudwatch.Config{Group: group, Stream: "a:b", Region: "eu-central-1"}, "", "log stream"},
		"bad region":       {cloudwatch.Config{Group: group, Stream: stream, Region: "evil.example.org/"}, "", "region"},
		"no region":        {cloudwatch.Config{Group: group, Stream: stream}, "", "AWS_REGION"},
		"clear text":       {cloudwatch.Config{Group: group, Stream: stream, Region: "eu-central-1", Endpoint: "http://logs.example.org"}, "", "in the clear"},
		"from outside":     {cloudwatch.Config{Group: group, Stream: stream, Region: "eu-central-1"}, "http://logs.example.org", "in the clear"},
		"no URL":           {cloudwatch.Config{Group: group, Stream: stream, Region: "eu-central-1", Endpoint: "logs"}, "", "no URL"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, v := range []string{"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"} {
				t.Setenv(v, "")
			}
			t.Setenv("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", c.env)
			t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
			_, err := cloudwatch.New(t.Context(), c.cfg)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v", err)
			}
		})
	}
}
