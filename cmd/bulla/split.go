package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/envelope/split"
	"github.com/bulla-project/bulla/internal/durable"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/secret"
)

// splitFlags are those of a put that splits the value in this process.
type splitFlags struct {
	threshold uint32
	holders   []string
	dir       string
}

func (s *splitFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.Uint32Var(&s.threshold, "split", 0, "split the value here, so that so many of the holders are needed to read it")
	f.StringSliceVar(&s.holders, "holder", nil, "SPIFFE ID of a holder; repeat it")
	f.StringVar(&s.dir, "share-dir", "", "directory for the holders' share files and the ciphertext")
}

// check finds what is wrong with the flags before anybody types a secret.
func (s splitFlags) check(c *cobra.Command) error {
	f := c.Flags()
	switch {
	case !f.Changed("split") && (f.Changed("holder") || f.Changed("share-dir")):
		return usage("--holder and --share-dir belong to --split: say how many holders are needed")
	case !f.Changed("split"):
		return nil
	case s.threshold < 2 || int(s.threshold) > len(s.holders) || len(s.holders) > split.MaxHolders:
		return usage("--split is %d with %d holders: from 2 to all of at most %d", s.threshold, len(s.holders), split.MaxHolders)
	case s.dir == "":
		return usage("--share-dir is missing: it takes the file for each holder")
	}
	for _, id := range s.holders {
		if _, err := certs.ParseID(id); err != nil {
			return usage("--holder: %v", err)
		}
	}
	return nil
}

// putSplit splits a value here and puts the ciphertext. The files are durable before the broker hears of them: it can't
// give them out again.
func (a *app) putSplit(c *cobra.Command, name, class string, value secret.Bytes, s splitFlags) error {
	parsed, err := secret.ParseName(name)
	if err != nil {
		return usage("%v", err)
	}
	var reply *bullav1.PutSecretReply
	var paths []string
	var pkgPath string
	err = a.withClient(c, func(ctx context.Context, broker *client.Client) error {
		pkg, binding, files, err := broker.SplitAtSource(ctx, parsed, s.threshold, s.holders, value)
		if err != nil {
			return err
		}
		if pkgPath, paths, err = writeShares(s.dir, name, pkg, files); err != nil {
			return err
		}
		reply, err = bullav1.NewSecretsClient(broker.Conn()).PutSecret(ctx, &bullav1.PutSecretRequest{
			Name: name, Class: class, Value: pkg, RequestId: event.NewID(time.Now()).String(), SplitBinding: binding,
		})
		err = client.FromStatus(err)
		switch {
		case errors.Is(err, client.ErrUnavailable): // it may have taken effect: the shares are nowhere else
			a.warn("keep the files in %s until you know whether %s has a new version", s.dir, name)
		case err != nil:
			err = errors.Join(err, removeAll(append(paths, pkgPath)))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	return a.print(struct {
		Name      string   `json:"name"`
		Version   uint32   `json:"version"`
		Class     string   `json:"class"`
		Threshold uint32   `json:"threshold"`
		Package   string   `json:"package"`
		Shares    []string `json:"shares"`
	}{reply.GetName(), reply.GetVersion(), reply.GetClass(), s.threshold, pkgPath, paths}, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s version %d, class %s, to be read with %d of these shares; hand each to its holder, and keep none here:\n  %s\n",
			show.Text(reply.GetName()), reply.GetVersion(), show.Text(reply.GetClass()), s.threshold, strings.Join(paths, "\n  "))
		return err
	})
}

// writeShares writes the ciphertext and a file for each holder, none over one that is there.
func writeShares(dir, name string, pkg []byte, files []*split.File) (pkgPath string, paths []string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, usage("--share-dir: %v", err)
	}
	base := strings.ReplaceAll(name, "/", "-")
	pkgPath = filepath.Join(dir, base+".split")
	defer func() {
		if err != nil {
			err = errors.Join(err, removeAll(paths))
		}
	}()
	for i, f := range files {
		text, err := f.Encode()
		if err != nil {
			return "", paths, err
		}
		path := filepath.Join(dir, fmt.Sprintf("%s.%d.%s.share", base, i+1, strings.ReplaceAll(strings.TrimPrefix(pathOf(f.Holder), "/"), "/", "-")))
		err = durable.CreateFile(path, text, 0o600)
		clear(text)
		f.Share.Zero()
		if errors.Is(err, fs.ErrExist) {
			return "", paths, usage("--share-dir: %s is there already: name another directory", path)
		}
		if err != nil {
			return "", paths, err
		}
		paths = append(paths, path)
	}
	err = durable.CreateFile(pkgPath, pkg, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return "", paths, usage("--share-dir: %s is there already: name another directory", pkgPath)
	}
	return pkgPath, paths, err
}

// removeAll removes the files of a put that did not take place.
func removeAll(paths []string) error {
	var errs []error
	for _, p := range paths {
		errs = append(errs, os.Remove(p))
	}
	return errors.Join(errs...)
}
