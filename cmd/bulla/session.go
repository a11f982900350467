package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

func newSessionCommand(a *app) *cobra.Command {
	return group("session", "List, show, revoke, watch, replay and prove",
		"A session is one delivery of one version of a secret to one instance of a workload. It ends when it\n"+
			"expires, is used up, is closed by its holder or is revoked.",
		"  bulla session list --secret demo/database --state confirmed\n  bulla session revoke ID --reason \"laptop stolen\"",
		newSessionListCommand(a), newSessionShowCommand(a), newSessionRevokeCommand(a), newSessionWatchCommand(a),
		newSessionReplayCommand(a), newSessionProofCommand(a))
}

// sessionJSON is a session in JSON, as lists have it.
type sessionJSON struct {
	ID        string  `json:"id"`
	State     string  `json:"state"`
	Principal string  `json:"principal"`
	Secret    string  `json:"secret"`
	Version   uint32  `json:"version"`
	Grade     string  `json:"grade"`
	IssuedAt  string  `json:"issued_at"`
	ExpiresAt string  `json:"expires_at"`
	RevokedAt *string `json:"revoked_at"`
	Reason    string  `json:"reason"`
}

func newSessionJSON(s *bullav1.Session) sessionJSON {
	return sessionJSON{
		ID: s.GetId(), State: s.GetState(), Principal: s.GetPrincipal(), Secret: s.GetSecret(), Version: s.GetVersion(), Grade: s.GetGrade(),
		IssuedAt: moment(s.GetIssuedAt()), ExpiresAt: moment(s.GetExpiresAt()), RevokedAt: momentOrNull(s.GetRevokedAt()), Reason: s.GetReason(),
	}
}

// sessionDetails is a session in JSON with all that is known of it.
type sessionDetails struct {
	sessionJSON
	ConfirmedAt    *string `json:"confirmed_at"`
	EndedAt        *string `json:"ended_at"`
	Instance       string  `json:"instance"`
	Device         string  `json:"device"`
	Suite          string  `json:"suite"`
	EnvelopeDigest string  `json:"envelope_digest"`
	PolicyDigest   string  `json:"policy_digest"`
	Uses           *uint32 `json:"uses"` // null: not counted
	Used           *uint32 `json:"used"` // null: not by the broker
	Offline        uint32  `json:"offline"`
	Ahead          uint32  `json:"ahead"`
	Standing       string  `json:"standing"` // who has noticed a revocation: confirmed, not yet, offline; "" otherwise
	WipedAt        *string `json:"wiped_at"`
	Erased         *int64  `json:"erased"` // index of the event that erased it; null: it was not
}

func newSessionDetails(s *bullav1.Session) sessionDetails {
	d := sessionDetails{
		sessionJSON: newSessionJSON(s), ConfirmedAt: momentOrNull(s.GetConfirmedAt()), EndedAt: momentOrNull(s.GetEndedAt()), Instance: s.GetInstance(),
		Device: s.GetDevice(), Suite: s.GetSuite(), EnvelopeDigest: s.GetEnvelopeDigest(), PolicyDigest: s.GetRevision(),
		Offline: s.GetOffline(), Ahead: s.GetAhead(),
		Standing: s.GetStanding(), WipedAt: momentOrNull(s.GetWipedAt()),
	}
	if at := s.GetErased(); at != 0 {
		d.Erased = &at
	}
	if n := s.GetUses(); n > 0 {
		d.Uses = &n
		if used := s.GetUsed(); s.GetGrade() == "gated" || s.GetGrade() == "proxied" {
			d.Used = &used
		}
	}
	return d
}

// usesOf says who has counted what; "" where nothing is counted.
func usesOf(s *bullav1.Session) string {
	switch {
	case s.GetUses() == 0:
		return ""
	case s.GetGrade() == "gated" && s.GetOffline() > 0:
		return fmt.Sprintf("%d of %d, by the broker's count; %d of them ahead of their use, at most %d", s.GetUsed(), s.GetUses(), s.GetAhead(), s.GetOffline())
	case s.GetGrade() == "gated", s.GetGrade() == "proxied":
		return fmt.Sprintf("%d of %d, by the broker's count", s.GetUsed(), s.GetUses())
	}
	return fmt.Sprintf("at most %d, by the client's count", s.GetUses())
}

func (a *app) printSession(s *bullav1.Session) error {
	return a.print(newSessionDetails(s), func(w io.Writer) error { return show.Fields(w, sessionFields(s)) })
}

