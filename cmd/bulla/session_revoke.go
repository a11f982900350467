package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/secret"
)

// revokeFlags say what a revocation ends, and how long it stays to hear who confirms.
type revokeFlags struct {
	principal, secret, device, revision, domain string
	reason, sweep                               string
	dryRun                                      bool
	wait                                        time.Duration
}

func newSessionRevokeCommand(a *app) *cobra.Command {
	in := new(revokeFlags)
	c := &cobra.Command{
		Use: "revoke [ID] --reason TEXT [flags]", Short: "End a session, or all of a kind",
		Long: "Ends sessions for good: one by its id, or all of a principal, secret, device, policy revision or trust\n" +
			"domain that were delivered up to now. It bars nobody: what the policy permits is delivered again. To\n" +
			"revoke one that has ended is no error.\n\n" +
			"The table says who has noticed: \"confirmed\" (the client says that it has wiped what it held), \"not yet\"\n" +
			"(it is connected), \"offline\" (it notices at its next call). --wait is how long to stay for that.\n" +
			"--dry-run lists what would end.\n\n" +
			"A new policy revision ends the sessions that it would not permit. Where these are too many, it waits for\n" +
			"somebody who may push policies: --sweep confirm ends them, --sweep drop lets them live on.",
		Example: "  bulla session revoke 0193f2f0-5c1e-7a40-9a57-0d2f6f1c5a11 --reason \"key leaked\"\n" +
			"  bulla session revoke --principal spiffe://dev.bulla.test/workload --dry-run\n" +
			"  bulla session revoke --sweep confirm --reason \"the new grants are meant so\"",
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			if in.sweep != "" {
				return a.decideSweep(c, in, args)
			}
			return a.revokeSessions(c, in, args)
		},
	}
	f := c.Flags()
	f.StringVar(&in.principal, "principal", "", "all sessions of this SPIFFE ID")
	f.StringVar(&in.secret, "secret", "", "all sessions of this secret")
	f.StringVar(&in.device, "device", "", "all sessions that relied on this device")
	f.StringVar(&in.revision, "revision", "", "all sessions that this policy revision permitted (its digest, or the first digits)")
	f.StringVar(&in.domain, "members-of", "", "all sessions of members of this trust domain")
	f.StringVar(&in.reason, "reason", "", "why, for the record (required)")
	f.BoolVar(&in.dryRun, "dry-run", false, "only list what would end")
	f.DurationVar(&in.wait, "wait", 3*time.Second, "how long to wait for clients to confirm, at most a minute")
	f.StringVar(&in.sweep, "sweep", "", "decide on the sessions that a new revision would end: confirm or drop")
	completeFlag(c, "sweep", "confirm", "drop")
	a.addIdentity(c)
	return c
}

// request is what the flags name; exactly one thing.
func (in *revokeFlags) request(args []string) (*bullav1.RevokeRequest, error) {
	out := &bullav1.RevokeRequest{Reason: in.reason, DryRun: in.dryRun, WaitSeconds: uint32((min(max(in.wait, 0), time.Minute) + time.Second - 1) / time.Second)}
	named := 0
	if len(args) == 1 {
		if err := sessionID(args[0]); err != nil {
			return nil, err
		}
		named, out.Selector = 1, &bullav1.RevokeRequest_Session{Session: args[0]}
	}
	if in.principal != "" {
		named, out.Selector = named+1, &bullav1.RevokeRequest_Principal{Principal: in.principal}
	}
	if in.secret != "" {
		named, out.Selector = named+1, &bullav1.RevokeRequest_Secret{Secret: in.secret}
	}
	if in.device != "" {
		named, out.Selector = named+1, &bullav1.RevokeRequest_Device{Device: in.device}
	}
	if in.revision != "" {
		named, out.Selector = named+1, &bullav1.RevokeRequest_Revision{Revision: in.revision}
	}
	if in.domain != "" {
		named, out.Selector = named+1, &bullav1.RevokeRequest_TrustDomain{TrustDomain: in.domain}
	}
	if named != 1 {
		return nil, usage("name exactly one of: the id of a session, --principal, --secret, --device, --revision, --members-of")
	}
	if err := cmp.Or(checkPrincipal("--principal", in.principal), checkSecret("--secret", in.secret), checkDevice("--device", in.device),
		checkRevision("--revision", in.revision), checkDomain("--members-of", in.domain)); err != nil {
		return nil, err
	}
	if in.dryRun {
		return out, nil
	}
	return out, checkReason(in.reason)
}

// revokedJSON is a session that a revocation ended, or would end.
type revokedJSON struct {
	sessionJSON
	Standing string `json:"standing"` // "" with --dry-run, and for one that had ended otherwise
}

// revocationJSON is the outcome of a revocation.
type revocationJSON struct {
	DryRun    bool          `json:"dry_run"`
	Sessions  []revokedJSON `json:"sessions"`
	Total     uint64        `json:"total"`
	Confirmed uint64        `json:"confirmed"`
	Waiting   uint64        `json:"not_yet"`
	Offline   uint64        `json:"offline"`
}

