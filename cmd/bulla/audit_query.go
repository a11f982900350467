package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
)

// aboutFlags say what a question is about.
type aboutFlags struct{ principal, secret, device, revision, since, until string }

func (f *aboutFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.principal, "principal", "", "what this SPIFFE ID got, or was refused")
	flags.StringVar(&f.secret, "secret", "", "who got this secret, or was refused it")
	flags.StringVar(&f.device, "device", "", "what was delivered on the word of this device")
	flags.StringVar(&f.revision, "revision", "", "what this policy revision decided (its digest, or the first digits)")
	f.addTimes(c)
}

func (f *aboutFlags) addTimes(c *cobra.Command) {
	c.Flags().StringVar(&f.since, "since", "", "from when on: a span back from now (36h, 7d), a day or an RFC 3339 time")
	c.Flags().StringVar(&f.until, "until", "", "and before when")
}

// request reads the flags.
func (f *aboutFlags) request(now time.Time) (*bullav1.About, error) {
	err := cmp.Or(checkPrincipal("--principal", f.principal), checkSecret("--secret", f.secret), checkDevice("--device", f.device), checkRevision("--revision", f.revision))
	if err != nil {
		return nil, err
	}
	out := &bullav1.About{Principal: f.principal, Secret: f.secret, Device: f.device, Revision: f.revision}
	if out.Since, err = parseWhen("--since", f.since, now); err != nil {
		return nil, err
	}
	if out.Until, err = parseWhen("--until", f.until, now); err != nil {
		return nil, err
	}
	if out.Since != nil && out.Until != nil && !out.GetSince().AsTime().Before(out.GetUntil().AsTime()) {
		return nil, usage("--until is not after --since")
	}
	return out, nil
}

// completed asks the broker for the whole digest of the revision that is meant, where a few digits were given.
func completed(ctx context.Context, conn *grpc.ClientConn, about *bullav1.About) (err error) {
	if about.GetRevision() != "" {
		about.Revision, err = fullDigest(ctx, conn, about.GetRevision())
	}
	return err
}

// parseWhen reads a time: a span back from now, in Go's units or in days, a day in UTC, or RFC 3339. nil: none was given.
func parseWhen(flag, text string, now time.Time) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return timestamppb.New(now.Add(-time.Duration(n) * 24 * time.Hour)), nil
		}
	}
	if span, err := time.ParseDuration(text); err == nil && span >= 0 {
		return timestamppb.New(now.Add(-span)), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if at, err := time.Parse(layout, text); err == nil {
			return timestamppb.New(at), nil
		}
	}
	return nil, usage("%s: %q is no time: give a span back from now (36h, 7d), a day (2026-11-29) or a time (2026-11-29T03:00:00Z)", flag, text)
}

func newAuditQueryCommand(a *app) *cobra.Command {
	var about aboutFlags
	in := new(bullav1.QueryRequest)
	c := &cobra.Command{
		Use: "query [flags]", Short: "Who got what, and who was refused",
		Long: "Lists deliveries and refusals, the newest first: who got a secret, what a principal got, what was\n" +
			"delivered on a device, what a policy revision permitted. Flags that are given together have to hold\n" +
			"together. The question is decided by policy and recorded.\n\n" +
			"With -o json each line is one finding. The last line is {\"end\", \"next\", \"withheld\", \"notes\"}: next is\n" +
			"null, or what --page takes to go on with the same question; notes say what the answer can't.",
		Example: "  bulla audit query --secret demo/database --since 7d\n" +
			"  bulla audit query --principal spiffe://dev.bulla.test/workload --outcome deny\n" +
			"  bulla audit query --device \"$DEVICE\" --limit 0 -o json | jq -r 'select(.outcome == \"permit\") | .secret' | sort -u",
		Args: argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if in.About, err = about.request(time.Now()); err != nil {
				return err
			}
			return a.query(c, in)
		},
	}
	about.add(c)
	f := c.Flags()
	f.StringVar(&in.Grade, "grade", "", "only this grade: open, gated, proxied or leased")
	f.StringVar(&in.Outcome, "outcome", "", "only what was permitted (permit) or refused (deny)")
	f.Uint32Var(&in.Limit, "limit", 100, "list at most so many; 0: all")
	f.StringVar(&in.PageToken, "page", "", "go on with the same question, from the next of its answer")
	completeFlag(c, "grade", "open", "gated", "proxied", "leased")
	completeFlag(c, "outcome", "permit", "deny")
	a.addIdentity(c)
	return c
}

// findingJSON is a delivery or a refusal in JSON.
type findingJSON struct {
	Index     int64    `json:"index"`
	At        string   `json:"at"`
	Outcome   string   `json:"outcome"`
	What      string   `json:"what"`
	Principal string   `json:"principal"`
	Secret    string   `json:"secret"`
	Version   uint32   `json:"version"`
	Device    string   `json:"device"`
	Revision  string   `json:"revision"`
	Grade     string   `json:"grade"`
	Session   string   `json:"session"`
	State     string   `json:"state"`
	Used      uint32   `json:"used"`
	UsedAt    *string  `json:"used_at"`
	ExpiresAt *string  `json:"expires_at"`
	Action    string   `json:"action"`
	Reasons   []string `json:"reasons"`
	SupportID string   `json:"support_id"` // of a refusal
	Count     uint64   `json:"count"`
}

