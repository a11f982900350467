package main

import (
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/broker/server"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/ledger"
)

func newServerActivateCommand(a *app) *cobra.Command {
	var file, level string
	c := &cobra.Command{
		Use: "activate DIGEST|DIR [--config FILE]", Short: "Put a policy revision in place on a stopped broker",
		Long: "For when the active revision does not load any more, or nobody can change it: activates a revision that the\n" +
			"ledger has, or a bundle in a directory or .tar.gz. It has to pass every check, as always: the rules of the site,\n" +
			"and the signature where there are bundle keys. It is in the log.",
		Example: "  bulla server activate 3f1c09ab --config /etc/bulla/server.yaml",
		Args:    argument("DIGEST"), ValidArgsFunction: completeDir,
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := loadConfig(file)
			if err != nil {
				return err
			}
			log, err := a.logger(level)
			if err != nil {
				return err
			}
			b := server.Bundle{Digest: args[0]}
			if _, err := os.Stat(args[0]); err == nil {
				if b.Archive, b.Signature, err = readBundle(args[0]); err != nil {
					return err
				}
			} else if err := checkDigest(args[0]); err != nil {
				return err
			}
			ctx, cancel := a.offline(c)
			defer cancel()
			r, err := server.ActivateStopped(ctx, cfg, b, log)
			if err != nil {
				return wrongConfig(err)
			}
			answer := struct {
				Digest   string `json:"digest"`
				Sequence uint64 `json:"revision"`
				Rollback bool   `json:"rollback"`
			}{r.Digest.String(), r.Sequence, r.Rollback}
			return a.print(answer, func(w io.Writer) error {
				return show.Fields(w, []show.Field{{Name: "revision", Value: strconv.FormatUint(r.Sequence, 10)}, {Name: "digest", Value: answer.Digest}, {Name: "source", Value: r.Source}})
			})
		},
	}
	addConfig(c, &file)
	a.addLogLevel(c, &level)
	return c
}

// bundleKeyJSON is a bundle key in JSON.
type bundleKeyJSON struct {
	ID         string `json:"id"`
	Introduced string `json:"introduced_at"`
	Retired    string `json:"retired_at"`
}

func newServerBundleKeyCommand(a *app) *cobra.Command {
	var file, level, add, retire string
	c := &cobra.Command{
		Use: "bundle-key [--add FILE | --retire ID] [--config FILE]", Short: "List and change the keys that sign policies, on a stopped broker",
		Long: "Lists the public keys under which policy bundles may be signed, and adds or retires one. A broker that ever had\n" +
			"one activates nothing that is not signed. Each change is in the log.",
		Example: "  bulla server bundle-key --add next.pub --config /etc/bulla/server.yaml",
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
			ctx, cancel := a.offline(c)
			defer cancel()
			keys, err := server.BundleKeysStopped(ctx, cfg, add, retire, log)
			if err != nil {
				return wrongConfig(err)
			}
			return a.printBundleKeys(keys)
		},
	}
	addConfig(c, &file)
	a.addLogLevel(c, &level)
	c.Flags().StringVar(&add, "add", "", "file with a further public key (PEM)")
	c.Flags().StringVar(&retire, "retire", "", "id of the key that counts no more")
	c.MarkFlagsMutuallyExclusive("add", "retire")
	return c
}

func (a *app) printBundleKeys(keys []ledger.Key) error {
	answer := struct {
		Keys []bundleKeyJSON `json:"keys"`
	}{[]bundleKeyJSON{}}
	var rows [][]string
	for _, k := range keys {
		answer.Keys = append(answer.Keys, bundleKeyJSON{k.ID, k.Introduced.String(), k.Retired.String()})
		state := "counts"
		if !k.Retired.IsZero() {
			state = "retired " + k.Retired.String()
		}
		rows = append(rows, []string{k.ID, state})
	}
	return a.print(answer, func(w io.Writer) error {
		if len(rows) == 0 {
			_, err := io.WriteString(w, "there are none: policies need no signature\n")
			return err
		}
		return show.Table(w, []show.Column{{Title: "KEY"}, {Title: "STATE"}}, rows)
	})
}
