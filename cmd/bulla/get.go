package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/internal/durable"
	"github.com/bulla-project/bulla/secret"
)

// getFlags are those of `bulla get`.
type getFlags struct {
	out     string
	digest  bool
	version string
	ttl     time.Duration
	uses    uint32
	grade   string
	public  bool
	keep    string
}

func newGetCommand(a *app) *cobra.Command {
	var f getFlags
	c := &cobra.Command{
		Use: "get NAME [flags]", Short: "Get a secret",
		Long: "Gets a secret and prints its value, and nothing else, to stdout (with a newline only on a terminal).\n" +
			"If the policy asks for it, the device is attested first, and the token in --token-file is shown. Where\n" +
			"custodians or approvers have to take part, it waits for them as long as --timeout lets it, and says on\n" +
			"stderr which round they have to answer.\n\n" +
			"With -o json it prints one object: name, version, value (base64), session_id, grade, suite,\n" +
			"expires_at, uses_left (null: unlimited), uses_enforced_by, risk, policy, attestation and receipt.\n" +
			"With --out or --digest the value is null there. A denial is an object, too: decision (DENY or\n" +
			"STEP_UP), reasons, requires, support_id; the exit code is then 3.",
		Example: "  bulla get demo/database\n  bulla get demo/split --timeout 10m\n  bulla get demo/database --out password\n  bulla get demo/database --token-file /run/ci/id-token\n  bulla get demo/database -o json | jq -r .session_id",
		Args:    argument("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error { return a.get(c, args[0], f) },
	}
	flags := c.Flags()
	flags.StringVar(&f.out, "out", "", "write the value to this file (mode 0600) instead of stdout")
	flags.BoolVar(&f.digest, "digest", false, "print the SHA-256 of the value in hexadecimal instead of the value")
	flags.StringVar(&f.version, "version", "", "version to get (the current one if not given)")
	flags.DurationVar(&f.ttl, "ttl", 0, "ask for a session that ends after this time; the policy's limit holds")
	flags.Uint32Var(&f.uses, "uses", 0, "ask for a session of at most so many uses; the policy's limit holds")
	flags.StringVar(&f.grade, "grade", "", "ask for limits at least this hard: open, gated or proxied; the policy's demand holds")
	flags.BoolVar(&f.public, "public", false, "print the public key of a signature key that the broker made, in PEM")
	flags.StringVar(&f.keep, "keep-reply", "", "write what the record can be held against later to this file: for bulla audit verify-proof --reply")
	a.addIdentity(c)
	a.addDevice(c)
	a.addToken(c)
	return c
}

// options checks the flags before anything is asked for.
func (f getFlags) options(c *cobra.Command) ([]client.GetOption, error) {
	var opts []client.GetOption
	if f.digest && c.Flags().Changed("out") {
		return nil, usage("--out and --digest exclude each other: get it once for each")
	}
	if c.Flags().Changed("version") {
		v, err := secret.ParseVersion(f.version)
		if err != nil {
			return nil, usage("--version: %v", err)
		}
		opts = append(opts, client.WithVersion(v))
	}
	if c.Flags().Changed("ttl") {
		if f.ttl < time.Second || f.ttl > math.MaxInt32*time.Second {
			return nil, usage("--ttl is %s: it must be at least 1s", f.ttl)
		}
		opts = append(opts, client.WithTTL(f.ttl))
	}
	if c.Flags().Changed("uses") {
		if f.uses == 0 {
			return nil, usage("--uses is 0: it must be at least 1")
		}
		opts = append(opts, client.WithUses(f.uses))
	}
	if f.public && (f.digest || c.Flags().Changed("out")) {
		return nil, usage("--public prints no value: leave --out and --digest out")
	}
	if c.Flags().Changed("grade") {
		switch f.grade {
		case "open", "gated", "proxied":
		case "leased":
			return nil, usage("--grade %s is not built yet: use open, gated or proxied", f.grade)
		default:
			return nil, usage("--grade is %q: use open, gated or proxied", f.grade)
		}
		opts = append(opts, client.WithGrade(f.grade))
	}
	if f.public {
		opts = append(opts, client.WithGrade("proxied"))
	}
	if c.Flags().Changed("keep-reply") {
		if err := checkOut("--keep-reply", f.keep); err != nil {
			return nil, err
		}
	}
	if c.Flags().Changed("out") {
		return opts, checkOut("--out", f.out)
	}
	return opts, nil
}

// checkOut makes sure that the file which a flag names can be written, before anything is asked for.
func checkOut(flag, path string) error {
	if info, err := os.Stat(filepath.Dir(path)); err != nil {
		return usage("%s: %v", flag, err)
	} else if path == "" || !info.IsDir() {
		return usage("%s: %q can't be a file", flag, path)
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return usage("%s: %v", flag, err)
	case !info.Mode().IsRegular():
		return usage("%s: %s is not a regular file, and links are not followed: name another one", flag, path)
	}
	return nil
}

func (a *app) get(c *cobra.Command, name string, f getFlags) error {
	if _, err := secret.ParseName(name); err != nil {
		return usage("%v", err)
	}
	opts, err := f.options(c)
	if err != nil {
		return err
	}
	a.holdsSecrets()
	a.onRound = a.waiting
	ctx, cancel := context.WithTimeoutCause(c.Context(), a.timeout, errTimeout)
	defer cancel()
	broker, err := a.connect(ctx, true)
	if err != nil {
		return err
	}
	defer broker.Close()
	s, err := a.deliver(ctx, broker, name, opts...)
	if err != nil {
		return err
	}
	defer s.Close()
	if f.keep != "" {
		if err := keepReply(s, f.keep); err != nil {
			return err
		}
	}
	if s.Grade == "proxied" {
		return a.publicKey(ctx, s, f.public)
	}
	left, limited := s.UsesLeft()
	return s.Use(func(value []byte) error {
		d := newDelivered(s, value, f)
		if limited {
			left-- // this is one of them
			d.UsesLeft = &left
		}
		return a.handOver(d, value, f)
	})
}

// keepReply writes what of a delivery can be held against the record later; nothing of it is secret.
func keepReply(s *client.Secret, path string) error {
	text, err := s.Reply().Encode()
	if err != nil {
		return err
	}
	return durable.WriteFile(path, text, 0o600)
}

// deliver gets one secret. A receipt that could not be handed in is only worth a warning, unless the policy
// demands it: then there is no secret.
func (a *app) deliver(ctx context.Context, broker *client.Client, name string, opts ...client.GetOption) (*client.Secret, error) {
	s, err := broker.Get(ctx, name, opts...)
	if s == nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	if err != nil {
		a.warn("%s was delivered, but the broker did not get the receipt in time: %v", name, err)
	}
	return s, nil
}

// handOver puts the value where the flags say; d is the answer in JSON.
func (a *app) handOver(d any, value []byte, f getFlags) (err error) {
	if f.out != "" {
		if err := durable.WriteFile(f.out, value, 0o600); err != nil {
			return err
		}
	}
	if a.json() {
		return show.JSON(a.stdout, d)
	}
	switch {
	case f.out != "":
	case f.digest:
		_, err = io.WriteString(a.stdout, digest(value)+"\n")
	default:
		if _, err = a.stdout.Write(value); err == nil && isTerminal(a.stdout) {
			_, err = io.WriteString(a.stdout, "\n")
		}
	}
	if err != nil {
		return fmt.Errorf("write the value: %w", err)
	}
	return nil
}

func digest(value []byte) string {
	sum := sha256.Sum256(value)
	return hex.EncodeToString(sum[:])
}

// delivered is a delivery in JSON.
type delivered struct {
	Name           string          `json:"name"`
	Version        secret.Version  `json:"version"`
	Value          []byte          `json:"value"`
	Digest         string          `json:"digest,omitempty"`
	Out            string          `json:"out,omitempty"`
	SessionID      string          `json:"session_id"`
	Grade          string          `json:"grade"`
	Suite          string          `json:"suite"`
	ExpiresAt      time.Time       `json:"expires_at"`
	UsesLeft       *uint32         `json:"uses_left"`
	UsesEnforcedBy *string         `json:"uses_enforced_by"`
	Risk           riskJSON        `json:"risk"`
	Policy         policyJSON      `json:"policy"`
	Attestation    json.RawMessage `json:"attestation"`
	Receipt        string          `json:"receipt"`
}

type riskJSON struct {
	Score   int                 `json:"score"`
	Factors []client.RiskFactor `json:"factors"`
}

type policyJSON struct {
	Revision uint64 `json:"revision"`
	Digest   string `json:"digest"`
}

func newDelivered(s *client.Secret, value []byte, f getFlags) delivered {
	d := delivered{
		Name: s.Name, Version: s.Version, Value: value, Out: f.out, SessionID: s.SessionID, Grade: s.Grade, Suite: s.Suite,
		ExpiresAt: s.Expires.UTC(), Risk: riskJSON{s.RiskScore, s.RiskFactors}, Policy: policyJSON{s.PolicyRevision, s.PolicyDigest},
		Attestation: s.Attestation, Receipt: s.Receipt,
	}
	if d.Risk.Factors == nil {
		d.Risk.Factors = []client.RiskFactor{}
	}
	if f.out != "" || f.digest {
		d.Value = nil
	}
	if f.digest {
		d.Digest = digest(value)
	}
	if len(d.Attestation) == 0 {
		d.Attestation = json.RawMessage("null")
	}
	if s.UsesEnforcedBy != "" {
		d.UsesEnforcedBy = &s.UsesEnforcedBy
	}
	return d
}
