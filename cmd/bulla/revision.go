package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/internal/durable"
	"github.com/bulla-project/bulla/policy"
)

const (
	shortDigest   = 12 // digits of a digest in tables, and enough to name a revision
	leastDigest   = 6
	maxSigningKey = 16 << 10 // bytes
	maxReportFile = 64 << 20
)

func short(digest string) string { return digest[:min(len(digest), shortDigest)] }

// proposalJSON is what waits for a second person, in JSON.
type proposalJSON struct {
	Digest    string `json:"digest"`
	Rollback  bool   `json:"rollback"`
	By        string `json:"by"`
	At        string `json:"at"`
	ExpiresAt string `json:"expires_at"`
	Note      string `json:"note"`
	Report    string `json:"report_sha256"`
	Kept      bool   `json:"report_kept"`
	NoReport  string `json:"no_report"`
}

func newProposalJSON(p *bullav1.Proposal) *proposalJSON {
	if p == nil {
		return nil
	}
	return &proposalJSON{p.GetDigest(), p.GetRollback(), p.GetBy(), moment(p.GetAt()), moment(p.GetExpiresAt()), p.GetNote(), p.GetReportDigest(), p.GetReportKept(), p.GetNoReport()}
}

func proposalText(w io.Writer, p *bullav1.Proposal) error {
	verb := "promote"
	if p.GetRollback() {
		verb = "rollback"
	}
	_, err := fmt.Fprintf(w, "proposed by %s, until %s: another person says the same with\n  bulla policy %s %s\n",
		show.Text(p.GetBy()), second(p.GetExpiresAt()), verb, short(show.Text(p.GetDigest())))
	if err == nil && p.GetReportDigest() != "" {
		_, err = fmt.Fprintf(w, "on the report %s\n", show.Text(p.GetReportDigest()))
	}
	if err == nil && p.GetNoReport() != "" {
		_, err = fmt.Fprintf(w, "without a what-if: %s\n", show.Text(p.GetNoReport()))
	}
	return err
}

// checkDigest takes a digest, or the first digits of one.
func checkDigest(text string) error {
	if len(text) < leastDigest || len(text) > 2*sha256.Size || strings.Trim(text, "0123456789abcdef") != "" {
		return usage("%q is not a digest, nor its first %d digits or more: see `bulla policy list`", text, leastDigest)
	}
	return nil
}

// fullDigest finds the one revision whose digest begins so.
func fullDigest(ctx context.Context, conn *grpc.ClientConn, text string) (string, error) {
	if len(text) == 2*sha256.Size {
		return text, nil
	}
	active, err := bullav1.NewPoliciesClient(conn).ListRevisions(ctx, &bullav1.ListRevisionsRequest{})
	if err != nil {
		return "", err
	}
	staged, err := bullav1.NewRevisionsClient(conn).ListStaged(ctx, &bullav1.ListStagedRequest{})
	if err != nil {
		return "", err
	}
	var found []string
	for _, r := range slices.Concat(active.GetRevisions(), staged.GetStaged()) {
		if strings.HasPrefix(r.GetDigest(), text) {
			found = append(found, r.GetDigest())
		}
	}
	if len(found) != 1 {
		return "", usage("%d revisions have a digest that begins with %s: see `bulla policy list -o json`", len(found), text)
	}
	return found[0], nil
}

// getRevision fetches a revision, the active one for "", and checks that it is the one that was asked for.
func getRevision(ctx context.Context, conn *grpc.ClientConn, digest string) (*bullav1.RevisionArchive, map[string][]byte, error) {
	if digest != "" {
		var err error
		if digest, err = fullDigest(ctx, conn, digest); err != nil {
			return nil, nil, err
		}
	}
	reply, err := bullav1.NewPoliciesClient(conn).GetRevision(ctx, &bullav1.GetRevisionRequest{Digest: digest})
	if err != nil {
		return nil, nil, err
	}
	sum := policy.ArchiveDigest(reply.GetArchive())
	if got := hex.EncodeToString(sum[:]); got != reply.GetRevision().GetDigest() || digest != "" && digest != got {
		return nil, nil, fmt.Errorf("%w: the broker sent a bundle that does not have the digest of the revision", client.ErrVerification)
	}
	files, err := policy.Unpack(reply.GetArchive())
	if err != nil {
		return nil, nil, fmt.Errorf("%w: the broker's bundle: %w", client.ErrVerification, err)
	}
	return reply, files, nil
}

// readBundle reads a bundle from a directory or a .tar.gz, with its signature if it has one.
func readBundle(path string) (archive, signature []byte, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, usage("%v", err)
	}
	if !info.IsDir() {
		tarball, err := readFileAtMost(path, policy.MaxArchiveSize)
		if err != nil {
			return nil, nil, err
		}
		if archive, signature, err = policy.FromTarball(tarball); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		}
		return archive, signature, nil
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, nil, usage("%v", err)
	}
	defer root.Close()
	if archive, err = policy.Pack(root.FS()); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	signature, err = policy.ReadSignature(root.FS())
	return archive, signature, err
}

