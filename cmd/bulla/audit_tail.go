package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/ledger/event"
)

// tooSoon is how soon after its start a followed stream that ends is taken for hopeless.
const tooSoon = time.Second

func newAuditTailCommand(a *app) *cobra.Command {
	in := new(bullav1.TailRequest)
	c := &cobra.Command{
		Use: "tail [flags]", Short: "Print the events, and follow them",
		Long: "Prints the events of the ledger, one a line: index, time, type, subject and what it is about. With\n" +
			"-o json each line is one object, {\"index\", \"event\"}, and the event is whole. --follow waits for more,\n" +
			"connects again when the broker ends the stream, and stops when it is interrupted.",
		Example: "  bulla audit tail --from -20 --follow\n  bulla audit tail -o json | jq 'select(.event.type == \"decision.denied\")'",
		Args:    argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error { return a.tail(c, in) },
	}
	c.Flags().BoolVarP(&in.Follow, "follow", "f", false, "wait for more events until interrupted")
	c.Flags().Int64Var(&in.From, "from", 0, "index of the first event; negative: only so many of the newest")
	a.addIdentity(c)
	return c
}

func (a *app) tail(c *cobra.Command, in *bullav1.TailRequest) error {
	for {
		opened := time.Now()
		err := a.tailOnce(c, in)
		switch {
		case err == nil:
			return nil
		case in.GetFollow() && c.Context().Err() != nil:
			return nil // interrupted: the end of following
		case !in.GetFollow() || !streamEnded(err) || time.Since(opened) < tooSoon:
			return fmt.Errorf("read the events: %w", err)
		}
	}
}

// streamEnded says whether a followed stream has come to an end that is nobody's fault: the broker closes old
// connections and those whose certificate has ended.
func streamEnded(err error) bool {
	var r *client.Refusal
	return errors.As(err, &r) && (r.Code == codes.Unavailable || r.Code == codes.Unauthenticated)
}

// tailOnce prints one stream, and leaves in in where to go on.
func (a *app) tailOnce(c *cobra.Command, in *bullav1.TailRequest) error {
	silence := a.timeout
	if in.GetFollow() {
		silence = 0 // is no fault then
	}
	return a.withStream(c, silence, func(ctx context.Context, conn *grpc.ClientConn, alive func()) error {
		stream, err := bullav1.NewAuditClient(conn).Tail(ctx, in)
		if err != nil {
			return err
		}
		for {
			e, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			alive()
			if err := a.printEvent(e); err != nil {
				return err
			}
			in.From = e.GetIndex() + 1
		}
	})
}

// eventJSON is an event in JSON, with its canonical encoding as it is.
type eventJSON struct {
	Index int64           `json:"index"`
	Event json.RawMessage `json:"event"`
}

func (a *app) printEvent(e *bullav1.AuditEvent) error {
	if e.GetErased() != 0 {
		return a.printErasedEvent(e)
	}
	decoded, err := event.Decode(e.GetEvent())
	if err != nil {
		return status.Errorf(codes.Internal, "event %d of the broker can't be read: %v", e.GetIndex(), err)
	}
	if a.json() {
		return show.JSONLine(a.stdout, eventJSON{e.GetIndex(), e.GetEvent()})
	}
	who := pathOf(decoded.Subject)
	if who == "" {
		who = "-"
	}
	line := fmt.Sprintf("%6d  %s  %-20s  %s  %s", e.GetIndex(), decoded.Time.Time().UTC().Format("2006-01-02T15:04:05Z"),
		show.Text(string(decoded.Body.EventType())), show.Text(who), show.Text(about(decoded.Body)))
	_, err = fmt.Fprintln(a.stdout, strings.TrimRight(line, " "))
	return err
}

// erasedJSON is an event that was erased, in JSON.
type erasedJSON struct {
	Index  int64 `json:"index"`
	Erased int64 `json:"erased"` // index of the event that says so
}

func (a *app) printErasedEvent(e *bullav1.AuditEvent) error {
	if a.json() {
		return show.JSONLine(a.stdout, erasedJSON{e.GetIndex(), e.GetErased()})
	}
	_, err := fmt.Fprintf(a.stdout, "%6d  %-20s  %-20s  -  by event %d\n", e.GetIndex(), "-", "erased", e.GetErased())
	return err
}

// refuted says that what an operation looked at was not of its key.
func refuted(b event.SessionOperated) string {
	if b.Refuted {
		return ": not authentic"
	}
	return ""
}

