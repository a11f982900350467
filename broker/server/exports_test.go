package server_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit/sink/cloudwatch/xtest"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/test/awsfake"
	"github.com/bulla-project/bulla/test/rig"
)

const (
	logGroup  = "/security/bulla"
	logStream = "broker-1"
)

// withSinks configures a file and a log stream of a fake CloudWatch Logs.
func withSinks(t *testing.T, fake *xtest.Server, file string) rig.Config {
	t.Setenv("AWS_ACCESS_KEY_ID", awsfake.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", awsfake.SecretKey)
	t.Setenv("AWS_SESSION_TOKEN", "")
	t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
	return rig.Config{Edit: func(c *config.Config) {
		c.HTTPListen = "127.0.0.1:0"
		c.Export = config.Export{Sinks: []config.ExportSink{
			{Name: "file", File: file},
			{Name: "aws", CloudWatch: &config.CloudWatch{Group: logGroup, Stream: logStream, Region: awsfake.Region, Endpoint: fake.URL}},
		}}
	}}
}

// deliver gets a secret n times and returns the median.
func deliver(t *testing.T, r *rig.Rig, n int) time.Duration {
	t.Helper()
	c := r.Client("workload")
	var took []time.Duration
	for range n {
		began := time.Now()
		if _, err := c.Get(t.Context(), "demo/one"); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[n/2]
}

// indexes reads the indexes of lines; metrics reads one value.
func indexes(t *testing.T, text []string) (out []int64) {
	t.Helper()
	for _, line := range text {
		var o struct{ Metadata struct{ Sequence int64 } }
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		out = append(out, o.Metadata.Sequence)
	}
	return out
}

func metric(t *testing.T, r *rig.Rig, name string) (value float64) {
	t.Helper()
	resp, err := http.Get("http://" + r.Server.HTTPAddr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n"+name+" ")
	if !found {
		t.Fatalf("no metric %s in\n%s", name, text)
	}
	if _, err := fmt.Sscan(rest, &value); err != nil {
		t.Fatal(err)
	}
	return value
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// everyIndex says whether every index up to n is there, the first time in order.
func everyIndex(got []int64, n int64) bool {
	next := int64(0)
	for _, i := range got {
		if i > next {
			return false
		}
		if i == next {
			next++
		}
	}
	return next >= n
}

// TestSinkThatHangs: while a sink takes requests and never answers, deliveries go on as before, the memory stays what it
// is, and the lag can be seen. The other sink has every event meanwhile, and the one that hung has them all after it
// came back.
func TestSinkThatHangs(t *testing.T) {
	fake := xtest.Start(t, logGroup)
	file := filepath.Join(t.TempDir(), "events.jsonl")
	r := rig.Start(t, withSinks(t, fake, file))
	r.Put("demo/one", "standard", "1")
	aws := func() (out []int64) {
		var text []string
		for _, e := range fake.Events(logGroup, logStream) {
			text = append(text, e.Message)
		}
		return indexes(t, text)
	}
	written := func() []int64 {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil
		}
		return indexes(t, strings.Split(strings.TrimSuffix(string(data), "\n"), "\n"))
	}
	usual := deliver(t, r, 40)
	eventually(t, "both sinks are up to date", func() bool {
		return metric(t, r, `bulla_export_lag_events{sink="aws"}`) == 0 && metric(t, r, `bulla_export_lag_events{sink="file"}`) == 0
	})
	fake.Inject(awsfake.Fault{Op: "PutLogEvents", Hang: true, Times: 1 << 30})
	before := heap()
	hung := deliver(t, r, 300)
	if hung > 3*usual+50*time.Millisecond { // medians; the machine may be busy with other tests
		t.Errorf("a delivery takes %s while a sink hangs, and %s otherwise", hung, usual)
	}
	if grown := heap() - before; grown > 32<<20 {
		t.Errorf("%d bytes more on the heap", grown)
	}
	size := int64(len(r.Events()))
	if lag := metric(t, r, `bulla_export_lag_events{sink="aws"}`); lag < 300 {
		t.Errorf("a lag of %v events while the sink hangs", lag)
	}
	eventually(t, "the lag in seconds grows", func() bool { return metric(t, r, `bulla_export_lag_seconds{sink="aws"}`) > 1 })
	eventually(t, "the other sink has every event", func() bool { return everyIndex(written(), size) })

	// A restart of the broker, with the sink still hanging, makes lag and nothing else.
	r.Stop()
	r.Run()
	deliver(t, r, 1)
	fake.Recover()
	size = int64(len(r.Events()))
	eventually(t, "the sink that hung has every event", func() bool { return everyIndex(aws(), size) })
	eventually(t, "the other sink has every event", func() bool { return everyIndex(written(), size) })
	checks := doctor(t, r)
	for _, name := range []string{"export aws", "export file"} {
		if c := checks[name]; c == nil || !c.GetOk() || !strings.Contains(c.GetDetail(), "events have arrived") {
			t.Errorf("%s: %v", name, c)
		}
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func doctor(t *testing.T, r *rig.Rig) map[string]*bullav1.DoctorCheck {
	t.Helper()
	raw := r.Raw("operator")
	reply, err := bullav1.NewAuditClient(raw.Conn).Doctor(t.Context(), &bullav1.DoctorRequest{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*bullav1.DoctorCheck{}
	for _, c := range reply.GetChecks() {
		out[c.GetName()] = c
	}
	return out
}

// TestSinkThatErrs: `bulla doctor` says why, and the broker is ready all the same.
func TestSinkThatErrs(t *testing.T) {
	fake := xtest.Start(t, "/another")
	r := rig.Start(t, withSinks(t, fake, filepath.Join(t.TempDir(), "no", "such", "events.jsonl")))
	r.Put("demo/one", "standard", "1")
	deliver(t, r, 1)
	for name, because := range map[string]string{"export file": "no such file", "export aws": "no such log group"} {
		eventually(t, name+" fails", func() bool { c := doctor(t, r)[name]; return !c.GetOk() && strings.Contains(c.GetDetail(), because) })
	}
	if c := doctor(t, r)["export aws"]; !strings.Contains(c.GetHint(), "none is lost") {
		t.Errorf("%v", c)
	}
	resp, err := http.Get("http://" + r.Server.HTTPAddr().String() + "/ready")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("the broker is not ready: %s", resp.Status)
	}
}

// TestForeignPosition: a position of another history ends that export, and nothing else.
func TestForeignPosition(t *testing.T) {
	fake := xtest.Start(t, logGroup)
	file := filepath.Join(t.TempDir(), "events.jsonl")
	r := rig.Start(t, withSinks(t, fake, file))
	r.Put("demo/one", "standard", "1")
	state := filepath.Join(r.Config.DataDir, "export", "file.json")
	eventually(t, "the position is kept", func() bool { _, err := os.Stat(state); return err == nil })
	r.Stop()
	data, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	var p map[string]any
	if err := json.Unmarshal(data, &p); err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(data), fmt.Sprintf(`"next":%v`, p["next"]), `"next":1000000`, 1)
	if err := os.WriteFile(state, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Run()
	deliver(t, r, 1)
	eventually(t, "doctor says so", func() bool {
		c := doctor(t, r)["export file"]
		return !c.GetOk() && strings.Contains(c.GetHint(), "does not try any more")
	})
}
