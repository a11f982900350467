package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/broker/server"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
)

// maxKeyFile is the largest log.pub that is read, in bytes.
const maxKeyFile = 4 << 10

func newAuditCommand(a *app) *cobra.Command {
	return group("audit", "Question, follow, export, verify and erase the record",
		"The broker records every decision and every change as an event, and commits to the events in a Merkle\n"+
			"log with signed checkpoints. An export can be verified by anybody, without the broker.",
		"  bulla audit export --out export/\n  bulla audit verify export/ --key log.pub",
		newAuditVerifyCommand(a), newAuditVerifyProofCommand(a), newAuditCheckpointCommand(a), newAuditTailCommand(a), newAuditExportCommand(a), newAuditRebuildCommand(a),
		newAuditQueryCommand(a), newAuditBlastCommand(a), newAuditEraseCommand(a), newAuditHoldCommand(a))
}

func newAuditVerifyCommand(a *app) *cobra.Command {
	var key, against string
	var witnesses []string
	c := &cobra.Command{
		Use: "verify DIR --key FILE [--against CHECKPOINT] [--witness KEY]", Short: "Verify an export, without a broker",
		Long: "Reads every byte of an export, makes tree and checkpoint again from the events, and says whether all\n" +
			"of it is what the log's key signed. The key is the broker's log.pub: get it once, and not together\n" +
			"with the export.\n\n" +
			"--against is a checkpoint that was kept from before: the export has to hold that history, unchanged.\n" +
			"--witness is the key of a witness (may be repeated) that has to have cosigned either that checkpoint or\n" +
			"the one in the export. Without either the export may be an old one, or one that nobody else was shown.\n" +
			"The exit code is 5 if anything does not verify.",
		Example: "  bulla audit verify export/ --key log.pub\n  bulla audit verify export/ --key log.pub --against last-month/checkpoint\n" +
			"  bulla audit verify export/ --key log.pub --witness witness.pub",
		Args: argument("DIR"), ValidArgsFunction: completeDir, DisableFlagsInUseLine: true,
		RunE: func(c *cobra.Command, args []string) error {
			return a.verifyExport(c, args[0], key, against, witnesses)
		},
	}
	c.Flags().StringVar(&key, "key", "", "file with the log's key: log.pub (required)")
	c.Flags().StringVar(&against, "against", "", "file with a checkpoint of the same log that was kept from before")
	c.Flags().StringArrayVar(&witnesses, "witness", nil, "file with the key of a witness that has to have cosigned; may be repeated")
	return c
}

// readLogKey reads a log.pub.
func readLogKey(flag, path string) (proofs.Key, error) {
	text, err := readFile(flag, path, maxKeyFile)
	if err != nil {
		return proofs.Key{}, err
	}
	key, err := proofs.ParseKey(string(text))
	if err != nil {
		return proofs.Key{}, fmt.Errorf("%s: %s: %w", flag, path, err)
	}
	return key, nil
}

// faultReport is the answer of `audit verify` for an export that is not what it says.
type faultReport struct {
	OK    bool         `json:"ok"`
	Fault *audit.Fault `json:"fault"`
}

// goodReport is the answer for one that is.
type goodReport struct {
	OK bool `json:"ok"`
	audit.Report
}

func (a *app) verifyExport(c *cobra.Command, dir, keyFile, against string, witnesses []string) error {
	if keyFile == "" {
		return usage("--key is missing: name the file with the log's key, which the broker writes as log.pub")
	}
	if err := checkDir(dir); err != nil {
		return err
	}
	key, err := readLogKey("--key", keyFile)
	if err != nil {
		return err
	}
	var opts audit.VerifyOptions
	if against != "" {
		if opts.Against, err = readFile("--against", against, proofs.MaxCosigned); err != nil {
			return err
		}
	}
	if opts.Witnesses, err = readWitnesses(witnesses); err != nil {
		return err
	}
	ctx, cancel := a.offline(c)
	defer cancel()
	defer runtime.KeepAlive(ballast(whileReading))
	progress := show.NewProgress(a.stderr, isTerminal(a.stderr), "verified")
	opts.Progress = progress.Set
	report, err := audit.Verify(ctx, dir, key, opts)
	progress.Clear()
	var fault *audit.Fault
	if errors.As(err, &fault) {
		return &answered{err, faultReport{false, fault}}
	}
	if err != nil {
		return err
	}
	return a.print(goodReport{true, report}, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, show.Lines(report.Summary))
		if err != nil {
			return err
		}
		return show.Fields(w, []show.Field{
			{Name: "log", Value: report.Origin},
			{Name: "root", Value: report.Root},
			{Name: "read", Value: fmt.Sprintf("%d files, %d bytes", report.Files, report.Bytes)},
			{Name: "manifest", Value: report.ManifestSHA256.String()},
			{Name: "erased", Value: erasedOf(report.Erased)},
		})
	})
}

