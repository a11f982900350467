package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
)

func newAuditBlastCommand(a *app) *cobra.Command {
	var about aboutFlags
	in := new(bullav1.BlastRadiusRequest)
	c := &cobra.Command{
		Use: "blast-radius [flags]", Short: "How far a loss reaches, and what to do first",
		Long: "For a device, a principal, a secret or a policy revision that is lost: which versions of which secrets\n" +
			"were delivered, what still lives, who else has them, and what to do, the most urgent first.\n\n" +
			"  rotate   it can be known to whoever got it: it was delivered open, or its key was released\n" +
			"  check    the same, and a newer version took its place: nobody may accept the old one\n" +
			"  review   a key that never left was used: see for what\n" +
			"  revoke   nothing of it can be read without the broker: end its sessions\n" +
			"  nothing  and no session lives\n\n" +
			"Below stand the commands to run next. It changes nothing by itself.",
		Example: "  bulla audit blast-radius --device \"$DEVICE\"\n" +
			"  bulla audit blast-radius --principal spiffe://dev.bulla.test/workload --since 7d -o json | jq -r '.steps[].command'",
		Args: argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if in.About, err = about.request(time.Now()); err != nil {
				return err
			}
			named := 0
			for _, v := range []string{about.principal, about.secret, about.device, about.revision} {
				if v != "" {
					named++
				}
			}
			if named != 1 {
				return usage("name exactly one of --device, --principal, --secret, --revision")
			}
			return a.blastRadius(c, in)
		},
	}
	about.add(c)
	c.Flags().Uint32Var(&in.Limit, "limit", 100, "list at most so many versions, up to 1000")
	a.addIdentity(c)
	return c
}

// exposureJSON is what was delivered of one version in JSON.
type exposureJSON struct {
	Todo            string   `json:"todo"`
	Why             string   `json:"why"`
	Secret          string   `json:"secret"`
	Version         uint32   `json:"version"`
	Class           string   `json:"class"`
	Type            string   `json:"type"`
	Superseded      bool     `json:"superseded"`
	Grades          []string `json:"grades"`
	Deliveries      uint64   `json:"deliveries"`
	Live            uint64   `json:"live"`
	Used            uint64   `json:"used"`
	Uses            uint64   `json:"uses"`
	FirstAt         *string  `json:"first_at"`
	LastAt          *string  `json:"last_at"`
	Others          uint64   `json:"others"`
	OthersLive      uint64   `json:"others_live"`
	OtherPrincipals []string `json:"other_principals"`
}

type stepJSON struct {
	Command string `json:"command"`
	Why     string `json:"why"`
}

// blastJSON is the answer of `audit blast-radius`.
type blastJSON struct {
	Exposures  []exposureJSON `json:"exposures"`
	Versions   uint64         `json:"versions"`
	Deliveries uint64         `json:"deliveries"`
	Live       uint64         `json:"live"`
	Denials    uint64         `json:"denials"`
	Principals []string       `json:"principals"`
	Devices    []string       `json:"devices"`
	Withheld   uint64         `json:"withheld"`
	Steps      []stepJSON     `json:"steps"`
	Notes      []string       `json:"notes"`
	Incomplete bool           `json:"incomplete"`
}

func newBlastJSON(b *bullav1.BlastRadius) blastJSON {
	out := blastJSON{
		Exposures: []exposureJSON{}, Versions: b.GetVersions(), Deliveries: b.GetDeliveries(), Live: b.GetLive(), Denials: b.GetDenials(),
		Principals: append([]string{}, b.GetPrincipals()...), Devices: append([]string{}, b.GetDevices()...), Withheld: b.GetWithheld(),
		Steps: []stepJSON{}, Notes: append([]string{}, b.GetNotes()...), Incomplete: b.GetIncomplete(),
	}
	for _, e := range b.GetExposures() {
		out.Exposures = append(out.Exposures, exposureJSON{
			Todo: e.GetTodo(), Why: e.GetWhy(), Secret: e.GetSecret(), Version: e.GetVersion(), Class: e.GetClass(), Type: e.GetType(),
			Superseded: e.GetSuperseded(), Grades: append([]string{}, e.GetGrades()...), Deliveries: e.GetDeliveries(), Live: e.GetLive(),
			Used: e.GetUsed(), Uses: e.GetUses(), FirstAt: momentOrNull(e.GetFirstAt()), LastAt: momentOrNull(e.GetLastAt()),
			Others: e.GetOthers(), OthersLive: e.GetOthersLive(), OtherPrincipals: append([]string{}, e.GetOtherPrincipals()...),
		})
	}
	for _, s := range b.GetSteps() {
		out.Steps = append(out.Steps, stepJSON{s.GetCommand(), s.GetWhy()})
	}
	return out
}

