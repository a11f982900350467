package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/audit/decisions"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/policy/replay"
)

// replayFlags are those of `session replay`.
type replayFlags struct {
	record  recordFlags
	all     bool
	explain bool
}

func newSessionReplayCommand(a *app) *cobra.Command {
	var f replayFlags
	c := &cobra.Command{
		Use: "replay ID | --all [--since 24h] [--export DIR --log-key FILE]", Short: "Judge recorded decisions again, on this machine",
		Long: "Takes recorded decisions, fetches the policy revision that each names, checks its digest, and judges\n" +
			"again: here, not at the broker. MATCH says that the very bytes came out (bit-exact; semantic where\n" +
			"another version of the evaluator had written them), MISMATCH that they did not, NOT_REPLAYABLE why\n" +
			"there is nothing to compare. ID is a session's, or the support id of a denial.\n\n" +
			"With --export it reads an export, verifies it, and needs no network. The exit code is 5 if anything\n" +
			"does not match.",
		Example: "  bulla session replay --all --since 24h\n  bulla session replay 0193f2f0-5c1e-7a40-9a57-0d2f6f1c5a11 --explain\n" +
			"  bulla session replay --all --export export/ --log-key log.pub",
		Args: atMostOne("ID"), ValidArgsFunction: cobra.NoFileCompletions, DisableFlagsInUseLine: true,
		RunE: func(c *cobra.Command, args []string) error {
			if f.all == (len(args) == 1) {
				return usage("bulla session replay needs an ID, or --all")
			}
			if f.all && f.explain {
				return usage("--explain is for one ID: name the session, or the support id of the denial")
			}
			if len(args) == 1 {
				if f.record.since != "" {
					return usage("--since belongs to --all")
				}
				if err := sessionID(args[0]); err != nil {
					return err
				}
				return a.replay(c, f, args[0])
			}
			return a.replay(c, f, "")
		},
	}
	c.Flags().BoolVar(&f.all, "all", false, "all decisions of the record")
	c.Flags().BoolVar(&f.explain, "explain", false, "show which rules were tried, and where those that did not hold ended")
	c.Flags().StringVar(&f.record.since, "since", "", "with --all: only what is this recent, such as 24h or 7d")
	a.addRecord(c, &f.record)
	return c
}

// resultJSON is a replayed decision in JSON.
type resultJSON struct {
	Index     int64          `json:"index"`
	Event     string         `json:"event"`
	Time      string         `json:"time"`
	Kind      string         `json:"kind"`
	Principal string         `json:"principal"`
	Target    string         `json:"target"`
	Session   string         `json:"session"`
	Effect    string         `json:"decision"`
	Revision  string         `json:"revision"`
	Verdict   string         `json:"verdict"`
	Exactness string         `json:"exactness"` // bit-exact, semantic; "" where nothing was compared
	Why       string         `json:"why"`
	Rules     []replay.Tried `json:"rules,omitempty"`
}

func newResultJSON(r replay.Result) resultJSON {
	d := r.Recorded
	out := resultJSON{
		Index: d.Index, Event: d.Event, Time: d.Time.UTC().Format(time.RFC3339Nano), Kind: d.Kind, Principal: d.Principal, Target: d.Target(),
		Session: d.Session, Effect: string(d.Effect), Verdict: string(r.Verdict), Exactness: r.Exactness, Why: r.Why,
	}
	if d.Revision != (replay.Digest{}) {
		out.Revision = hex.EncodeToString(d.Revision[:])
	}
	return out
}

// replayAnswer is the answer of `session replay`. With --all only what does not match is listed, and never what was erased.
type replayAnswer struct {
	OK            bool              `json:"ok"`
	Engine        string            `json:"engine"`
	Decisions     uint64            `json:"decisions"`
	Match         uint64            `json:"match"`
	Semantic      uint64            `json:"semantic"` // of those that match
	Mismatch      uint64            `json:"mismatch"`
	NotReplayable uint64            `json:"not_replayable"`
	Kinds         map[string]uint64 `json:"kinds"`
	Results       []resultJSON      `json:"results"`
	Omitted       uint64            `json:"omitted"` // results beyond the limit
}

// maxResults bounds what is listed, and what does not match by itself.
const maxResults = 1000

// lists says whether a result that was counted has a place in the list. Erased events have none: nothing is known of any.
func (r *replayAnswer) lists(res replay.Result, all bool) bool {
	if res.Recorded.Kind == decisions.KindErased || all && res.Verdict == replay.Match {
		return false
	}
	if len(r.Results) < maxResults || res.Verdict == replay.Mismatch && r.Mismatch <= maxResults {
		return true
	}
	r.Omitted++
	return false
}

