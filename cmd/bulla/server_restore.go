package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/broker/server"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
)

// restoreAnswer is the answer of `bulla server restore`.
type restoreAnswer struct {
	State       string            `json:"state"`
	Incarnation uint32            `json:"incarnation"`
	Origin      string            `json:"origin"`
	Size        int64             `json:"size"`
	Root        string            `json:"root"`
	Checkpoints []knownCheckpoint `json:"checkpoints"`
	Lost        int64             `json:"lost"`
	Sessions    int               `json:"sessions"`
	Next        *string           `json:"next"`    // name of the log of the next incarnation, or null where none is needed
	LogKey      *string           `json:"log_key"` // of the new incarnation, or null before it is done
	Kept        []string          `json:"kept"`
}

// knownCheckpoint is a checkpoint that was found.
type knownCheckpoint struct {
	Where    string `json:"where"`
	Origin   string `json:"origin"`
	Size     int64  `json:"size"`
	Root     string `json:"root"`
	Verified bool   `json:"verified"`
	Held     bool   `json:"held"`
}

func newServerRestoreCommand(a *app) *cobra.Command {
	var file, level, kept string
	var confirm bool
	c := &cobra.Command{
		Use: "restore [--confirm] [--checkpoint FILE] [--config FILE]", Short: "Go on from a backup, on a stopped broker",
		Long: "For a broker that does not start because its data came from a backup: says how much of the signed log is\n" +
			"lost, and changes nothing. Put a newer copy of the data back if there is one.\n\n" +
			"With --confirm the ledger goes on from what is there, as a new incarnation: its log gets another name and\n" +
			"key, since the old one can't be signed again; live sessions end; an event says what had been known. What\n" +
			"was revoked, rotated, put or erased since the backup is not: do that again. Auditors and clients that\n" +
			"pin the log's key need the new log.pub. An interrupted run is taken up by the next.\n\n" +
			"--checkpoint is a newer checkpoint of the log that a client, an auditor or a witness kept.",
		Example: "  bulla server restore --config /etc/bulla/server.yaml\n  bulla server restore --confirm --config /etc/bulla/server.yaml",
		Args:    argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := loadConfig(file)
			if err != nil {
				return err
			}
			log, err := a.logger(level)
			if err != nil {
				return err
			}
			opts := server.RestoreOptions{Confirm: confirm, Log: log}
			if kept != "" {
				if opts.Checkpoint, err = readFile("--checkpoint", kept, proofs.MaxCosigned); err != nil {
					return err
				}
			}
			ctx, cancel := a.offline(c)
			defer cancel()
			found, err := server.RestoreStopped(ctx, cfg, opts)
			if err != nil {
				return wrongConfig(err)
			}
			return a.print(restored(found), func(w io.Writer) error { return restoreText(w, found) })
		},
	}
	addConfig(c, &file)
	a.addLogLevel(c, &level)
	c.Flags().BoolVar(&confirm, "confirm", false, "begin the new incarnation")
	c.Flags().StringVar(&kept, "checkpoint", "", "file with a checkpoint of the log that was kept elsewhere")
	return c
}

func restored(r server.Restoration) restoreAnswer {
	out := restoreAnswer{
		State: string(r.State), Incarnation: r.Incarnation, Origin: r.Origin, Size: r.Size, Root: r.Root, Lost: r.Lost, Sessions: r.Live,
		Checkpoints: []knownCheckpoint{}, Kept: append([]string{}, r.Kept...),
	}
	for _, k := range r.Known {
		out.Checkpoints = append(out.Checkpoints, knownCheckpoint{k.Where, k.Origin, k.Size, k.Root, k.Verified, k.Held})
	}
	switch r.State {
	case server.RestoreBehind, server.RestoreBegun:
		out.Next = &r.NextOrigin
	case server.RestoreDone:
		out.LogKey = &r.LogKey
	}
	return out
}

func restoreText(w io.Writer, r server.Restoration) error {
	fields := []show.Field{{Name: "log", Value: r.Origin}}
	if r.State == server.RestoreDone {
		fields = append(fields, show.Field{Name: "log key", Value: r.LogKey}, show.Field{Name: "sessions", Value: strconv.Itoa(r.Live) + " have ended"},
			show.Field{Name: "kept", Value: strings.Join(r.Kept, ", ")})
		return said(w, fields, "Done: start the broker. Give the new log.pub to auditors, to witnesses and to clients that pin the old one,\n"+
			"and do again what was revoked, rotated or erased since the backup: see docs/operations.md.")
	}
	fields = append(fields, show.Field{Name: "store", Value: fmt.Sprintf("%d events, root %s", r.Size, r.Root)})
	for _, k := range r.Known {
		fields = append(fields, show.Field{Name: "signed", Value: knownText(r, k)})
	}
	next := show.Field{Name: "next", Value: r.NextOrigin}
	sessions := show.Field{Name: "sessions", Value: fmt.Sprintf("%d would end", r.Live)}
	switch r.State {
	case server.RestoreBehind:
		fields = append(fields, show.Field{Name: "lost", Value: fmt.Sprintf("%d events at least", r.Lost)}, sessions, next)
		return said(w, fields, "Nothing was changed. Is there a newer copy of the data? Put that back. To go on from this one: add --confirm.")
	case server.RestoreBegun:
		return said(w, append(fields, sessions, next), "A new incarnation was begun and not finished: add --confirm, and it is.")
	}
	return said(w, fields, "Nothing is lost, as far as is known: start the broker. If somebody kept a newer checkpoint, name it with --checkpoint.")
}

// said writes fields, and what to do next.
func said(w io.Writer, fields []show.Field, next string) error {
	if err := show.Fields(w, fields); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, next)
	return err
}

func knownText(r server.Restoration, k server.KnownCheckpoint) string {
	text := fmt.Sprintf("%d events of %s (%s), root %s: ", k.Size, k.Origin, k.Where, k.Root)
	switch {
	case k.Incarnation < r.Incarnation && r.State == server.RestoreWhole:
		return text + "of before a restore; move it away, the broker does not start beside it"
	case k.Incarnation < r.Incarnation:
		return text + "of before a restore"
	case k.Held:
		return text + "they are here"
	case !k.Verified:
		return text + "not here, and signed with a key that this copy does not know"
	}
	return text + "not here"
}