// erasedOf says how many entries can't be read any more; "" for none.
func erasedOf(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d entries, each by an event of the log that says so", n)
}

func newAuditExportCommand(a *app) *cobra.Command {
	var out, key string
	var o ocsfFlags
	c := &cobra.Command{
		Use: "export --out DIR|FILE [flags]", Short: "Export the log with all events",
		Long: "Writes the log up to its newest checkpoint into a new directory: checkpoint, tiles as in C2SP\n" +
			"tlog-tiles, event bodies, policy revisions and a manifest. What does not fit the checkpoint is refused (exit code 5), and\n" +
			"then there is no directory. The event bodies are for auditors; only checkpoint and tile/ are fit for\n" +
			"the public.\n\n" +
			"--format ocsf writes the events as OCSF JSON lines instead, for a SIEM: appended to a file, to stdout (-), or\n" +
			"to AWS CloudWatch Logs (cloudwatch:GROUP/STREAM). Each arrives at least once; duplicates have the same\n" +
			"metadata.uid. With --state the next run goes on where the last one came to. docs/export.md has more.",
		Example: "  bulla audit export --out export/ --log-key log.pub\n" +
			"  bulla audit export --format ocsf --out events.jsonl --state events.pos --follow",
		Args: argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			switch o.format {
			case formatDirectory:
				if err := onlyOCSF(c); err != nil {
					return err
				}
				return a.exportLog(c, out, key)
			case formatOCSF:
				if key != "" {
					return usage("--log-key is for --format directory: OCSF lines carry no proof")
				}
				return a.exportOCSF(c, out, o)
			}
			return usage("--format is %q: use directory or ocsf", o.format)
		},
	}
	c.Flags().StringVar(&out, "out", "", "directory to make; it must not exist. With --format ocsf: FILE, - or cloudwatch:GROUP/STREAM (required)")
	addOCSF(c, &o)
	c.Flags().StringVar(&key, "log-key", "", "log.pub as it is known: a broker with another key is refused")
	a.addIdentity(c)
	return c
}

// exportAnswer is the answer of `audit export`.
type exportAnswer struct {
	Dir    string `json:"dir"`
	Origin string `json:"origin"`
	Size   int64  `json:"size"`
	Root   string `json:"root"`
	Files  int    `json:"files"`
	LogKey string `json:"log_key"`
}

func (a *app) exportLog(c *cobra.Command, out, keyFile string) error {
	if out == "" {
		return usage("--out is missing: name the directory to make")
	}
	if err := mustNotExist("--out", out); err != nil {
		return err
	}
	var pinned proofs.Key
	if keyFile != "" {
		var err error
		if pinned, err = readLogKey("--log-key", keyFile); err != nil {
			return err
		}
	}
	var manifest audit.Manifest
	var key proofs.Key
	err := a.withStream(c, a.timeout, func(ctx context.Context, conn *grpc.ClientConn, alive func()) (err error) {
		stream, err := bullav1.NewAuditClient(conn).Export(ctx, &bullav1.ExportRequest{})
		if err != nil {
			return err
		}
		progress := show.NewProgress(a.stderr, isTerminal(a.stderr), "exported")
		defer progress.Clear()
		manifest, key, err = receiveExport(ctx, stream, exportTarget{out, pinned, revisionsOf(fetched(conn))}, alive, progress)
		return err
	})
	if err != nil {
		return fmt.Errorf("export the log: %w", err)
	}
	answer := exportAnswer{out, manifest.Origin, manifest.Size, manifest.Root.String(), len(manifest.Files) + 1, key.String()}
	return a.print(answer, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%d events of %s in %s\nVerify it with: bulla audit verify %s --key LOG.PUB\n",
			answer.Size, show.Text(answer.Origin), show.Text(out), show.Text(out))
		return err
	})
}