func readFileAtMost(path string, most int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, usage("%v", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > most {
		return nil, usage("%s has more than %d bytes", path, most)
	}
	return data, nil
}

// signBundle signs with the private key in a file.
func signBundle(archive []byte, keyFile string) (signature []byte, keyID string, err error) {
	key, err := readFileAtMost(keyFile, maxSigningKey)
	if err != nil {
		return nil, "", err
	}
	defer clear(key)
	if signature, keyID, err = policy.SignArchive(archive, key); err != nil {
		return nil, "", fmt.Errorf("%s: %w", keyFile, err)
	}
	return signature, keyID, nil
}

func newPolicySignCommand(a *app) *cobra.Command {
	var keyFile string
	c := &cobra.Command{
		Use: "sign --sign-key FILE DIR", Short: "Sign a bundle, without a broker",
		Long: "Writes DIR/" + policy.SignatureFile + " in OPA's format, so that `opa` and bundle servers take it as well. The key is\n" +
			"a private key in a PEM file: P-256 or P-384 (ES256, ES384), Ed25519 (EdDSA), or RSA (RS256).",
		Example: "  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out bundle.key\n" +
			"  openssl pkey -in bundle.key -pubout -out bundle.pub\n  bulla policy sign --sign-key bundle.key policy/",
		Args: argument("DIR"), ValidArgsFunction: completeDir,
		RunE: func(_ *cobra.Command, args []string) error {
			if keyFile == "" {
				return usage("--sign-key is missing: name the file with the private key")
			}
			if err := checkDir(args[0]); err != nil {
				return err
			}
			archive, _, err := readBundle(args[0])
			if err != nil {
				return err
			}
			signature, keyID, err := signBundle(archive, keyFile)
			if err != nil {
				return fmt.Errorf("sign %s: %w", args[0], err)
			}
			if err := durable.WriteFile(filepath.Join(args[0], policy.SignatureFile), signature, 0o644); err != nil {
				return err
			}
			sum := policy.ArchiveDigest(archive)
			answer := struct {
				Digest string `json:"digest"`
				Key    string `json:"bundle_key"`
				File   string `json:"file"`
			}{hex.EncodeToString(sum[:]), keyID, filepath.Join(args[0], policy.SignatureFile)}
			return a.print(answer, func(w io.Writer) error {
				return show.Fields(w, []show.Field{{Name: "digest", Value: answer.Digest}, {Name: "signed by", Value: keyID}, {Name: "file", Value: answer.File}})
			})
		},
	}
	c.Flags().StringVar(&keyFile, "sign-key", "", "file with the private key (PEM)")
	return c
}

// checkTimeout is how long a command waits that has the broker check a bundle, which gives up after a minute.
const checkTimeout = 75 * time.Second

// waitsForChecks gives the command the time for that, unless the user said otherwise.
func (a *app) waitsForChecks() {
	if !a.timeoutSet {
		a.timeout = checkTimeout
	}
}

// pushFlags are those of `policy push`.
type pushFlags struct {
	note, keyFile string
	stage         bool
}

func newPolicyPushCommand(a *app) *cobra.Command {
	var f pushFlags
	c := &cobra.Command{
		Use: "push DIR|FILE [flags]", Short: "Have a bundle checked and staged",
		Long: "Sends a bundle (a directory, or a .tar.gz of one) to the broker, which checks it and keeps it: promote makes\n" +
			"it the revision that decides. A broker without bundle keys, such as one for development, activates it at\n" +
			"once, unless --stage is given. A bundle that is refused changes nothing: the active revision stays.",
		Example: "  bulla policy push policy/ --note \"grant db to billing\"\n  bulla policy push policy/ --sign-key bundle.key --note \"grant db to billing\"",
		Args:    argument("DIR"), ValidArgsFunction: completeDir,
		RunE: func(c *cobra.Command, args []string) error { return a.pushPolicy(c, args[0], f) },
	}
	flags := c.Flags()
	flags.StringVar(&f.note, "note", "", "what it is for, for the record")
	flags.StringVar(&f.keyFile, "sign-key", "", "sign it with the private key in this file (PEM)")
	flags.BoolVar(&f.stage, "stage", false, "stage it only, also where it would be activated at once")
	a.addIdentity(c)
	return c
}

func (a *app) pushPolicy(c *cobra.Command, path string, f pushFlags) error {
	archive, signature, err := readBundle(path)
	if err != nil {
		return err
	}
	if f.keyFile != "" {
		if signature, _, err = signBundle(archive, f.keyFile); err != nil {
			return fmt.Errorf("push %s: %w", path, err)
		}
	}
	a.waitsForChecks()
	var r *bullav1.RevisionChange
	err = a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		r, err = bullav1.NewRevisionsClient(conn).Stage(ctx, &bullav1.StageRequest{Archive: archive, Signature: signature, Note: f.note, Only: f.stage})
		return err
	})
	if err != nil {
		return fmt.Errorf("push %s: %w", path, err)
	}
	return a.printOutcome(r)
}

// outcomeJSON is what a change of the policy came to.
type outcomeJSON struct {
	revisionJSON
	Outcome  string        `json:"outcome"`
	Proposal *proposalJSON `json:"proposal"`
}

func newOutcomeJSON(r *bullav1.RevisionChange) outcomeJSON {
	return outcomeJSON{newRevisionJSON(r.GetRevision()), r.GetOutcome(), newProposalJSON(r.GetProposal())}
}

func (a *app) printOutcome(r *bullav1.RevisionChange) error {
	return a.print(newOutcomeJSON(r), func(w io.Writer) error { return outcomeText(w, r) })
}

func outcomeText(w io.Writer, r *bullav1.RevisionChange) error {
	fields := append([]show.Field{{Name: "outcome", Value: r.GetOutcome()}}, revisionFields(r.GetRevision())...)
	if err := show.Fields(w, fields); err != nil {
		return err
	}
	switch r.GetOutcome() {
	case "staged":
		_, err := fmt.Fprintf(w, "Next: bulla policy diff %[1]s, then bulla policy promote %[1]s\n", short(show.Text(r.GetRevision().GetDigest())))
		return err
	case "proposed":
		return proposalText(w, r.GetProposal())
	}
	return nil
}