func newFindingJSON(f *bullav1.Finding) findingJSON {
	return findingJSON{
		Index: f.GetIndex(), At: moment(f.GetAt()), Outcome: f.GetOutcome(), What: f.GetWhat(), Principal: f.GetPrincipal(), Secret: f.GetSecret(),
		Version: f.GetVersion(), Device: f.GetDevice(), Revision: f.GetRevision(), Grade: f.GetGrade(), Session: f.GetSession(), State: f.GetState(),
		Used: f.GetUsed(), UsedAt: momentOrNull(f.GetUsedAt()), ExpiresAt: momentOrNull(f.GetExpiresAt()), Action: f.GetAction(),
		Reasons: append([]string{}, f.GetReasons()...), SupportID: f.GetEvent(), Count: f.GetCount(),
	}
}

// queryEnd is the last line of the answer in JSON.
type queryEnd struct {
	End      bool     `json:"end"`
	Next     *string  `json:"next"`
	Withheld uint64   `json:"withheld"`
	Notes    []string `json:"notes"`
}

// query asks page by page until there are as many findings as were asked for, or no more.
func (a *app) query(c *cobra.Command, in *bullav1.QueryRequest) error {
	limit, all := in.GetLimit(), in.GetLimit() == 0
	end := queryEnd{End: true, Notes: []string{}}
	seen := map[string]bool{}
	var rows [][]string
	progress := show.NewProgress(a.stderr, isTerminal(a.stderr), "found")
	defer progress.Clear()
	for found := uint32(0); ; {
		in.Limit = min(limit-found, 1000)
		if all {
			in.Limit = 1000
		}
		reply, err := a.queryPage(c, in)
		if err != nil {
			return fmt.Errorf("ask who got what: %w", err)
		}
		for _, f := range reply.GetFindings() {
			if a.json() {
				if err := show.JSONLine(a.stdout, newFindingJSON(f)); err != nil {
					return err
				}
				continue
			}
			rows = append(rows, findingRow(f))
		}
		found += uint32(len(reply.GetFindings()))
		end.Withheld += reply.GetWithheld()
		for _, n := range reply.GetNotes() {
			if !seen[n] {
				seen[n], end.Notes = true, append(end.Notes, n)
			}
		}
		progress.Count(int64(found))
		end.Next, in.PageToken = orNull(reply.GetNext()), reply.GetNext()
		if end.Next == nil || !all && found >= limit {
			progress.Clear()
			return a.printQuery(rows, end, in.GetAbout())
		}
	}
}

// queryPage asks for one page, which has the whole --timeout.
func (a *app) queryPage(c *cobra.Command, in *bullav1.QueryRequest) (reply *bullav1.QueryReply, err error) {
	err = a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		if err := completed(ctx, conn, in.GetAbout()); err != nil {
			return err
		}
		reply, err = bullav1.NewQuestionsClient(conn).Query(ctx, in)
		return err
	})
	return reply, err
}

func (a *app) printQuery(rows [][]string, end queryEnd, about *bullav1.About) error {
	if a.json() {
		return show.JSONLine(a.stdout, end)
	}
	var b strings.Builder
	// 16 + 6 + 15 + 16 + 19 and four gaps of two are 80.
	columns := []show.Column{{Title: "TIME (UTC)", Max: 16}, {Title: "WAS", Max: 6}, {Title: "PRINCIPAL", Max: 15}, {Title: "SECRET", Max: 16}, {Title: "HOW", Max: 19}}
	if err := show.Table(&b, columns, rows); err != nil {
		return err
	}
	if err := printNotes(&b, end.Notes); err != nil {
		return err
	}
	if end.Next != nil {
		if err := more(&b, *end.Next, sameTimes(about)+"--page"); err != nil {
			return err
		}
	}
	_, err := io.WriteString(a.stdout, b.String())
	return err
}

// sameTimes are the flags that ask about the very same time again, which a span back from now would not.
func sameTimes(about *bullav1.About) (flags string) {
	if t := about.GetSince(); t != nil {
		flags += "--since " + t.AsTime().Format(time.RFC3339Nano) + " "
	}
	if t := about.GetUntil(); t != nil {
		flags += "--until " + t.AsTime().Format(time.RFC3339Nano) + " "
	}
	return flags
}

// printNotes writes what an answer can't say.
func printNotes(w io.Writer, notes []string) error {
	for _, n := range notes {
		if _, err := fmt.Fprintln(w, show.Lines(show.Wrap("note: "+n, show.Width))); err != nil {
			return err
		}
	}
	return nil
}

func findingRow(f *bullav1.Finding) []string {
	secret := f.GetSecret()
	if secret != "" && f.GetVersion() > 0 {
		secret += "@" + strconv.FormatUint(uint64(f.GetVersion()), 10)
	}
	how := f.GetGrade() + ", " + f.GetState()
	if f.GetUsed() > 0 {
		how = fmt.Sprintf("%s, used %d", f.GetGrade(), f.GetUsed())
	}
	if f.GetOutcome() == "deny" {
		if how = f.GetAction(); len(f.GetReasons()) > 0 {
			how = f.GetReasons()[0]
		}
		if f.GetCount() > 1 {
			how = fmt.Sprintf("%d calls", f.GetCount())
		}
	}
	return []string{minute(f.GetAt()), f.GetOutcome(), pathOf(f.GetPrincipal()), secret, how}
}

// minute is a time as tables show it.
func minute(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format("2006-01-02 15:04")
}
