package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/secret"
)

func newSecretCommand(a *app) *cobra.Command {
	return group("secret", "Put, generate, show and list secrets",
		"Manages secrets. Values go in and are never shown here: `bulla get` delivers them.",
		"  printf %s \"$PASSWORD\" | bulla secret put demo/database --class high\n  bulla secret show demo/database",
		newSecretPutCommand(a), newSecretGenerateCommand(a), newSecretShowCommand(a), newSecretListCommand(a), newSecretUsageCommand(a))
}

func newSecretPutCommand(a *app) *cobra.Command {
	var class string
	var prompt bool
	var s splitFlags
	c := &cobra.Command{
		Use: "put NAME [flags]", Short: "Put a new version of a secret",
		Long: "Reads a value of 1 to 65536 bytes from stdin, to its end and byte for byte, and puts it as the next\n" +
			"version of the secret. A secret that is new needs a class; the policy says which there are. Without\n" +
			"--class a further version keeps the class.\n\n" +
			"With --split the value is split in this process: the broker gets ciphertext that it can't read, and each\n" +
			"--holder a file in --share-dir, to be handed over and kept offline. The custodians then approve with\n" +
			"`bulla share approve ROUND --share FILE`. The ciphertext is written there as well (NAME.split), so that\n" +
			"`bulla share combine` recovers the value without a broker.",
		Example: "  printf %s \"$PASSWORD\" | bulla secret put demo/database --class high\n" +
			"  bulla secret put demo/key --class standard < key.pem\n" +
			"  bulla secret put demo/root --class standard --split 2 --holder spiffe://dev.bulla.test/custodian-1 \\\n" +
			"    --holder spiffe://dev.bulla.test/custodian-2 --holder spiffe://dev.bulla.test/custodian-3 --share-dir shares < root.key\n" +
			"  bulla secret put demo/token --class standard --prompt",
		Args: nameAlone, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error { return a.putSecret(c, args[0], class, prompt, s) },
	}
	c.Flags().StringVar(&class, "class", "", "sensitivity, as the policy names it, such as standard or high")
	c.Flags().BoolVar(&prompt, "prompt", false, "ask for the value on the terminal and don't show it")
	s.add(c)
	a.addIdentity(c)
	return c
}

// nameAlone wants the name of the secret. What stands beside it may be the value: an error that repeats it would carry it into
// logs.
func nameAlone(c *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usage("%s takes a NAME and nothing else: the value comes from stdin or --prompt, since others can read arguments; if there was one, change it", c.CommandPath())
	}
	return argument("NAME")(c, args)
}

func (a *app) putSecret(c *cobra.Command, name, class string, prompt bool, s splitFlags) error {
	if _, err := secret.ParseName(name); err != nil {
		return usage("%v", err)
	}
	if c.Flags().Changed("class") {
		if _, err := secret.ParseClass(class); err != nil {
			return usage("--class: %v", err)
		}
	}
	if err := s.check(c); err != nil {
		return err
	}
	if _, err := a.identity.config(); err != nil { // before anybody types a secret
		return err
	}
	a.holdsSecrets()
	read, err := a.readValue(prompt)
	if err != nil {
		return err
	}
	value := secret.NewBytes(read)
	defer value.Zero()
	if s.threshold > 0 {
		return a.putSplit(c, name, class, value, s)
	}
	var reply *bullav1.PutSecretReply
	err = a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		reply, err = bullav1.NewSecretsClient(conn).PutSecret(ctx, &bullav1.PutSecretRequest{
			Name: name, Class: class, Value: value.Expose(), RequestId: event.NewID(time.Now()).String(),
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	return a.print(struct {
		Name    string `json:"name"`
		Version uint32 `json:"version"`
		Class   string `json:"class"`
	}{reply.GetName(), reply.GetVersion(), reply.GetClass()}, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s version %d, class %s\n", show.Text(reply.GetName()), reply.GetVersion(), show.Text(reply.GetClass()))
		return err
	})
}

// errTooLong says that there is more to read than is allowed.
var errTooLong = errors.New("it is too long")

// readAtMost reads r to its end, and fails if there are more than limit bytes.
func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		clear(data)
		return nil, err
	}
	if int64(len(data)) > limit {
		clear(data)
		return nil, fmt.Errorf("%w: at most %d bytes are allowed", errTooLong, limit)
	}
	return data, nil
}

