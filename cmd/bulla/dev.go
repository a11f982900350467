package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/broker/devserver"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
)

// devFlags are those of `bulla dev`.
type devFlags struct {
	dir, tpm, listen string
	ttl              time.Duration
	logLevel         string
}

func newDevCommand(a *app) *cobra.Command {
	var f devFlags
	c := &cobra.Command{
		Use: "dev [flags]", Short: "Start a broker for development",
		Long: "Starts a broker, a development SPIFFE authority that serves the Workload API, and a software TPM if\n" +
			"swtpm is installed, all below one directory and in the foreground. NOT FOR PRODUCTION.\n\n" +
			"The directory gets env/NAME.sh for each identity (operator, security, auditor, workload, stranger,\n" +
			"custodian-1 to -3), log.pub, the policy bundle (an edit that passes all checks is activated), and\n" +
			"the file ready while everything serves. Started again on it, the same ledger, keys and port go on.",
		Example: "  bulla dev\n  bulla dev --dir /tmp/bulla --tpm=off\n  . /tmp/bulla/env/operator.sh",
		Args:    argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error { return a.dev(c, f) },
	}
	flags := c.Flags()
	flags.StringVar(&f.dir, "dir", "", "directory that holds everything (default $XDG_STATE_HOME/bulla/dev)")
	flags.StringVar(&f.tpm, "tpm", string(devserver.TPMAuto), "software TPM for workload: auto, on, or off (a development device)")
	flags.StringVar(&f.listen, "listen", "", "address on loopback (default 127.0.0.1:0: a free port, kept over restarts)")
	flags.DurationVar(&f.ttl, "svid-ttl", time.Hour, "lifetime of X.509-SVIDs")
	completeFlag(c, "tpm", "auto", "on", "off")
	a.addLogLevel(c, &f.logLevel)
	return c
}

func (a *app) dev(c *cobra.Command, f devFlags) error {
	log, err := a.logger(f.logLevel)
	if err != nil {
		return err
	}
	dir, err := devDir(f.dir)
	if err != nil {
		return err
	}
	if f.ttl < time.Second {
		return usage("--svid-ttl is %s: it must be at least 1s", f.ttl)
	}
	mode, err := tpmMode(f.tpm)
	if err != nil {
		return err
	}
	a.holdsSecrets()
	defer runtime.KeepAlive(ballast(whileServing))
	s, err := devserver.Start(c.Context(), devserver.Config{
		Dir: dir, TPM: mode, SVIDTTL: f.ttl, Listen: f.listen, Product: product(), Log: log,
	})
	switch {
	case err != nil && c.Context().Err() != nil:
		return nil // told to end before it served
	case errors.Is(err, devserver.ErrConfig):
		return usage("%s", strings.TrimPrefix(err.Error(), devserver.ErrConfig.Error()+": "))
	case err != nil:
		return err
	}
	if err := a.print(newDevAnswer(s), func(w io.Writer) error { return devText(w, s) }); err != nil {
		return errors.Join(err, s.Close())
	}
	return errors.Join(s.Wait(c.Context()), s.Close())
}

// tpmMode reads --tpm.
func tpmMode(flag string) (devserver.TPMMode, error) {
	mode, err := devserver.ParseTPMMode(flag)
	if err != nil {
		return "", usage("--tpm is %q: use auto, on or off", flag)
	}
	return mode, nil
}

// devDir is the directory, or its default by the XDG Base Directory Specification.
func devDir(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	base := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(base) { // the specification wants relative ones ignored
		home, err := os.UserHomeDir()
		if err != nil {
			return "", usage("no home directory (%v): name one with --dir", err)
		}
		base = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(base, "bulla", "dev"), nil
}

// devAnswer is what `bulla dev -o json` prints once it serves.
type devAnswer struct {
	Dir       string `json:"dir"`
	Addr      string `json:"addr"`
	HTTPAddr  string `json:"http_addr"`
	ServerID  string `json:"server_id"`
	LogKey    string `json:"log_key"`
	Device    string `json:"device"`
	Kind      string `json:"device_kind"`
	PolicyDir string `json:"policy_dir"`
}

func newDevAnswer(s *devserver.Server) devAnswer {
	return devAnswer{
		Dir: s.Dir(), Addr: s.Addr(), HTTPAddr: s.HTTPAddr(), ServerID: devserver.ServerID, LogKey: s.LogKey(),
		Device: s.Device().ID.String(), Kind: string(s.Device().Kind), PolicyDir: filepath.Join(s.Dir(), "policy"),
	}
}

// devText says what runs, what to export and what to try.
func devText(w io.Writer, s *devserver.Server) error {
	env := func(name string) string { return show.Text(filepath.Join(s.Dir(), "env", name+".sh")) }
	device := "a software TPM"
	if d := s.Device(); d.TPM == "" {
		device = "a development device, in a file"
		if d.Missing != nil {
			device += " (" + show.Text(d.Missing.Error()) + ")"
		}
	}
	_, err := fmt.Fprintf(w, `
  DEVELOPMENT ONLY. NOT FOR PRODUCTION: whoever can read %[1]s
  is everybody in the trust domain %[2]s.

  broker    %[3]s as %[4]s
  health    http://%[5]s/ready
  workload  has %[6]s
  policy    %[7]s: edit it, and it is checked and activated

In another terminal:

  . '%[8]s'
  printf 'correct horse' | bulla secret put demo/hello --class standard

  . '%[9]s'
  bulla get demo/hello

Others: %[10]s
End it with Ctrl-C; started again, it goes on with the same ledger and keys.
`, show.Text(s.Dir()), devserver.TrustDomain, s.Addr(), devserver.ServerID, s.HTTPAddr(), device,
		show.Text(filepath.Join(s.Dir(), "policy")), env("operator"), env("workload"), strings.Join(devserver.Identities(), ", "))
	return err
}