// sessionFields are what a person is told of a session.
func sessionFields(s *bullav1.Session) []show.Field {
	if at := s.GetErased(); at != 0 {
		return []show.Field{
			{Name: "session", Value: s.GetId()},
			{Name: "state", Value: s.GetState()},
			{Name: "erased", Value: fmt.Sprintf("by event %d", at)},
		}
	}
	return []show.Field{
		{Name: "session", Value: s.GetId()},
		{Name: "state", Value: s.GetState()},
		{Name: "principal", Value: s.GetPrincipal()},
		{Name: "secret", Value: fmt.Sprintf("%s, version %d", s.GetSecret(), s.GetVersion())},
		{Name: "grade", Value: s.GetGrade()},
		{Name: "uses", Value: usesOf(s)},
		{Name: "issued", Value: second(s.GetIssuedAt())},
		{Name: "confirmed", Value: second(s.GetConfirmedAt())},
		{Name: "expires", Value: second(s.GetExpiresAt())},
		{Name: "revoked", Value: second(s.GetRevokedAt())},
		{Name: "ended", Value: second(s.GetEndedAt())},
		{Name: "reason", Value: s.GetReason()},
		{Name: "noticed", Value: s.GetStanding()},
		{Name: "instance", Value: s.GetInstance()},
		{Name: "device", Value: s.GetDevice()},
		{Name: "suite", Value: s.GetSuite()},
		{Name: "envelope", Value: s.GetEnvelopeDigest()},
		{Name: "policy", Value: s.GetRevision()},
	}
}

func newSessionListCommand(a *app) *cobra.Command {
	in := new(bullav1.ListSessionsRequest)
	c := &cobra.Command{
		Use: "list [flags]", Short: "List sessions, the newest first",
		Long: "Lists sessions, the newest first. With -o json: {\"sessions\": [...], \"next\"}; next is null, or what\n" +
			"--before takes to go on.",
		Example: "  bulla session list\n  bulla session list --principal spiffe://dev.bulla.test/workload --state issued --state confirmed",
		Args:    argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error { return a.listSessions(c, in) },
	}
	f := c.Flags()
	f.StringVar(&in.Principal, "principal", "", "only those of this SPIFFE ID")
	f.StringVar(&in.Secret, "secret", "", "only those of this secret")
	f.StringVar(&in.Device, "device", "", "only those that relied on this device")
	f.StringSliceVar(&in.States, "state", nil, "only those in this state; may be repeated")
	f.StringVar(&in.Before, "before", "", "go on with what is older than this session")
	f.Uint32Var(&in.Limit, "limit", 100, "list at most so many, up to 1000")
	completeFlag(c, "state", string(session.Issued), string(session.Confirmed), string(session.Unconfirmed), string(session.Exhausted),
		string(session.Expired), string(session.Revoked), string(session.Closed))
	a.addIdentity(c)
	return c
}

func (a *app) listSessions(c *cobra.Command, in *bullav1.ListSessionsRequest) error {
	for _, s := range in.GetStates() {
		if _, err := session.ParseState(s); err != nil {
			return usage("--state: %v", err)
		}
	}
	if err := cmp.Or(checkPrincipal("--principal", in.GetPrincipal()), checkSecret("--secret", in.GetSecret()), checkDevice("--device", in.GetDevice())); err != nil {
		return err
	}
	if in.GetBefore() != "" {
		if _, err := event.ParseID(in.GetBefore()); err != nil {
			return usage("--before: %q is not the id of a session", in.GetBefore())
		}
	}
	var reply *bullav1.ListSessionsReply
	err := a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		reply, err = bullav1.NewSessionsClient(conn).ListSessions(ctx, in)
		return err
	})
	if err != nil {
		return fmt.Errorf("list sessions: %w", err)
	}
	answer := struct {
		Sessions []sessionJSON `json:"sessions"`
		Next     *string       `json:"next"`
	}{[]sessionJSON{}, orNull(reply.GetNext())}
	for _, s := range reply.GetSessions() {
		answer.Sessions = append(answer.Sessions, newSessionJSON(s))
	}
	return a.print(answer, func(w io.Writer) error {
		if err := sessionTable(w, reply.GetSessions()); err != nil {
			return err
		}
		return more(w, reply.GetNext(), "--before")
	})
}

// sessionTable fits a terminal with whole session ids: 36 + 11 + 13 + 14 and three gaps of two are 80.
func sessionTable(w io.Writer, sessions []*bullav1.Session) error {
	var rows [][]string
	for _, s := range sessions {
		what := s.GetSecret() + "@" + strconv.FormatUint(uint64(s.GetVersion()), 10)
		if s.GetErased() != 0 {
			what = "erased"
		}
		rows = append(rows, []string{s.GetId(), s.GetState(), pathOf(s.GetPrincipal()), what})
	}
	return show.Table(w, []show.Column{{Title: "SESSION", Max: 36}, {Title: "STATE", Max: 11}, {Title: "PRINCIPAL", Max: 13}, {Title: "SECRET", Max: 14}}, rows)
}

// pathOf is a SPIFFE ID without its trust domain.
func pathOf(id string) string {
	rest, ok := strings.CutPrefix(id, "spiffe://")
	if !ok {
		return id
	}
	if at := strings.IndexByte(rest, '/'); at >= 0 {
		return rest[at:]
	}
	return rest
}

// sessionID refuses what can't be the id of any session: there is none of that name, as with an unknown id.
func sessionID(text string) error {
	if _, err := event.ParseID(text); err != nil {
		return fmt.Errorf("%w: there is no session %q: `bulla session list` shows which there are", client.ErrNotFound, text)
	}
	return nil
}

// checkReason wants a reason for what can't be taken back.
func checkReason(reason string) error {
	if strings.TrimSpace(reason) == "" {
		return usage("--reason is missing: it goes into the record")
	}
	return nil
}