func newAuditRebuildCommand(a *app) *cobra.Command {
	var check bool
	var data, kek string
	c := &cobra.Command{
		Use: "rebuild --check [--data DIR --kek-file FILE]", Short: "Compare the state with the events",
		Long: "Makes the broker's state again from its events and compares it with what is stored: on a snapshot,\n" +
			"while the broker serves. With --data it works on the data directory of a broker that is stopped. The\n" +
			"exit code is 5 if there is a difference.",
		Example: "  bulla audit rebuild --check\n  bulla audit rebuild --check --data /var/lib/bulla --kek-file /etc/bulla/kek",
		Args:    argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			if !check {
				return usage("bulla audit rebuild needs --check: it compares, and changes nothing")
			}
			if (data == "") != (kek == "") {
				return usage("--data and --kek-file belong together: the events are encrypted")
			}
			return a.checkRebuild(c, data, kek)
		},
	}
	c.Flags().BoolVar(&check, "check", false, "compare and change nothing (required)")
	c.Flags().StringVar(&data, "data", "", "data directory of a broker that is stopped")
	c.Flags().StringVar(&kek, "kek-file", "", "its key-encryption key, as keyring.kek_file names it")
	a.addIdentity(c)
	return c
}

// rebuildAnswer is the answer of `audit rebuild`.
type rebuildAnswer struct {
	OK          bool     `json:"ok"`
	Events      int64    `json:"events"`
	Rows        int64    `json:"rows"`
	Differences []string `json:"differences"`
}

func (a *app) checkRebuild(c *cobra.Command, data, kek string) error {
	var found rebuildAnswer
	var err error
	if data != "" {
		found, err = a.stoppedRebuild(c, data, kek)
	} else {
		found, err = a.liveRebuild(c)
	}
	if err != nil {
		return fmt.Errorf("compare the state with the events: %w", err)
	}
	err = a.print(found, func(w io.Writer) error {
		for _, d := range found.Differences {
			if _, err := fmt.Fprintln(w, show.Lines(d)); err != nil {
				return err
			}
		}
		verdict := "the state is what the events make of it"
		if !found.OK {
			verdict = "THE STATE IS NOT what the events make of it"
		}
		_, err := fmt.Fprintf(w, "%s: %d events, %d rows, %d differences\n", verdict, found.Events, found.Rows, len(found.Differences))
		return err
	})
	if err == nil && !found.OK {
		return &reported{exitVerification}
	}
	return err
}

func (a *app) liveRebuild(c *cobra.Command) (answer rebuildAnswer, err error) {
	err = a.withStream(c, a.timeout, func(ctx context.Context, conn *grpc.ClientConn, alive func()) error {
		stream, err := bullav1.NewAuditClient(conn).CheckRebuild(ctx, &bullav1.CheckRebuildRequest{})
		if err != nil {
			return err
		}
		progress := show.NewProgress(a.stderr, isTerminal(a.stderr), "compared")
		defer progress.Clear()
		for {
			reply, err := stream.Recv()
			if err != nil { // io.EOF as well: the report did not come
				return err
			}
			alive()
			progress.Set(reply.GetEvents(), reply.GetOf())
			if reply.GetReport() {
				answer = rebuildAnswer{len(reply.GetDifferences()) == 0, reply.GetEvents(), reply.GetRows(), append([]string{}, reply.GetDifferences()...)}
				return nil
			}
		}
	})
	return answer, err
}

func (a *app) stoppedRebuild(c *cobra.Command, data, kek string) (rebuildAnswer, error) {
	if err := checkDir(data); err != nil {
		return rebuildAnswer{}, err
	}
	a.holdsSecrets()
	ctx, cancel := a.offline(c)
	defer cancel()
	progress := show.NewProgress(a.stderr, isTerminal(a.stderr), "compared")
	report, err := server.CheckStopped(ctx, data, kek, progress.Set)
	progress.Clear()
	if err != nil {
		return rebuildAnswer{}, err
	}
	answer := rebuildAnswer{report.OK(), report.Events, report.Rows, []string{}}
	for _, d := range report.Differences {
		answer.Differences = append(answer.Differences, d.Where+": "+d.What)
	}
	return answer, nil
}