func (a *app) revokeSessions(c *cobra.Command, in *revokeFlags, args []string) error {
	request, err := in.request(args)
	if err != nil {
		return err
	}
	var order []string
	told := map[string]*bullav1.Session{}
	summary := new(bullav1.RevokeSummary)
	silence := a.timeout + time.Duration(request.GetWaitSeconds())*time.Second
	err = a.withStream(c, silence, func(ctx context.Context, conn *grpc.ClientConn, alive func()) error {
		if in.revision != "" {
			digest, err := fullDigest(ctx, conn, in.revision)
			if err != nil {
				return err
			}
			request.Selector = &bullav1.RevokeRequest_Revision{Revision: digest}
		}
		stream, err := bullav1.NewRevocationsClient(conn).Revoke(ctx, request)
		if err != nil {
			return err
		}
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			alive()
			if s := m.GetSession(); s != nil {
				if told[s.GetId()] == nil {
					order = append(order, s.GetId())
				}
				told[s.GetId()] = s
			}
			if m.GetSummary() != nil {
				summary = m.GetSummary()
			}
		}
	})
	if err != nil {
		return fmt.Errorf("revoke: %w", err)
	}
	answer := revocationJSON{in.dryRun, []revokedJSON{}, summary.GetSessions(), summary.GetConfirmed(), summary.GetWaiting(), summary.GetOffline()}
	sessions := make([]*bullav1.Session, len(order))
	for i, id := range order {
		sessions[i] = told[id]
		answer.Sessions = append(answer.Sessions, revokedJSON{newSessionJSON(told[id]), told[id].GetStanding()})
	}
	if len(args) == 1 && !in.dryRun && len(sessions) == 1 {
		return a.printSession(sessions[0])
	}
	return a.print(answer, func(w io.Writer) error { return revocationText(w, answer, sessions) })
}

func revocationText(w io.Writer, answer revocationJSON, sessions []*bullav1.Session) error {
	var rows [][]string
	for _, s := range sessions {
		standing := s.GetStanding()
		if standing == "" {
			standing = s.GetState()
		}
		rows = append(rows, []string{s.GetId(), standing, pathOf(s.GetPrincipal()), s.GetSecret() + "@" + strconv.FormatUint(uint64(s.GetVersion()), 10)})
	}
	if len(rows) > 0 {
		if err := show.Table(w, []show.Column{{Title: "SESSION", Max: 36}, {Title: "STANDING", Max: 11}, {Title: "PRINCIPAL", Max: 13}, {Title: "SECRET", Max: 14}}, rows); err != nil {
			return err
		}
	}
	line := fmt.Sprintf("%s: %d confirmed, %d not yet, %d offline", sessionCount("ended", answer.Total), answer.Confirmed, answer.Waiting, answer.Offline)
	if answer.DryRun {
		line = sessionCount("would end", answer.Total)
	}
	_, err := fmt.Fprintln(w, line)
	return err
}

func sessionCount(what string, n uint64) string {
	if n == 1 {
		return "1 session " + what
	}
	return fmt.Sprintf("%d sessions %s", n, what)
}

// decideSweep confirms or drops what a new revision would end.
func (a *app) decideSweep(c *cobra.Command, in *revokeFlags, args []string) error {
	if !slices.Contains([]string{"confirm", "drop"}, in.sweep) {
		return usage("--sweep: %q is neither confirm nor drop", in.sweep)
	}
	if len(args) > 0 || in.principal+in.secret+in.device+in.revision+in.domain != "" || in.dryRun {
		return usage("--sweep stands alone, with --reason: `bulla policy list` shows what is held")
	}
	if err := checkReason(in.reason); err != nil {
		return err
	}
	var reply *bullav1.SweepStatus
	err := a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		reply, err = bullav1.NewRevocationsClient(conn).DecideSweep(ctx, &bullav1.DecideSweepRequest{Confirm: in.sweep == "confirm", Reason: in.reason})
		return err
	})
	if err != nil {
		return fmt.Errorf("decide on the sweep: %w", err)
	}
	answer := struct {
		Digest   string `json:"digest"`
		Sequence uint64 `json:"sequence"`
		Outcome  string `json:"outcome"`
		Examined uint64 `json:"examined"`
		Ending   uint64 `json:"ending"`
	}{reply.GetDigest(), reply.GetSequence(), reply.GetOutcome(), reply.GetExamined(), reply.GetEnding()}
	return a.print(answer, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "revision %d: %s; %d of %d sessions\n", answer.Sequence, answer.Outcome, answer.Ending, answer.Examined)
		return err
	})
}