func (a *app) blastRadius(c *cobra.Command, in *bullav1.BlastRadiusRequest) error {
	var answer *bullav1.BlastRadius
	err := a.withStream(c, a.timeout, func(ctx context.Context, conn *grpc.ClientConn, alive func()) error {
		if err := completed(ctx, conn, in.GetAbout()); err != nil {
			return err
		}
		stream, err := bullav1.NewQuestionsClient(conn).BlastRadius(ctx, in)
		if err != nil {
			return err
		}
		progress := show.NewProgress(a.stderr, isTerminal(a.stderr), "looked at")
		defer progress.Clear()
		for answer == nil {
			reply, err := stream.Recv()
			if err != nil { // io.EOF as well: the answer did not come
				return err
			}
			alive()
			progress.Count(int64(reply.GetExamined()))
			answer = reply.GetAnswer()
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("ask how far it reaches: %w", err)
	}
	return a.print(newBlastJSON(answer), func(w io.Writer) error { return printBlast(w, answer) })
}

func printBlast(w io.Writer, b *bullav1.BlastRadius) error {
	err := show.Fields(w, []show.Field{
		{Name: "delivered", Value: fmt.Sprintf("%d, of %d versions, to %d principals, on %d devices", b.GetDeliveries(), b.GetVersions(), len(b.GetPrincipals()), len(b.GetDevices()))},
		{Name: "live", Value: strconv.FormatUint(b.GetLive(), 10)},
		{Name: "refused", Value: strconv.FormatUint(b.GetDenials(), 10)},
	})
	if err != nil {
		return err
	}
	var rows [][]string
	for _, e := range b.GetExposures() {
		rows = append(rows, []string{
			e.GetTodo(), e.GetSecret() + "@" + strconv.FormatUint(uint64(e.GetVersion()), 10), strings.Join(e.GetGrades(), ","),
			strconv.FormatUint(e.GetDeliveries(), 10), strconv.FormatUint(e.GetLive(), 10), strconv.FormatUint(e.GetUses(), 10),
			strconv.FormatUint(e.GetOthers(), 10), strings.TrimPrefix(minute(e.GetLastAt()), strconv.Itoa(time.Now().UTC().Year())+"-"),
		})
	}
	if len(rows) > 0 {
		// 7 + 17 + 10 + 5 + 5 + 5 + 6 + 11 and seven gaps of two are 80.
		columns := []show.Column{
			{Title: "DO", Max: 7},
			{Title: "SECRET", Max: 17},
			{Title: "GRADE", Max: 10},
			{Title: "GOT", Max: 5},
			{Title: "LIVE", Max: 5},
			{Title: "USES", Max: 5},
			{Title: "OTHERS", Max: 6},
			{Title: "LAST (UTC)", Max: 11},
		}
		fmt.Fprintln(w)
		if err := show.Table(w, columns, rows); err != nil {
			return err
		}
	}
	if len(b.GetSteps()) > 0 {
		fmt.Fprintln(w, "\nnext:")
	}
	for _, s := range b.GetSteps() {
		if _, err := fmt.Fprintf(w, "  # %s\n  %s\n", show.Text(s.GetWhy()), show.Text(s.GetCommand())); err != nil {
			return err
		}
	}
	return printNotes(w, b.GetNotes())
}
