// Package rig runs a whole broker inside a test: development authority, policy, ledger, server, over real mutual
// TLS on loopback. Raw speaks the wire by hand, so that tests can send what the SDK never would. It is imported
// by tests only; what people run is `bulla dev`.
package rig

import (
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest/dev"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/broker/server"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/certs/devauthority"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/rego"
)

// TrustDomain is the trust domain of every rig.
const TrustDomain = "dev.bulla.test"

// Config changes what a rig is made of.
type Config struct {
	SVIDTTL time.Duration                 // 0: an hour
	Now     func() time.Time              // the broker's clock
	Policy  func(files map[string]string) // edits the first bundle, by path
	Edit    func(c *config.Config)        // edits the server's configuration
	Site    config.Site                   // zero: security and auditor of the development policy
}

// Rig is a running broker.
type Rig struct {
	Dir       string
	Authority *devauthority.Authority
	Config    config.Config
	Server    *server.Server
	Log       *syncBuffer

	serving sync.Mutex // held while it is found out whether an identity is served already

	t    testing.TB
	cfg  Config
	stop context.CancelFunc
	done chan error
	addr string
}

// syncBuffer collects the broker's log.
type syncBuffer struct {
	mu sync.Mutex // guards b
	b  strings.Builder
}

// Write implements io.Writer.
func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

// String returns what was written so far.
func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// ID returns the SPIFFE ID of a name, such as "workload".
func ID(name string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://" + TrustDomain + "/" + name)
}

// Start runs a broker until the test ends.
func Start(t testing.TB, cfg Config) *Rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "rig") // t.TempDir makes paths that are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	r := &Rig{Dir: dir, t: t, cfg: cfg, Log: &syncBuffer{}}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r.Authority, err = devauthority.New(devauthority.Config{
		DevelopmentOnly: true, Dir: filepath.Join(dir, "authority"), TrustDomain: TrustDomain, TTL: cfg.SVIDTTL, Log: slog.New(slog.NewTextHandler(r.Log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Authority.Close() })
	r.serve("bulla/broker")
	r.writePolicy()
	r.Config = config.Config{
		Listen: "127.0.0.1:0", DataDir: filepath.Join(dir, "data"), SPIFFE: config.SPIFFE{EndpointSocket: r.Socket("bulla/broker")},
		Policy: config.Policy{Dir: filepath.Join(dir, "policy")}, Keyring: config.Keyring{KEKFile: filepath.Join(dir, "kek")},
		Log: config.Log{Origin: TrustDomain + "/bulla"}, Site: cfg.Site,
	}
	if len(r.Config.Site.Security) == 0 {
		r.Config.Site = config.Site{Security: []string{ID("security").String()}, Auditors: []string{ID("auditor").String()}}
	}
	// A new revision ends no session behind a test's back that looks at how each use is decided.
	r.Config.Policy.HoldSharePercent, r.Config.Policy.HoldMinimum = 1, 1
	if cfg.Edit != nil {
		cfg.Edit(&r.Config)
	}
	if err := server.Init(t.Context(), r.Config, "test", nil); err != nil {
		t.Fatal(err)
	}
	r.Run()
	t.Cleanup(r.Stop)
	return r
}

// Socket is the SPIFFE_ENDPOINT_SOCKET of a name; the authority serves it from the first call on.
func (r *Rig) Socket(name string) string {
	return "unix://" + filepath.Join(r.Dir, strings.ReplaceAll(name, "/", "-")+".sock")
}

func (r *Rig) serve(name string) {
	r.t.Helper()
	r.serving.Lock()
	defer r.serving.Unlock()
	path := strings.TrimPrefix(r.Socket(name), "unix://")
	if _, err := os.Stat(path); err == nil {
		return
	}
	if err := r.Authority.Serve(ID(name), path); err != nil {
		r.t.Fatal(err)
	}
}

func (r *Rig) writePolicy() {
	r.t.Helper()
	files := PolicyFiles(r.t)
	if r.cfg.Policy != nil {
		r.cfg.Policy(files)
	}
	for name, text := range files {
		path := filepath.Join(r.Dir, "policy", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			r.t.Fatal(err)
		}
	}
}

