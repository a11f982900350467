package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/sessionproof"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
)

// maxBundleFile is the largest file of authorities that is read, in bytes.
const maxBundleFile = 1 << 20

// proofFlags are those of `bulla audit verify-proof`.
type proofFlags struct {
	key, against, bundle, reply string
	witnesses                   []string
}

func newAuditVerifyProofCommand(a *app) *cobra.Command {
	var f proofFlags
	c := &cobra.Command{
		Use: "verify-proof FILE --key FILE [flags]", Short: "Verify the proof of a session, without a broker",
		Long: "Verifies a file that `bulla session proof` wrote, without broker, network or clock: certificates are\n" +
			"judged at the times of the events that the log vouches for. It says what is shown, and what is not.\n" +
			"The key is the broker's log.pub: get it once, and not together with the proof.\n\n" +
			"--against is a checkpoint that was kept from before; the proof has to be made with --since and that\n" +
			"checkpoint, or over the same log. --witness is the key of a witness that has to have cosigned; may be\n" +
			"repeated. --bundle holds the authorities of the principal's trust domain, and --reply what the\n" +
			"recipient kept (`bulla get --keep-reply`). The exit code is 5 if anything does not hold, with the place.",
		Example: "  bulla audit verify-proof session.proof --key log.pub\n" +
			"  bulla audit verify-proof session.proof --key log.pub --witness witness.pub --against last-month/checkpoint",
		Args: argument("FILE"), DisableFlagsInUseLine: true,
		RunE: func(c *cobra.Command, args []string) error { return a.verifyProof(args[0], f) },
	}
	flags := c.Flags()
	flags.StringVar(&f.key, "key", "", "file with the log's key: log.pub (required)")
	flags.StringVar(&f.against, "against", "", "file with a checkpoint of the same log that was kept from before")
	flags.StringArrayVar(&f.witnesses, "witness", nil, "file with the key of a witness that has to have cosigned; may be repeated")
	flags.StringVar(&f.bundle, "bundle", "", "PEM file with the authorities of the principal's trust domain at that time")
	flags.StringVar(&f.reply, "reply", "", "file that the recipient kept with bulla get --keep-reply")
	return c
}

func (a *app) verifyProof(path string, f proofFlags) error {
	if f.key == "" {
		return usage("--key is missing: name the file with the log's key, which the broker writes as log.pub")
	}
	opts, err := f.options()
	if err != nil {
		return err
	}
	data, err := readFile("FILE", path, sessionproof.MaxSize)
	if err != nil {
		return err
	}
	p, err := sessionproof.Parse(data)
	var report sessionproof.Report
	if err == nil {
		report, err = sessionproof.Verify(p, opts)
	}
	var fault *audit.Fault
	if errors.As(err, &fault) {
		return &answered{fmt.Errorf("verify proof %s: %w", path, err), faultReport{false, fault}}
	}
	if err != nil {
		return err
	}
	answer := struct {
		OK bool `json:"ok"`
		sessionproof.Report
	}{true, report}
	return a.print(answer, func(w io.Writer) error { return proofText(w, report) })
}

func (f proofFlags) options() (sessionproof.Options, error) {
	var opts sessionproof.Options
	var err error
	if opts.Key, err = readLogKey("--key", f.key); err != nil {
		return opts, err
	}
	if f.against != "" {
		if opts.Against, err = readFile("--against", f.against, proofs.MaxCosigned); err != nil {
			return opts, err
		}
	}
	if opts.Witnesses, err = readWitnesses(f.witnesses); err != nil {
		return opts, err
	}
	if f.bundle != "" {
		if opts.Authorities, err = readAuthorities(f.bundle); err != nil {
			return opts, err
		}
	}
	if f.reply != "" {
		text, err := readFile("--reply", f.reply, proofs.MaxReply)
		if err != nil {
			return opts, err
		}
		kept, err := proofs.ParseReply(text)
		if err != nil {
			return opts, fmt.Errorf("--reply: %s: %w", f.reply, err)
		}
		opts.Reply = &kept
	}
	return opts, nil
}

// readWitnesses reads keys of witnesses.
func readWitnesses(paths []string) ([]proofs.WitnessKey, error) {
	var out []proofs.WitnessKey
	for _, path := range paths {
		text, err := readFile("--witness", path, maxKeyFile)
		if err != nil {
			return nil, err
		}
		key, err := proofs.ParseWitnessKey(string(text))
		if err != nil {
			return nil, fmt.Errorf("--witness: %s: %w", path, err)
		}
		out = append(out, key)
	}
	return out, nil
}

// readAuthorities reads certificates in PEM.
func readAuthorities(path string) ([]*x509.Certificate, error) {
	text, err := readFile("--bundle", path, maxBundleFile)
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			return nil, usage("--bundle: %s holds something else than certificates in PEM", path)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, usage("--bundle: %s holds no certificate in PEM", path)
	}
	return out, nil
}

func proofText(w io.Writer, r sessionproof.Report) error {
	fields := []show.Field{
		{Name: "session", Value: r.Session.String()},
		{Name: "state", Value: r.State},
		{Name: "principal", Value: r.Principal},
		{Name: "secret", Value: fmt.Sprintf("%s, version %d", r.Secret, r.Version)},
		{Name: "grade", Value: r.Grade},
		{Name: "issued", Value: r.Issued.Time().Format(time.RFC3339)},
		{Name: "envelope", Value: r.EnvelopeDigest.String()},
		{Name: "policy", Value: r.PolicyDigest.String()},
		{Name: "revision", Value: fmt.Sprint(r.PolicySequence)},
		{Name: "log", Value: fmt.Sprintf("%s, %d entries", r.Origin, r.Size)},
		{Name: "root", Value: r.Root},
	}
	if err := show.Fields(w, fields); err != nil {
		return err
	}
	var rows [][]string
	for _, e := range r.Events {
		rows = append(rows, []string{fmt.Sprint(e.Index), e.Time.Time().Format(time.RFC3339), string(e.Type)})
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	if err := show.Table(w, []show.Column{{Title: "INDEX"}, {Title: "TIME"}, {Title: "EVENT"}}, rows); err != nil {
		return err
	}
	if err := sentences(w, "Shown:", r.Shown); err != nil {
		return err
	}
	return sentences(w, "Not shown:", r.NotShown)
}

func sentences(w io.Writer, title string, all []string) error {
	if _, err := fmt.Fprintf(w, "\n%s\n", title); err != nil {
		return err
	}
	for _, s := range all {
		lines := strings.ReplaceAll(show.Wrap(show.Text(s), show.Width-2), "\n", "\n  ")
		if _, err := fmt.Fprintf(w, "- %s\n", lines); err != nil {
			return err
		}
	}
	return nil
}
