// Package story is what `bulla demo` shows: the whole of Bulla once, from a permit to a forged log that is
// found out. It starts a development server in a temporary directory and plays all its clients with the Go SDK
// over real connections. Each step checks what it says, and is told as it ends; the first one that does not
// hold ends the story, since the later ones stand on it.
//
// It prints nothing and leaves nothing behind: no file, no process, no socket.
package story

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"google.golang.org/grpc"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/broker/devserver"
	"github.com/bulla-project/bulla/client"
)

// The names of the secrets of the story.
const (
	standardSecret = "demo/database"
	highSecret     = "demo/signing-key"
	gatedSecret    = "demo/master-key"
	proxiedSecret  = "demo/token-key"
	splitSecret    = "demo/root-key"
	noSecret       = "demo/nothing"
)

// Step is one step and how it went.
type Step struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// Config says how to tell the story.
type Config struct {
	TPM     devserver.TPMMode // "": a TPM if swtpm is installed
	Product string            // stands in the ledger's first event
	Log     *slog.Logger      // of the server; nil: silent
	// Export writes the log that the broker behind conn streams into dir, which does not exist yet.
	Export func(ctx context.Context, conn *grpc.ClientConn, dir string) error
	// Say is called with each step as it ends; nil: nobody listens.
	Say func(Step)
}

// Tell tells the story and returns its steps: all of them, in order, also those that were not reached.
func Tell(ctx context.Context, cfg Config) []Step {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Say == nil {
		cfg.Say = func(Step) {}
	}
	t := &teller{cfg: cfg, want: map[string][]byte{}}
	parts := t.parts()
	steps := make([]Step, 0, len(parts)+1)
	broken := ""
	for _, p := range parts {
		s := Step{Name: p.name}
		switch detail, err := t.try(ctx, broken, p); {
		case err != nil:
			s.Detail = err.Error()
			if broken == "" {
				broken = p.name
			}
		default:
			s.OK, s.Detail = true, detail
		}
		steps = append(steps, s)
		cfg.Say(s)
	}
	if err := t.end(); err != nil {
		s := Step{Name: "clean-up", Detail: err.Error()}
		steps = append(steps, s)
		cfg.Say(s)
	}
	return steps
}

// Held says whether every step held.
func Held(steps []Step) bool {
	for _, s := range steps {
		if !s.OK {
			return false
		}
	}
	return len(steps) > 0
}

// part is a step before it is told: it returns what it showed.
type part struct {
	name string
	show func(context.Context) (string, error)
}

func (t *teller) parts() []part {
	return []part{
		{"start", t.start},
		{"put", t.put},
		{"permit", t.permit},
		{"deny", t.deny},
		{"step-up", t.stepUp},
		{"attest", t.attest},
		{"deliver", t.deliver},
		{"open", t.open},
		{"receipt", t.receipt},
		{"gated", t.gated},
		{"proxied", t.proxied},
		{"split", t.split},
		{"pushed-revocation", t.pushed},
		{"revoke", t.revoke},
		{"refused-after-revoke", t.refusedAfterRevoke},
		{"verify-log", t.verifyLog},
		{"detect-tampering", t.detectTampering},
	}
}

func (t *teller) try(ctx context.Context, broken string, p part) (string, error) {
	if broken != "" {
		return "", fmt.Errorf("not tried, since %q did not hold", broken)
	}
	if err := ctx.Err(); err != nil {
		return "", context.Cause(ctx)
	}
	return p.show(ctx)
}

// teller is a story under way.
type teller struct {
	cfg     Config
	dir     string // the temporary directory; "" before it is there
	server  *devserver.Server
	key     proofs.Key
	clients []*client.Client

	bare     *client.Client // workload without a device
	workload *client.Client // workload with its device
	operator *client.Client
	security *client.Client
	auditor  *client.Client

	want    map[string][]byte // values as they were put
	got     *client.Secret    // the delivery of the high secret
	seen    []seen            // the events of that delivery
	exports string            // the exported log
}

// start starts the server and the clients.
func (t *teller) start(ctx context.Context) (_ string, err error) {
	if t.dir, err = os.MkdirTemp("", "bulla-demo-"); err != nil {
		return "", err
	}
	t.server, err = devserver.Start(ctx, devserver.Config{
		Dir: filepath.Join(t.dir, "dev"), TPM: t.cfg.TPM, Product: t.cfg.Product, Log: t.cfg.Log,
	})
	if err != nil {
		return "", err
	}
	if t.key, err = proofs.ParseKey(t.server.LogKey()); err != nil {
		return "", err
	}
	for name, c := range map[string]**client.Client{"workload": &t.workload, "operator": &t.operator, "security": &t.security, "auditor": &t.auditor} {
		if *c, err = t.connect(ctx, t.server.Client(name)); err != nil {
			return "", fmt.Errorf("connect as %s: %w", name, err)
		}
	}
	bare := t.server.Client("workload")
	bare.TPM, bare.DeviceFile, bare.TSM = "", "", ""
	if t.bare, err = t.connect(ctx, bare); err != nil {
		return "", fmt.Errorf("connect as workload: %w", err)
	}
	device := "a software TPM"
	if d := t.server.Device(); d.TPM == "" {
		device = "a development device"
		if d.Missing != nil {
			device += fmt.Sprintf(" (%v)", d.Missing)
		}
	}
	return fmt.Sprintf("a broker, an authority that serves the SPIFFE Workload API, and %s, enrolled over the wire; for development only", device), nil
}

// connect makes a client that ends with the story.
func (t *teller) connect(ctx context.Context, cfg client.Config) (*client.Client, error) {
	cfg.LogKey = t.key
	c, err := client.New(ctx, cfg)
	if err != nil {
		return nil, err
	}
	t.clients = append(t.clients, c)
	return c, nil
}

// stop ends the clients and the server, once.
func (t *teller) stop() error {
	var faults []error
	if t.got != nil {
		t.got.Close()
	}
	for _, c := range t.clients {
		faults = append(faults, c.Close())
	}
	t.clients = nil
	if t.server != nil {
		faults = append(faults, t.server.Close())
	}
	return errors.Join(faults...)
}

// end stops everything and removes what was written.
func (t *teller) end() error {
	err := t.stop()
	for _, v := range t.want {
		clear(v)
	}
	if t.dir != "" {
		err = errors.Join(err, os.RemoveAll(t.dir))
	}
	return err
}

// random is a value that nothing else is.
func random() []byte {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // it never fails
	return []byte(hex.EncodeToString(b))
}