// PolicyFiles are the files of the development policy.
func PolicyFiles(t testing.TB) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := fs.WalkDir(rego.Development(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(rego.Development(), path)
		files[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Run starts the broker on the rig's data; Stop must have been called before, or it never ran.
func (r *Rig) Run() {
	r.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	if r.addr != "" {
		r.Config.Listen = r.addr // the same port again, for clients that live through a restart
	}
	s, err := server.Open(ctx, r.Config, server.Options{
		Log: slog.New(slog.NewTextHandler(r.Log, nil)), Now: r.cfg.Now, DevelopmentKey: r.Authority.DeviceKeyPublic(),
	})
	if err != nil {
		stop()
		r.t.Fatal(err)
	}
	r.Server, r.stop, r.done, r.addr = s, stop, make(chan error, 1), s.Addr().String()
	go func() { r.done <- s.Serve(ctx) }()
}

// Twin is a rig of its own, which never ran, with the same configuration on another copy of the data.
func (r *Rig) Twin(data string) *Rig {
	twin := &Rig{Dir: r.Dir, Authority: r.Authority, Config: r.Config, Log: new(syncBuffer), t: r.t, cfg: r.cfg}
	twin.Config.DataDir = data
	return twin
}

// Stop ends the broker; a second call does nothing.
func (r *Rig) Stop() {
	if r.stop == nil {
		return
	}
	r.stop()
	if err := <-r.done; err != nil {
		r.t.Errorf("serve: %v", err)
	}
	r.stop = nil
}

// Addr is host:port of the broker.
func (r *Rig) Addr() string { return r.addr }

// Client returns an SDK client with the identity name.
func (r *Rig) Client(name string, edit ...func(*client.Config)) *client.Client {
	r.t.Helper()
	r.serve(name)
	cfg := client.Config{Address: r.addr, EndpointSocket: r.Socket(name)}
	for _, e := range edit {
		e(&cfg)
	}
	c, err := client.New(r.t.Context(), cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	return c
}

// Put stores a version of a secret, as operator.
func (r *Rig) Put(name, class, value string) {
	r.t.Helper()
	_, err := bullav1.NewSecretsClient(r.Client("operator").Conn()).PutSecret(r.t.Context(), &bullav1.PutSecretRequest{
		Name: name, Class: class, Value: []byte(value), RequestId: event.NewID(time.Now()).String(),
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// Device makes a development device, enrols it for the principals, and returns its file.
func (r *Rig) Device(principals ...string) (file string, id string) {
	r.t.Helper()
	file = filepath.Join(r.Dir, "device-"+event.NewID(time.Now()).String())
	d, err := dev.Create(file, func(public []byte) ([]byte, error) { return dev.Vouch(r.Authority.DeviceKey(), public) })
	if err != nil {
		r.t.Fatal(err)
	}
	service := bullav1.NewDevicesClient(r.Client("operator").Conn())
	begun, err := service.BeginEnrolment(r.t.Context(), &bullav1.BeginEnrolmentRequest{Kind: "development", Request: d.EnrolRequest(), Principals: principals})
	if err != nil {
		r.t.Fatal(err)
	}
	done, err := service.FinishEnrolment(r.t.Context(), &bullav1.FinishEnrolmentRequest{Enrolment: begun.GetEnrolment()})
	if err != nil {
		r.t.Fatal(err)
	}
	return file, done.GetId()
}

// Source opens the Workload API of a name.
func (r *Rig) Source(name string) *certs.Source {
	r.t.Helper()
	r.serve(name)
	src, err := certs.Open(r.t.Context(), certs.Config{EndpointSocket: r.Socket(name)})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = src.Close() })
	return src
}

// Dial opens one gRPC connection with a TLS configuration of the test's own.
func (r *Rig) Dial(cfg *tls.Config) *grpc.ClientConn {
	r.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+r.addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)), grpc.WithDisableRetry(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.2, MaxDelay: 200 * time.Millisecond}, MinConnectTimeout: 5 * time.Second}))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Events returns all events of the ledger that can be read, through the auditor's tail.
func (r *Rig) Events() []event.Event {
	r.t.Helper()
	stream, err := bullav1.NewAuditClient(r.Client("auditor").Conn()).Tail(r.t.Context(), &bullav1.TailRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	var out []event.Event
	for {
		got, err := stream.Recv()
		if err != nil {
			break
		}
		if got.GetErased() != 0 {
			continue
		}
		e, err := event.Decode(got.GetEvent())
		if err != nil {
			r.t.Fatal(err)
		}
		out = append(out, e)
	}
	if len(out) == 0 {
		r.t.Fatal("the auditor got no events")
	}
	return out
}

// Check rebuilds the state from the events and fails the test where they differ, or where a recorded decision does not
// come out again.
func (r *Rig) Check() {
	r.t.Helper()
	r.CheckRows()
	r.replays()
}

// CheckRows is Check without the replay, for records that hold decisions which no policy made.
func (r *Rig) CheckRows() {
	r.t.Helper()
	stream, err := bullav1.NewAuditClient(r.Client("auditor").Conn()).CheckRebuild(r.t.Context(), &bullav1.CheckRebuildRequest{})
	var report *bullav1.CheckRebuildReply
	for err == nil && !report.GetReport() {
		report, err = stream.Recv()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	for _, d := range report.GetDifferences() {
		r.t.Errorf("rebuild: %s", d)
	}
}