// about says in a few words what an event is about. -o json has all of it.
func about(body event.Body) string {
	switch b := body.(type) {
	case event.SessionIssued:
		return fmt.Sprintf("%s@%d session %s", b.Secret, b.Version, b.Session)
	case event.SessionConfirmed:
		return "session " + b.Session.String()
	case event.SessionUsed:
		return fmt.Sprintf("session %s share %d", b.Session, b.Number)
	case event.SessionOperated:
		return fmt.Sprintf("session %s %s%s", b.Session, b.Operation, refuted(b))
	case event.SessionRevoked:
		return "session " + b.Session.String() + ": " + b.Reason
	case event.SessionClosed:
		return "session " + b.Session.String()
	case event.SessionsExpired:
		return fmt.Sprintf("%d sessions", len(b.Sessions))
	case event.SessionsUnconfirmed:
		return fmt.Sprintf("%d sessions", len(b.Sessions))
	case event.SessionsRevoked:
		return fmt.Sprintf("%d sessions: %s", len(b.Sessions), b.Reason)
	case event.SessionsWiped:
		return fmt.Sprintf("%d sessions", len(b.Sessions))
	case event.RevocationOrdered:
		return fmt.Sprintf("%s %s: %s", b.Selector, b.Value, b.Reason)
	case event.RevocationCompleted:
		return fmt.Sprintf("%s %s: %d sessions", b.Selector, b.Value, b.Sessions)
	case event.DecisionDenied:
		return b.Decision.Action + " " + b.Decision.Effect
	case event.OperationPermitted:
		return b.Decision.Action
	case event.SecretPut:
		text := fmt.Sprintf("%s@%d class %s", b.Name, b.Version, b.Class)
		if b.Type != "" {
			text += " type " + b.Type
		}
		return text
	default:
		if text := aboutRound(body); text != "" {
			return text
		}
		return aboutSystem(body)
	}
}

// aboutRound is about for what others had to do with a delivery.
func aboutRound(body event.Body) string {
	switch b := body.(type) {
	case event.RoundOpened:
		return fmt.Sprintf("%s@%d round %s for %d of role %s", b.Secret, b.Version, b.Round, b.Count, b.Role)
	case event.ShareIssued:
		return "round " + b.Round.String()
	case event.RoundApproved:
		return "round " + b.Round.String()
	case event.RoundRejected:
		return "round " + b.Round.String() + ": " + b.Reason
	case event.RoundClosed:
		text := "round " + b.Round.String() + " cancelled"
		if b.Combined {
			text = "round " + b.Round.String() + " combined"
		}
		if len(b.Bad) > 0 {
			text += ", bad shares of " + strings.Join(b.Bad, ", ")
		}
		return text
	case event.RoundExpired:
		return "round " + b.Round.String()
	}
	return ""
}

// aboutSystem is about for what has to do with devices, keys and the ledger itself.
func aboutSystem(body event.Body) string {
	switch b := body.(type) {
	case event.DeviceEnrolled:
		return b.Device
	case event.DeviceRevoked:
		return b.Device + ": " + b.Reason
	case event.AttestationAppraised:
		return b.Device
	case event.AttestationRefused:
		return b.Kind + ": " + b.Reason
	case event.RevisionActivated:
		return fmt.Sprintf("revision %d %s", b.Sequence, show.Shorten(b.Digest.String(), 15))
	case event.RevisionStaged:
		return fmt.Sprintf("staged %s", show.Shorten(b.Digest.String(), 15))
	case event.RevisionProposed:
		return fmt.Sprintf("revision %d %s proposed", b.Sequence, show.Shorten(b.Digest.String(), 15))
	case event.ShadowStarted:
		return fmt.Sprintf("shadow %s until %s", show.Shorten(b.Digest.String(), 15), b.Until)
	case event.ShadowDiffered:
		return fmt.Sprintf("%s %s, the shadow says %s", b.Decision.Action, b.Decision.Effect, b.Effect)
	case event.ShadowEnded:
		return fmt.Sprintf("shadow %s: %s", show.Shorten(b.Digest.String(), 15), b.Reason)
	case event.RevisionSwept:
		return fmt.Sprintf("revision %d %s: %d of %d sessions", b.Sequence, b.Outcome, b.Ending, b.Examined)
	case event.AttestationDemanded:
		return b.Device + " by " + b.By.String()
	case event.Genesis:
		return b.Origin
	case event.Restored:
		return fmt.Sprintf("incarnation %d, %s; %d entries of %s were known", b.Incarnation, b.Origin, b.Known.Size, b.Known.Origin)
	case event.KeyIntroduced:
		return b.Use + " " + b.KeyID
	case event.KeyRetired:
		return b.KeyID
	case event.InstanceBound:
		return b.Instance
	case event.TrustObserved:
		return fmt.Sprintf("%s: %d authorities", b.TrustDomain, len(b.Authorities))
	case event.RefusalsCounted:
		return fmt.Sprintf("%d times: %s", b.Count, b.Limit)
	case event.RequestRefused:
		return b.Check + " " + b.Method
	case event.SubjectErased:
		return fmt.Sprintf("%d events from %d to %d: %s", len(b.Indexes), b.Indexes[0], b.Indexes[len(b.Indexes)-1], b.Reason)
	case event.HoldPlaced:
		return strings.TrimSpace(b.Selector+" "+b.Value) + ": " + b.Reason
	case event.HoldReleased:
		return strings.TrimSpace(b.Selector+" "+b.Value) + ": " + b.Reason
	}
	return ""
}