func (r *replayAnswer) count(res replay.Result) {
	n := max(1, res.Recorded.Count)
	r.Decisions += n
	r.Kinds[res.Recorded.Kind] += n
	switch res.Verdict {
	case replay.Match:
		r.Match += n
		if res.Exactness == replay.Semantic {
			r.Semantic += n
		}
	case replay.Mismatch:
		r.Mismatch += n
	default:
		r.NotReplayable += n
	}
}

func (a *app) replay(c *cobra.Command, f replayFlags, id string) error {
	since, err := parseSince(f.record.since, time.Now())
	if err != nil {
		return err
	}
	answer := replayAnswer{Engine: policy.EngineVersion(), Kinds: map[string]uint64{}, Results: []resultJSON{}}
	err = a.withRecord(c, f.record, func(ctx context.Context, rec record) error {
		library := replay.NewLibrary(rec.archives)
		keep := func(d replay.Recorded) bool { return id == "" || d.Session == id || d.Event == id }
		count, done := a.counting("replayed")
		defer done()
		return replay.Run(ctx, replay.Options{Library: library}, decided(rec.events, new(decisions.Reader), since, keep), func(r replay.Result) error {
			rec.alive()
			count()
			answer.count(r)
			if !answer.lists(r, id == "") {
				return nil
			}
			out := newResultJSON(r)
			if f.explain {
				_, out.Rules = replay.Explain(ctx, library, r.Recorded)
			}
			answer.Results = append(answer.Results, out)
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("replay the record: %w", err)
	}
	if id != "" && answer.Decisions == 0 {
		return fmt.Errorf("%w: the record has no decision of session %q, nor one under this support id", client.ErrNotFound, id)
	}
	answer.OK = answer.Mismatch == 0
	if err := a.print(answer, func(w io.Writer) error { return replayText(w, answer, id) }); err != nil {
		return err
	}
	if !answer.OK {
		return &reported{exitVerification}
	}
	return nil
}

func replayText(w io.Writer, answer replayAnswer, id string) error {
	for _, r := range answer.Results {
		how := r.Verdict
		if r.Exactness != "" {
			how += " (" + r.Exactness + ")"
		}
		if err := show.Fields(w, []show.Field{
			{Name: "event", Value: fmt.Sprintf("%d, %s", r.Index, r.Event)},
			{Name: "at", Value: r.Time},
			{Name: "kind", Value: r.Kind},
			{Name: "principal", Value: r.Principal},
			{Name: "about", Value: r.Target},
			{Name: "decision", Value: r.Effect},
			{Name: "revision", Value: r.Revision},
			{Name: "replay", Value: how},
			{Name: "why", Value: r.Why},
		}); err != nil {
			return err
		}
		if err := rulesText(w, r.Rules); err != nil {
			return err
		}
		if _, err := io.WriteString(w, "\n"); err != nil {
			return err
		}
	}
	if n := answer.Kinds[decisions.KindErased]; n > 0 {
		if _, err := fmt.Fprintf(w, "%d events are erased: whether there was a decision in one is not known\n\n", n); err != nil {
			return err
		}
	}
	if answer.Omitted > 0 {
		if _, err := fmt.Fprintf(w, "%d more are not shown\n", answer.Omitted); err != nil {
			return err
		}
	}
	if id == "" {
		var kinds []string
		for _, k := range slices.Sorted(maps.Keys(answer.Kinds)) {
			kinds = append(kinds, fmt.Sprintf("%d %s", answer.Kinds[k], k))
		}
		if _, err := fmt.Fprintln(w, show.Wrap(show.Text(strings.Join(kinds, ", ")), show.Width)); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "decisions: %d. %d MATCH (%d of them semantic), %d MISMATCH, %d NOT_REPLAYABLE\n",
		answer.Decisions, answer.Match, answer.Semantic, answer.Mismatch, answer.NotReplayable)
	return err
}

// rulesText says of each rule that was tried where it stands, and at which line it ended if it did not hold.
func rulesText(w io.Writer, rules []replay.Tried) error {
	for _, t := range rules {
		rule := strings.TrimPrefix(t.Rule, "data.bulla.")
		line := fmt.Sprintf("  held    %s:%d  %s", t.File, t.Line, rule)
		switch {
		case t.Default:
			line = fmt.Sprintf("  default %s:%d  %s", t.File, t.Line, rule)
		case !t.Held:
			line = fmt.Sprintf("  not     %s:%d  %s", t.File, t.Line, rule)
			if t.Failed != "" {
				line += fmt.Sprintf("\n          %s:%d  ends at: %s", t.File, t.FailedLine, t.Failed)
			}
		}
		if _, err := fmt.Fprintln(w, show.Lines(line)); err != nil {
			return err
		}
	}
	return nil
}
