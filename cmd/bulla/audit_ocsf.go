package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/sink"
	"github.com/bulla-project/bulla/audit/sink/cloudwatch"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"google.golang.org/grpc"
)

// The values of --format.
const (
	formatDirectory = "directory"
	formatOCSF      = "ocsf"
)

// cloudwatchScheme begins an --out that is a log stream.
const cloudwatchScheme = "cloudwatch:"

const (
	// gather is how long a followed export waits for events to come together.
	gather = 250 * time.Millisecond
	// ocsfAttempts is how often an export that follows nothing tries a sink.
	ocsfAttempts = 3
)

// ocsfFlags are those of an export as OCSF.
type ocsfFlags struct {
	format           string
	from             int64
	follow           bool
	state            string
	region, endpoint string
}

func addOCSF(c *cobra.Command, o *ocsfFlags) {
	c.Flags().StringVar(&o.format, "format", formatDirectory, "what to write: directory, which proves itself, or ocsf")
	completeFlag(c, "format", formatDirectory, formatOCSF)
	c.Flags().Int64Var(&o.from, "from", 0, "with ocsf: index of the first event, where --state has none yet")
	c.Flags().BoolVarP(&o.follow, "follow", "f", false, "with ocsf: wait for more events until interrupted")
	c.Flags().StringVar(&o.state, "state", "", "with ocsf: file that keeps how far the export came")
	c.Flags().StringVar(&o.region, "region", "", "with ocsf: AWS region of the log group; the AWS settings name it otherwise")
	c.Flags().StringVar(&o.endpoint, "endpoint", "", "with ocsf: address of CloudWatch Logs, for a VPC endpoint")
}

// onlyOCSF refuses flags that mean nothing for a directory.
func onlyOCSF(c *cobra.Command) error {
	for _, name := range []string{"from", "follow", "state", "region", "endpoint"} {
		if c.Flags().Changed(name) {
			return usage("--%s is for --format ocsf", name)
		}
	}
	return nil
}

// openSink makes the sink that --out names.
func (a *app) openSink(ctx context.Context, out string, o ocsfFlags) (sink.Sink, error) {
	target, aws := strings.CutPrefix(out, cloudwatchScheme)
	if !aws && (o.region != "" || o.endpoint != "") {
		return nil, usage("--region and --endpoint are for --out %sGROUP/STREAM", cloudwatchScheme)
	}
	switch {
	case out == "":
		return nil, usage("--out is missing: name a file, - for stdout, or %sGROUP/STREAM", cloudwatchScheme)
	case out == "-":
		return &sink.Stream{W: a.stdout}, nil
	case aws:
		at := strings.LastIndexByte(target, '/')
		if at <= 0 {
			return nil, usage("--out: %q is no %sGROUP/STREAM", out, cloudwatchScheme)
		}
		s, err := cloudwatch.New(ctx, cloudwatch.Config{Group: target[:at], Stream: target[at+1:], Region: o.region, Endpoint: o.endpoint})
		if errors.Is(err, cloudwatch.ErrConfig) {
			return nil, usage("--out: %v", err)
		}
		return s, err
	}
	about, err := os.Stat(filepath.Dir(out))
	if err != nil || !about.IsDir() {
		return nil, usage("--out: there is no directory %s", filepath.Dir(out))
	}
	if about, err := os.Stat(out); err == nil && !about.Mode().IsRegular() {
		return nil, usage("--out: %s is no regular file: name another one, or - for stdout", out)
	}
	return sink.NewFile(out), nil
}

// ocsfAnswer is the answer of `audit export --format ocsf`.
type ocsfAnswer struct {
	Out     string `json:"out"`
	Origin  string `json:"origin"`
	Written uint64 `json:"written"`
	Refused uint64 `json:"refused"` // by the far side, for good
	Next    int64  `json:"next"`    // the first index that was not written
}

func (a *app) exportOCSF(c *cobra.Command, out string, o ocsfFlags) error {
	if o.from < 0 {
		return usage("--from is %d: an index is 0 or more", o.from)
	}
	to, err := a.openSink(c.Context(), out, o)
	if err != nil {
		return err
	}
	origin, err := a.logOrigin(c)
	if err != nil {
		return fmt.Errorf("export the events: %w", err)
	}
	from := &tailSource{app: a, command: c, follow: o.follow}
	defer from.close()
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel() // before close, which waits for the stream, and for what connects
	c.SetContext(ctx)
	cfg := sink.Config{Source: from, Sink: to, Origin: origin, State: o.state, From: o.from, Attempts: ocsfAttempts}
	if o.follow {
		cfg.Attempts, cfg.Gather = 0, gather
		if cfg.Log, err = a.logger("info"); err != nil { // it may wait for hours, and has to say so
			return err
		}
	}
	pump := sink.New(cfg)
	stop := a.showProgress(pump)
	err = pump.Run(ctx)
	stop()
	if errors.Is(err, sink.ErrPosition) {
		return usage("--state: %v", err)
	}
	if err != nil {
		return fmt.Errorf("export the events: %w", err)
	}
	s := pump.Status(time.Now())
	if s.Refused > 0 {
		err = fmt.Errorf("export the events: %d of them were refused for good, the last one event %d: %s", s.Refused, s.Last.Index, s.Last.Reason)
	}
	if out == "-" {
		return err // stdout has the events
	}
	answer := ocsfAnswer{out, origin, s.Written, s.Refused, s.Next}
	return errors.Join(err, a.print(answer, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%d events of %s to %s; the next is %d\n", s.Written, show.Text(origin), show.Text(out), s.Next)
		return err
	}))
}

// showProgress shows how far a pump is, until the function is called that it returns.
func (a *app) showProgress(pump *sink.Pump) (stop func()) {
	progress := show.NewProgress(a.stderr, isTerminal(a.stderr), "exported")
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer progress.Clear()
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case now := <-tick.C:
				s := pump.Status(now)
				progress.Set(s.Next, s.Next+s.Behind)
			}
		}
	}()
	return func() { close(end); <-ended }
}

// logOrigin asks the broker for the name of its log.
func (a *app) logOrigin(c *cobra.Command) (origin string, err error) {
	err = a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) error {
		reply, err := bullav1.NewAuditClient(conn).Prove(ctx, &bullav1.ProveRequest{})
		if err != nil {
			return err
		}
		origin, _, _ = strings.Cut(string(reply.GetCheckpoint()), "\n")
		origin, _ = proofs.SplitIncarnation(origin) // the sinks' name for it stays through a restore
		if err := proofs.CheckOrigin(origin); err != nil {
			return fmt.Errorf("%w: the checkpoint that the broker sent: %w", client.ErrVerification, err)
		}
		return nil
	})
	return origin, err
}
