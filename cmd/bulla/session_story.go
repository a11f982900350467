package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit/timeline"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/ledger/event"
)

func newSessionShowCommand(a *app) *cobra.Command {
	var f recordFlags
	c := &cobra.Command{
		Use: "show ID [flags]", Short: "Show a session, and all that happened to it",
		Long: "Shows a session and its story: what was asked before it, the delivery with the reasons of the decision\n" +
			"and the risk, the receipt, each use, what was decided again, who ended it and why. Each entry has its\n" +
			"time, event id and index in the log. An unknown id is an error (exit code 1).\n\n" +
			"With --export the story is told from an export, which is verified, without a broker.",
		Example: "  bulla session show 0193f2f0-5c1e-7a40-9a57-0d2f6f1c5a11 -o json | jq -r .state\n" +
			"  bulla session show 0193f2f0-5c1e-7a40-9a57-0d2f6f1c5a11 --export export/ --log-key log.pub",
		Args: argument("ID"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			if err := sessionID(args[0]); err != nil {
				return err
			}
			if f.export != "" || f.logKey != "" {
				return a.exportedStory(c, f, args[0])
			}
			return a.sessionStory(c, args[0])
		},
	}
	a.addRecord(c, &f)
	return c
}

// entryJSON is one thing that happened to a session.
type entryJSON struct {
	Index   int64    `json:"index"`
	Event   string   `json:"event"`
	Time    string   `json:"time"`
	Kind    string   `json:"kind"`
	What    string   `json:"what"`
	Details []string `json:"details"`
}

func newEntryJSON(e timeline.Entry) entryJSON {
	out := entryJSON{e.Index, e.Event, e.Time.UTC().Format("2006-01-02T15:04:05.000000Z"), e.Kind, e.What, e.Details}
	if out.Details == nil {
		out.Details = []string{}
	}
	return out
}

// storyAnswer is the answer of `session show`.
type storyAnswer struct {
	sessionDetails
	Timeline []entryJSON `json:"timeline"`
	// ErasedBeside is how many events of the session's time are erased, whoever's they were.
	ErasedBeside int `json:"erased_beside"`
}

// sessionStory asks the broker for a session and for the events of its story.
func (a *app) sessionStory(c *cobra.Command, id string) error {
	var s *bullav1.Session
	story, erased := []entryJSON{}, 0
	err := a.withStream(c, a.timeout, func(ctx context.Context, conn *grpc.ClientConn, alive func()) (err error) {
		if s, err = bullav1.NewSessionsClient(conn).GetSession(ctx, &bullav1.GetSessionRequest{Id: id}); err != nil {
			return err
		}
		if s.GetErased() != 0 { // there is no story any more
			return nil
		}
		stream, err := bullav1.NewStoriesClient(conn).TellSession(ctx, &bullav1.TellSessionRequest{Id: id})
		if err != nil {
			return err
		}
		teller := timeline.New(subjectOf(s))
		for {
			e, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			alive()
			if e.GetErased() != 0 {
				erased++
				continue
			}
			decoded, err := event.Decode(e.GetEvent())
			if err != nil {
				return fmt.Errorf("%w: event %d: %w", client.ErrVerification, e.GetIndex(), err)
			}
			// The broker finds it by the session's row; a story that the row alone makes part of it is told as well.
			if entry, part := teller.Add(e.GetIndex(), decoded); part {
				story = append(story, newEntryJSON(entry))
			}
		}
	})
	if err != nil {
		return fmt.Errorf("show session %s: %w", id, err)
	}
	return a.print(storyAnswer{newSessionDetails(s), story, erased}, func(w io.Writer) error {
		if err := show.Fields(w, sessionFields(s)); err != nil {
			return err
		}
		return storyText(w, story, erased)
	})
}

func subjectOf(s *bullav1.Session) timeline.Subject {
	out := timeline.Subject{
		Principal: s.GetPrincipal(), Instance: s.GetInstance(), Secret: s.GetSecret(), Device: s.GetDevice(),
		Issued: s.GetIssuedAt().AsTime(), Expires: s.GetExpiresAt().AsTime(),
	}
	out.Session, _ = event.ParseID(s.GetId()) // the broker found it
	_ = out.Revision.UnmarshalText([]byte(s.GetRevision()))
	_ = out.Approval.UnmarshalText([]byte(s.GetApproval()))
	return out
}

// exportedStory tells a session's story from an export: once through it for the delivery, and once for the rest.
func (a *app) exportedStory(c *cobra.Command, f recordFlags, id string) error {
	var subject timeline.Subject
	story, erased := []entryJSON{}, 0
	err := a.withRecord(c, f, func(_ context.Context, rec record) error {
		for e, err := range rec.events {
			if err != nil {
				return err
			}
			if e.event.Body == nil {
				erased++
			}
			if b, ok := e.event.Body.(event.SessionIssued); ok && b.Session.String() == id {
				subject = timeline.SubjectOf(e.event, b)
			}
		}
		if subject.Session.IsZero() && erased > 0 {
			return fmt.Errorf("%w: the export has no session %q that can be read: %d of its events are erased", client.ErrNotFound, id, erased)
		}
		if subject.Session.IsZero() {
			return fmt.Errorf("%w: the export has no session %q", client.ErrNotFound, id)
		}
		teller := timeline.New(subject)
		for e, err := range rec.events {
			if err != nil {
				return err
			}
			if entry, part := teller.Add(e.index, e.event); part {
				story = append(story, newEntryJSON(entry))
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("show session %s: %w", id, err)
	}
	answer := struct {
		ID       string      `json:"id"`
		Timeline []entryJSON `json:"timeline"`
		Erased   int         `json:"erased_beside"`
	}{id, story, erased}
	return a.print(answer, func(w io.Writer) error { return storyText(w, story, erased) })
}

func storyText(w io.Writer, story []entryJSON, erased int) error {
	p := &printer{w: w}
	if erased > 0 {
		p.line("\n%d events beside it are erased: what they said, and of whom, is not known", erased)
	}
	for _, e := range story {
		at, _ := time.Parse(time.RFC3339, e.Time) // it was written like that
		p.line("\n%s  %s", at.Format("2006-01-02 15:04:05.000"), e.What)
		p.line("  event %d, %s, %s", e.Index, e.Event, e.Kind)
		for _, d := range e.Details {
			p.lines("    " + strings.ReplaceAll(show.Wrap(d, show.Width-6), "\n", "\n      "))
		}
	}
	return p.err
}