func newSessionWatchCommand(a *app) *cobra.Command {
	in := new(bullav1.WatchSessionsRequest)
	var hold []string
	c := &cobra.Command{
		Use: "watch [flags]", Short: "Follow what happens to sessions",
		Long: "Prints what happens to sessions from now on, one event a line: for those who may list sessions, and\n" +
			"of each what they may see. With -o json each line is one object.\n\n" +
			"With --hold NAME it is a workload: it gets the secret, holds it, and prints what it is told about it\n" +
			"(a newer version, the end), until the session is over. The value is never printed.",
		Example: "  bulla session watch --principal spiffe://dev.bulla.test/workload\n  bulla session watch --hold demo/database -o json",
		Args:    argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := cmp.Or(checkPrincipal("--principal", in.GetPrincipal()), checkSecret("--secret", in.GetSecret())); err != nil {
				return err
			}
			for _, name := range hold {
				if _, err := secret.ParseName(name); err != nil {
					return usage("--hold: %v", err)
				}
			}
			if len(hold) > 0 {
				return a.holdSecrets(c, hold)
			}
			return a.watchSessions(c, in)
		},
	}
	c.Flags().StringVar(&in.Principal, "principal", "", "only sessions of this SPIFFE ID")
	c.Flags().StringVar(&in.Secret, "secret", "", "only sessions of this secret")
	c.Flags().StringSliceVar(&hold, "hold", nil, "get this secret, as a workload, and print what becomes of it; may be repeated")
	a.addIdentity(c)
	a.addDevice(c)
	return c
}

// changeJSON is one line of session watch.
type changeJSON struct {
	Index    *int64       `json:"index"` // null where it is not known
	Time     string       `json:"time"`
	Type     string       `json:"type"`
	Session  *sessionJSON `json:"session"`
	Standing string       `json:"standing"`
	Detail   string       `json:"detail"`
}

func (a *app) watchSessions(c *cobra.Command, in *bullav1.WatchSessionsRequest) error {
	for {
		opened := time.Now()
		err := a.withStream(c, 0, func(ctx context.Context, conn *grpc.ClientConn, _ func()) error {
			stream, err := bullav1.NewRevocationsClient(conn).WatchSessions(ctx, in)
			if err != nil {
				return err
			}
			for {
				m, err := stream.Recv()
				if err != nil {
					return err
				}
				if err := a.printChange(m); err != nil {
					return err
				}
			}
		})
		if c.Context().Err() != nil {
			return nil // interrupted: the end of following
		}
		if !streamEnded(err) || time.Since(opened) < tooSoon {
			return fmt.Errorf("watch sessions: %w", err)
		}
	}
}

func (a *app) printChange(m *bullav1.SessionChange) error {
	s := newSessionJSON(m.GetSession())
	if a.json() {
		index := m.GetIndex()
		return show.JSONLine(a.stdout, changeJSON{&index, moment(m.GetTime()), m.GetType(), &s, m.GetSession().GetStanding(), s.Reason})
	}
	line := fmt.Sprintf("%6d  %s  %-18s  %s  %s  %s@%d", m.GetIndex(), second(m.GetTime()), show.Text(m.GetType()), s.ID, show.Text(pathOf(s.Principal)), show.Text(s.Secret), s.Version)
	if s.Reason != "" {
		line += ": " + show.Text(s.Reason)
	}
	_, err := fmt.Fprintln(a.stdout, line)
	return err
}

// holdSecrets is a workload that holds secrets and says what becomes of them. It ends when all have ended.
func (a *app) holdSecrets(c *cobra.Command, names []string) error {
	a.holdsSecrets()
	ctx := c.Context()
	broker, err := a.connect(ctx, true)
	if err != nil {
		return err
	}
	defer broker.Close()
	type news struct {
		s    *client.Secret
		kind string
		text string
	}
	told := make(chan news)
	open := 0
	for _, name := range names {
		get, cancel := context.WithTimeout(ctx, a.timeout)
		s, err := broker.Get(get, name)
		cancel()
		if s == nil {
			return fmt.Errorf("get %s: %w", name, err)
		}
		defer s.Close()
		open++
		done, rotated := s.Done(), s.Rotated()
		if err := a.printHeld(s, "held", "until "+s.Expires.Format(time.RFC3339)); err != nil {
			return err
		}
		tell := func(n news) bool {
			select {
			case told <- n:
				return true
			case <-ctx.Done():
				return false
			}
		}
		go func() {
			select {
			case <-rotated:
				if !tell(news{s, "rotated", "there is a newer version"}) {
					return
				}
				<-done
			case <-done:
			}
			text := ""
			if cause := s.Cause(); cause != nil {
				text = cause.Error()
			}
			tell(news{s, "ended", text})
		}()
	}
	for open > 0 {
		select {
		case n := <-told:
			if n.kind == "ended" {
				open--
			}
			if err := a.printHeld(n.s, n.kind, n.text); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

func (a *app) printHeld(s *client.Secret, kind, text string) error {
	now := time.Now().UTC().Format(time.RFC3339)
	if a.json() {
		return show.JSONLine(a.stdout, changeJSON{Time: now, Type: kind, Detail: text, Session: &sessionJSON{
			ID: s.SessionID, State: s.Receipt, Secret: s.Name, Version: uint32(s.Version), Grade: s.Grade, ExpiresAt: s.Expires.Format(time.RFC3339),
		}})
	}
	_, err := fmt.Fprintf(a.stdout, "%s  %-8s  %s  %s@%d  %s\n", now, kind, s.SessionID, show.Text(s.Name), s.Version, show.Text(text))
	return err
}