// askUnseen reads a line from a terminal. The echo is off before the question stands there: whoever answers at once
// would be seen otherwise.
func askUnseen(fd int, screen io.Writer, question string) ([]byte, error) {
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	unseen := *before
	unseen.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &unseen); err != nil {
		return nil, err
	}
	defer func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, before) }()
	_, _ = io.WriteString(screen, question)
	defer func() { _, _ = io.WriteString(screen, "\n") }()
	return term.ReadPassword(fd)
}

// readValue reads a secret from stdin, or from the terminal if it was asked for.
func (a *app) readValue(prompt bool) (value []byte, err error) {
	switch terminal := isTerminal(a.stdin); {
	case prompt && !terminal:
		return nil, usage("--prompt needs a terminal: leave it out to read the value from stdin")
	case prompt:
		value, err = askUnseen(int(a.stdin.Fd()), a.stderr, "value (is not shown): ")
	case terminal:
		return nil, usage("the value is read from stdin, which is a terminal: use `< FILE`, a pipe, or --prompt")
	default:
		value, err = readAtMost(a.stdin, secret.MaxValue)
	}
	switch {
	case errors.Is(err, errTooLong) || len(value) > secret.MaxValue:
		clear(value)
		return nil, usage("the value on stdin is longer than %d bytes: put a key there and encrypt the rest with it", secret.MaxValue)
	case errors.Is(err, os.ErrClosed):
		return nil, usage("there is no stdin to read the value from")
	case err != nil:
		return nil, fmt.Errorf("read the value: %w", err)
	case len(value) == 0:
		return nil, usage("the value on stdin is empty: a secret has 1 to %d bytes", secret.MaxValue)
	}
	return value, nil
}

// secretJSON is a secret's metadata in JSON.
type secretJSON struct {
	Name     string        `json:"name"`
	Class    string        `json:"class"`
	Type     string        `json:"type"`
	Versions []versionJSON `json:"versions"`
}

type versionJSON struct {
	Version   uint32 `json:"version"`
	Stage     string `json:"stage"`
	CreatedAt string `json:"created_at"`
	// PublicKey is the JWK of a signature key.
	PublicKey json.RawMessage `json:"public_key,omitempty"`
}

func newSecretJSON(m *bullav1.SecretMetadata) secretJSON {
	out := secretJSON{Name: m.GetName(), Class: m.GetClass(), Type: m.GetType(), Versions: []versionJSON{}}
	for _, v := range m.GetVersions() {
		row := versionJSON{Version: v.GetVersion(), Stage: v.GetStage(), CreatedAt: moment(v.GetCreatedAt())}
		if len(v.GetPublicKey()) > 0 {
			row.PublicKey = jsonOrNull(v.GetPublicKey())
		}
		out.Versions = append(out.Versions, row)
	}
	return out
}

// moment is a time in RFC 3339, "" for none.
func moment(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format(time.RFC3339Nano)
}

// momentOrNull is moment for JSON: null for none.
func momentOrNull(t *timestamppb.Timestamp) *string {
	if t == nil {
		return nil
	}
	text := moment(t)
	return &text
}

// second is a time for people.
func second(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}

func newSecretShowCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "show NAME [flags]", Short: "Show a secret's versions, never its value",
		Long:    "Shows class and versions of a secret. The value is not shown: `bulla get` delivers it.",
		Example: "  bulla secret show demo/database\n  bulla secret show demo/database -o json",
		Args:    argument("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			if _, err := secret.ParseName(args[0]); err != nil {
				return usage("%v", err)
			}
			var m *bullav1.SecretMetadata
			err := a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
				m, err = bullav1.NewSecretsClient(conn).GetSecretMetadata(ctx, &bullav1.GetSecretMetadataRequest{Name: args[0]})
				return err
			})
			if err != nil {
				return fmt.Errorf("show %s: %w", args[0], err)
			}
			return a.print(newSecretJSON(m), func(w io.Writer) error { return secretText(w, m) })
		},
	}
	a.addIdentity(c)
	return c
}

func secretText(w io.Writer, m *bullav1.SecretMetadata) error {
	err := show.Fields(w, []show.Field{{Name: "name", Value: m.GetName()}, {Name: "class", Value: m.GetClass()}, {Name: "type", Value: m.GetType()}, {Name: "weakest release so far", Value: m.GetExposure()}})
	if err != nil {
		return err
	}
	var rows [][]string
	for _, v := range m.GetVersions() {
		rows = append(rows, []string{strconv.FormatUint(uint64(v.GetVersion()), 10), v.GetStage(), second(v.GetCreatedAt()), v.GetOwner()})
	}
	_, _ = io.WriteString(w, "\n")
	return show.Table(w, []show.Column{{Title: "VERSION"}, {Title: "STAGE", Max: 10}, {Title: "CREATED"}, {Title: "BY", Max: 35}}, rows)
}

func newSecretListCommand(a *app) *cobra.Command {
	var after string
	var limit uint32
	c := &cobra.Command{
		Use: "list [PREFIX] [flags]", Short: "List secrets",
		Long: "Lists the secrets whose metadata you may see, by name, all of them or those that begin with a prefix.\n" +
			"With --limit it stops early, and says which name to go on --after.",
		Example: "  bulla secret list demo/\n  bulla secret list -o json | jq -r '.secrets[].name'",
		Args:    atMostOne("PREFIX"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			in := &bullav1.ListSecretsRequest{After: after, Limit: limit}
			if len(args) == 1 {
				in.Prefix = args[0]
			}
			return a.listSecrets(c, in)
		},
	}
	c.Flags().StringVar(&after, "after", "", "go on after this name")
	c.Flags().Uint32Var(&limit, "limit", 0, "list at most so many (at most 1000 if not given)")
	a.addIdentity(c)
	return c
}

// atMostOne makes the check of a command whose only argument may be left out.
func atMostOne(name string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usage("%s takes one %s at most: %s", c.CommandPath(), name, c.UseLine())
		}
		return nil
	}
}

func (a *app) listSecrets(c *cobra.Command, in *bullav1.ListSecretsRequest) error {
	var reply *bullav1.ListSecretsReply
	err := a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		reply, err = bullav1.NewSecretsClient(conn).ListSecrets(ctx, in)
		return err
	})
	if err != nil {
		return fmt.Errorf("list secrets: %w", err)
	}
	answer := struct {
		Secrets []secretJSON `json:"secrets"`
		Next    *string      `json:"next"`
	}{[]secretJSON{}, orNull(reply.GetNext())}
	var rows [][]string
	for _, m := range reply.GetSecrets() {
		answer.Secrets = append(answer.Secrets, newSecretJSON(m))
		last := "-"
		if n := len(m.GetVersions()); n > 0 {
			last = strconv.FormatUint(uint64(m.GetVersions()[n-1].GetVersion()), 10)
		}
		rows = append(rows, []string{m.GetName(), m.GetClass(), last})
	}
	return a.print(answer, func(w io.Writer) error {
		if err := show.Table(w, []show.Column{{Title: "NAME", Max: 52}, {Title: "CLASS", Max: 16}, {Title: "VERSION"}}, rows); err != nil {
			return err
		}
		return more(w, reply.GetNext(), "--after")
	})
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// more says how to see the rest of a list.
func more(w io.Writer, next, flag string) error {
	if next == "" {
		return nil
	}
	_, err := fmt.Fprintf(w, "There may be more: go on with %s %s\n", flag, show.Text(next))
	return err
}
