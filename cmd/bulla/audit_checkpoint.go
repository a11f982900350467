package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/internal/durable"
)

// refusedSuffix is that of the file with a checkpoint that does not extend the older one.
const refusedSuffix = ".refused"

// checkpointFlags are those of `bulla audit checkpoint`.
type checkpointFlags struct {
	key, since, out string
	witnesses       []string
	witnessed       bool
}

func newAuditCheckpointCommand(a *app) *cobra.Command {
	var f checkpointFlags
	c := &cobra.Command{
		Use: "checkpoint --log-key FILE [flags]", Short: "Get the newest checkpoint, and check that the log only grew",
		Long: "Gets the log's newest signed checkpoint. With --since it is shown that the log of that checkpoint, kept\n" +
			"from before, is the beginning of the new one: nothing in it was changed, removed or put in between. Keep\n" +
			"what --out writes for the next time. The exit code is 5 if it does not hold; what was signed is in\n" +
			"FILE.refused then.\n\n" +
			"With --witnessed it is the newest one that enough witnesses cosigned, by the broker's configuration;\n" +
			"--witness names the key of one that has to be among them, and may be repeated. Every member of the\n" +
			"trust domain may ask.",
		Example: "  bulla audit checkpoint --log-key log.pub --out checkpoint\n" +
			"  bulla audit checkpoint --log-key log.pub --since checkpoint --out checkpoint.new",
		Args: argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error { return a.checkpoint(c, f) },
	}
	flags := c.Flags()
	flags.StringVar(&f.key, "log-key", "", "file with the log's key: log.pub (required)")
	flags.StringVar(&f.since, "since", "", "file with a checkpoint of the same log that was kept from before")
	flags.StringVar(&f.out, "out", "", "file to write the checkpoint to")
	flags.BoolVar(&f.witnessed, "witnessed", false, "the newest one that enough witnesses cosigned")
	flags.StringArrayVar(&f.witnesses, "witness", nil, "file with the key of a witness that has to have cosigned; may be repeated; implies --witnessed")
	a.addIdentity(c)
	return c
}

// checkpointAnswer is the answer of `audit checkpoint`.
type checkpointAnswer struct {
	OK         bool                 `json:"ok"`
	Origin     string               `json:"origin"`
	Size       int64                `json:"size"`
	Root       string               `json:"root"`
	Since      *int64               `json:"since"` // size of the older checkpoint, or null
	Witnesses  []proofs.Cosignature `json:"witnesses"`
	Checkpoint string               `json:"checkpoint"`
}

func (a *app) checkpoint(c *cobra.Command, f checkpointFlags) error {
	if f.key == "" {
		return usage("--log-key is missing: name the file with the log's key, which the broker writes as log.pub")
	}
	if c.Flags().Changed("out") {
		if err := checkOut("--out", f.out); err != nil {
			return err
		}
	}
	key, err := readLogKey("--log-key", f.key)
	if err != nil {
		return err
	}
	witnesses, err := readWitnesses(f.witnesses)
	if err != nil {
		return err
	}
	var old proofs.Checkpoint
	if f.since != "" {
		if _, old, err = readCheckpoint("--since", f.since, key); err != nil {
			return err
		}
	}
	var reply *bullav1.CheckpointReply
	err = a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		reply, err = bullav1.NewProofsClient(conn).Checkpoint(ctx, &bullav1.CheckpointRequest{Since: old.Size, Witnessed: f.witnessed || len(witnesses) > 0})
		return err
	})
	if err != nil {
		return fmt.Errorf("get the newest checkpoint: %w", err)
	}
	answer, err := checkCheckpoint(reply, key, old, f, witnesses)
	if err != nil {
		return fmt.Errorf("the newest checkpoint: %w", keepRefused(f, key, reply.GetCheckpoint(), err))
	}
	if f.out != "" {
		if err := durable.WriteFile(f.out, reply.GetCheckpoint(), 0o644); err != nil {
			return err
		}
	}
	return a.print(answer, func(w io.Writer) error { return checkpointText(w, answer) })
}

// keepRefused writes down a checkpoint that the log's key signed and that is not shown to extend the older one: where they
// contradict each other, both together are the evidence. It goes to a file of its own, so that nobody takes it for the next
// one to compare with.
func keepRefused(f checkpointFlags, key proofs.Key, raw []byte, refused error) error {
	if _, _, err := key.OpenCosigned(raw, nil); err != nil || f.since == "" {
		return refused
	}
	if f.out == "" {
		return fmt.Errorf("%w; ask again with --out FILE: what the log's key signed is kept in FILE%s then", refused, refusedSuffix)
	}
	path := f.out + refusedSuffix
	if err := durable.WriteFile(path, raw, 0o644); err != nil {
		return fmt.Errorf("%w; what the log's key signed could not be kept: %w", refused, err)
	}
	return fmt.Errorf("%w; what the log's key signed is in %s: keep it together with %s", refused, path, f.since)
}

// checkCheckpoint checks what the broker answered.
func checkCheckpoint(reply *bullav1.CheckpointReply, key proofs.Key, old proofs.Checkpoint, f checkpointFlags, witnesses []proofs.WitnessKey) (checkpointAnswer, error) {
	at, sigs, err := key.OpenCosigned(reply.GetCheckpoint(), witnesses)
	if err != nil {
		return checkpointAnswer{}, err
	}
	if _, missing := proofs.VerifiedBy(sigs, witnesses); len(missing) > 0 {
		return checkpointAnswer{}, fmt.Errorf("%w: witness %s did not cosign it", client.ErrVerification, missing[0])
	}
	if f.witnessed && len(sigs) == 0 {
		return checkpointAnswer{}, fmt.Errorf("%w: no witness cosigned it", client.ErrVerification)
	}
	answer := checkpointAnswer{OK: true, Origin: at.Origin, Size: at.Size, Root: at.Root.String(), Witnesses: sigs, Checkpoint: string(reply.GetCheckpoint())}
	if answer.Witnesses == nil {
		answer.Witnesses = []proofs.Cosignature{}
	}
	if f.since == "" {
		return answer, nil
	}
	proof := proofs.ConsistencyProof{Old: old.Size, New: at.Size}
	if len(reply.GetConsistency()) > 0 {
		if proof, err = proofs.ParseConsistencyProof(reply.GetConsistency()); err != nil {
			return checkpointAnswer{}, err
		}
	}
	if err := proofs.Extends(old, at, proof); err != nil {
		return checkpointAnswer{}, err
	}
	answer.Since = &old.Size
	return answer, nil
}

func checkpointText(w io.Writer, answer checkpointAnswer) error {
	fields := []show.Field{
		{Name: "log", Value: answer.Origin},
		{Name: "entries", Value: fmt.Sprint(answer.Size)},
		{Name: "root", Value: answer.Root},
	}
	for _, s := range answer.Witnesses {
		verdict := "not verified: its key was not given"
		if s.Verified {
			verdict = "verified"
		}
		fields = append(fields, show.Field{Name: "witness", Value: fmt.Sprintf("%s at %s, %s", s.Witness, s.Time.Format(time.RFC3339), verdict)})
	}
	if err := show.Fields(w, fields); err != nil {
		return err
	}
	text := "whether it extends an older one is not shown: keep it, and give it to --since the next time"
	if answer.Since != nil {
		text = fmt.Sprintf("the %d entries of the older checkpoint are the beginning of it, unchanged", *answer.Since)
	}
	_, err := fmt.Fprintln(w, text)
	return err
}
