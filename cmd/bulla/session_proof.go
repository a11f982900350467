package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/sessionproof"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/internal/durable"
	"github.com/bulla-project/bulla/ledger/event"
)

func newSessionProofCommand(a *app) *cobra.Command {
	var out, key, since string
	c := &cobra.Command{
		Use: "proof ID [flags]", Short: "Write the proof of a session to a file",
		Long: "Writes one file that shows others what became of a delivery, without the broker and years later: the\n" +
			"session's events and what they rest on (envelope key, policy revision, certificate chains and trust\n" +
			"bundles of that time), each with its proof of inclusion, and a signed checkpoint. The file is verified\n" +
			"before it is written. It holds the bodies of these events: names, decisions, the signals behind them.\n\n" +
			"--since links the proof to a checkpoint that was kept from before, for `bulla audit verify-proof\n" +
			"--against`. Without --out the proof goes to stdout.",
		Example: "  bulla session proof 0193f2f0-5c1e-7a40-9a57-0d2f6f1c5a11 --out session.proof\n" +
			"  bulla session proof 0193f2f0-5c1e-7a40-9a57-0d2f6f1c5a11 --log-key log.pub --since last-month/checkpoint --out session.proof",
		Args: argument("ID"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error { return a.proveSession(c, args[0], out, key, since) },
	}
	c.Flags().StringVar(&out, "out", "", "file to write (mode 0600) instead of stdout")
	c.Flags().StringVar(&key, "log-key", "", "log.pub as it is known: a broker with another key is refused")
	c.Flags().StringVar(&since, "since", "", "file with a checkpoint of the same log that was kept from before; needs --log-key")
	a.addIdentity(c)
	return c
}

// proofAnswer is the answer of `session proof --out`.
type proofAnswer struct {
	File    string `json:"file"`
	Session string `json:"session"`
	Events  int    `json:"events"`
	Origin  string `json:"origin"`
	Size    int64  `json:"size"`
	LogKey  string `json:"log_key"`
}

func (a *app) proveSession(c *cobra.Command, id, out, keyFile, since string) error {
	if err := sessionID(id); err != nil {
		return err
	}
	if err := a.proofTarget(c, out); err != nil {
		return err
	}
	var pinned proofs.Key
	var err error
	if keyFile != "" {
		if pinned, err = readLogKey("--log-key", keyFile); err != nil {
			return err
		}
	}
	var opts sessionproof.Options
	var older proofs.Checkpoint
	if since != "" {
		if pinned.IsZero() {
			return usage("--since needs --log-key: a checkpoint is compared by the log's key")
		}
		if opts.Against, older, err = readCheckpoint("--since", since, pinned); err != nil {
			return err
		}
	}
	var p sessionproof.Proof
	err = a.withStream(c, a.timeout, func(ctx context.Context, conn *grpc.ClientConn, alive func()) error {
		stream, err := bullav1.NewProofsClient(conn).ProveSession(ctx, &bullav1.ProveSessionRequest{Id: id, Since: older.Size})
		if err != nil {
			return err
		}
		progress := show.NewProgress(a.stderr, isTerminal(a.stderr), "searched")
		defer progress.Clear()
		p, err = receiveProof(stream, id, alive, progress)
		return err
	})
	if err != nil {
		return fmt.Errorf("prove session %s: %w", id, err)
	}
	p.Since = proofs.Uncosigned(opts.Against)
	data, report, err := checkProof(p, pinned, opts)
	if err != nil {
		return fmt.Errorf("prove session %s: %w", id, err)
	}
	if !c.Flags().Changed("out") {
		_, err := a.stdout.Write(data)
		return err
	}
	if err := durable.WriteFile(out, data, 0o600); err != nil {
		return err
	}
	answer := proofAnswer{out, id, len(p.Entries), report.Origin, report.Size, p.LogKey}
	return a.print(answer, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%d events of session %s in %s\nVerify it with: bulla audit verify-proof %s --key LOG.PUB\n", answer.Events, id, show.Text(out), show.Text(out))
		return err
	})
}

// proofTarget checks where a proof is to go.
func (a *app) proofTarget(c *cobra.Command, out string) error {
	switch {
	case c.Flags().Changed("out"):
		return checkOut("--out", out)
	case isTerminal(a.stdout): // its one spelling has no escapes for what a terminal would obey
		return usage("the proof is not for a terminal: name a file with --out FILE, or have another program read it")
	}
	return nil
}

// readCheckpoint reads a checkpoint that was kept, and opens it.
func readCheckpoint(flag, path string, key proofs.Key) ([]byte, proofs.Checkpoint, error) {
	raw, err := readFile(flag, path, proofs.MaxCosigned)
	if err != nil {
		return nil, proofs.Checkpoint{}, err
	}
	at, _, err := key.OpenCosigned(raw, nil)
	if err != nil {
		return nil, at, fmt.Errorf("%s: %s: %w", flag, path, err)
	}
	return raw, at, nil
}

// receiveProof takes what the broker streams. Nothing of it is believed yet.
func receiveProof(stream grpc.ServerStreamingClient[bullav1.ProveSessionItem], id string, alive func(), progress *show.Progress) (sessionproof.Proof, error) {
	session, err := event.ParseID(id)
	if err != nil {
		return sessionproof.Proof{}, err
	}
	p, size := sessionproof.Proof{Session: session}, 0
	for {
		item, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return p, nil
		}
		if err != nil {
			return p, err
		}
		alive()
		if item.GetOf() > 0 {
			progress.Set(item.GetScanned(), item.GetOf())
		}
		if len(item.GetCheckpoint()) > 0 {
			p.Checkpoint, p.LogKey = item.GetCheckpoint(), item.GetLogKey()
		}
		if len(item.GetConsistency()) > 0 {
			consistency, err := proofs.ParseConsistencyProof(item.GetConsistency())
			if err != nil {
				return p, err
			}
			p.Consistency = consistency.Hashes
		}
		for _, r := range item.GetRecords() {
			record, err := parseRecord(r.GetRecord())
			if err != nil {
				return p, err
			}
			inclusion, err := proofs.ParseProof(r.GetInclusion())
			if err != nil {
				return p, err
			}
			p.Entries = append(p.Entries, sessionproof.Entry{Record: record, Inclusion: inclusion.Hashes})
			if size += len(record.Encoding); len(p.Entries) > sessionproof.MaxEntries || size > sessionproof.MaxSize {
				return p, fmt.Errorf("%w: the broker streams more than %d events or %d bytes", client.ErrVerification, sessionproof.MaxEntries, sessionproof.MaxSize)
			}
		}
	}
}

// checkProof reads the proof as others will, and verifies it: with the key that was given, else with the broker's.
func checkProof(p sessionproof.Proof, pinned proofs.Key, opts sessionproof.Options) ([]byte, sessionproof.Report, error) {
	var err error
	if opts.Key = pinned; pinned.IsZero() {
		if opts.Key, err = proofs.ParseKey(p.LogKey); err != nil {
			return nil, sessionproof.Report{}, fmt.Errorf("%w: the key that the broker sent: %w", client.ErrVerification, err)
		}
	}
	data, err := p.Encode()
	if err != nil {
		return nil, sessionproof.Report{}, err
	}
	again, err := sessionproof.Parse(data)
	if err != nil {
		return nil, sessionproof.Report{}, err
	}
	report, err := sessionproof.Verify(again, opts)
	return data, report, err
}
