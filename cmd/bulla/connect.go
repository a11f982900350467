package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/attest/tpm/device"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/internal/harden"
)

// errTimeout: nothing came for as long as --timeout allows.
var errTimeout = errors.New("no answer in time")

// identityFlags say who the caller is and whom it talks to. What is not given comes from the environment.
type identityFlags struct {
	addr, serverID, socket string
	cert, key, bundle      string
	trustDomains           []string
	tpm, deviceFile        string
	tokenFile              string
}

// addIdentity gives a command the flags of one that talks to a broker.
func (a *app) addIdentity(c *cobra.Command) {
	f, id := c.Flags(), &a.identity
	f.StringVar(&id.addr, "addr", "", "host:port of the broker (BULLA_ADDR)")
	f.StringVar(&id.serverID, "server-id", "", "SPIFFE ID of the broker (BULLA_SERVER_ID)")
	f.StringVar(&id.socket, "socket", "", "Workload API, such as unix:///run/spire/agent.sock (SPIFFE_ENDPOINT_SOCKET)")
	f.StringVar(&id.cert, "cert", "", "X.509-SVID in a PEM file, instead of the Workload API")
	f.StringVar(&id.key, "key", "", "its private key in a PEM file")
	f.StringVar(&id.bundle, "bundle", "", "trust bundle in a PEM file")
	f.StringSliceVar(&id.trustDomains, "trust-domain", nil, "further trust domain to accept the broker from")
}

// addDevice gives a command the flags of one that has a device to show.
func (a *app) addDevice(c *cobra.Command) {
	f, id := c.Flags(), &a.identity
	f.StringVar(&id.tpm, "tpm", "", "address of the TPM: unix:PATH or device:PATH (BULLA_TPM)")
	f.StringVar(&id.deviceFile, "device-file", "", "file of a development device (BULLA_DEVICE_FILE)")
}

// addToken gives a command the flag of one that has a token to show.
func (a *app) addToken(c *cobra.Command) {
	c.Flags().StringVar(&a.identity.tokenFile, "token-file", "", "file of a token of another issuer, shown only when the policy asks for it (BULLA_TOKEN_FILE)")
}

// config is what flags and environment say together. Where they can't work it says what to do.
func (id identityFlags) config() (client.Config, error) {
	cfg := client.FromEnvironment()
	cfg.ConnectTimeout, cfg.TrustDomains = connectTimeout, id.trustDomains
	override(&cfg.Address, id.addr)
	override(&cfg.ServerID, id.serverID)
	override(&cfg.EndpointSocket, id.socket)
	override(&cfg.TokenFile, id.tokenFile)
	if id.tpm != "" && id.deviceFile != "" {
		return cfg, usage("--tpm and --device-file exclude each other: name the device to use")
	}
	if id.tpm != "" || id.deviceFile != "" {
		cfg.TPM, cfg.DeviceFile, cfg.TSM = id.tpm, id.deviceFile, ""
	}
	if id.cert != "" || id.key != "" || id.bundle != "" {
		if id.cert == "" || id.key == "" || id.bundle == "" {
			return cfg, usage("--cert, --key and --bundle belong together: name all three files")
		}
		if id.socket != "" {
			return cfg, usage("--socket and --cert exclude each other: an identity comes from the Workload API or from files")
		}
		cfg.CertFile, cfg.KeyFile, cfg.BundleFile, cfg.EndpointSocket = id.cert, id.key, id.bundle, ""
	}
	return cfg, checkConfig(cfg)
}

func override(value *string, flag string) {
	if flag != "" {
		*value = flag
	}
}

func checkConfig(cfg client.Config) error {
	if cfg.Address == "" {
		return usage("no broker address: set %s (or --addr) to host:port; `bulla dev` starts a broker and writes such settings to a file to source", client.EnvAddress)
	}
	host, port, err := net.SplitHostPort(cfg.Address)
	if n, e := strconv.ParseUint(port, 10, 16); err != nil || host == "" || e != nil || n == 0 {
		return usage("the broker address (%s) is %q: it has to be host:port, such as broker.example:8443", client.EnvAddress, cfg.Address)
	}
	if cfg.EndpointSocket == "" && cfg.CertFile == "" {
		return usage("no identity: set %s (or --socket) to a Workload API, or name --cert, --key and --bundle; `bulla dev` starts one and writes such settings to a file to source", client.EnvSocket)
	}
	if cfg.ServerID != "" {
		if _, err := certs.ParseID(cfg.ServerID); err != nil {
			return usage("the broker's SPIFFE ID (%s): %v", client.EnvServerID, err)
		}
	}
	if cfg.TPM != "" && !strings.HasPrefix(cfg.TPM, "unix:/") && !strings.HasPrefix(cfg.TPM, "device:/") {
		return usage("the address of the TPM (%s) is %q: it has to be unix:/PATH or device:/PATH", client.EnvTPM, cfg.TPM)
	}
	return nil
}

// checkTPM fails at once where there is no TPM: one that is only busy is waited for later.
func checkTPM(address string) error {
	_, path, _ := strings.Cut(address, ":")
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("open the TPM (%s): %w: %w", client.EnvTPM, device.ErrUnavailable, err)
	}
	return nil
}

// connect returns a client whose connection stands. Without a device it makes no use of the TPM.
func (a *app) connect(ctx context.Context, withDevice bool) (*client.Client, error) {
	cfg, err := a.identity.config()
	if err != nil {
		return nil, err
	}
	cfg.ConnectTimeout, cfg.OnRound = min(connectTimeout, a.timeout), a.onRound
	if !withDevice {
		cfg.TPM, cfg.DeviceFile, cfg.TSM, cfg.TokenFile = "", "", "", ""
	}
	if cfg.TPM != "" {
		if err := checkTPM(cfg.TPM); err != nil {
			return nil, err
		}
	}
	c, err := client.New(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := a.reach(ctx, c, cfg.Address); err != nil {
		_ = c.Close() // nothing went over it
		return nil, err
	}
	return c, nil
}

// reach waits until the connection stands, or says why it does not.
func (a *app) reach(ctx context.Context, c *client.Client, address string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, min(connectTimeout, a.timeout), errTimeout)
	defer cancel()
	conn := c.Conn()
	conn.Connect()
	for {
		state := conn.GetState()
		switch state {
		case connectivity.Ready:
			return nil
		case connectivity.TransientFailure, connectivity.Shutdown:
			// A call on it says why.
			_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
			if code := status.Code(err); code != codes.Unavailable && code != codes.DeadlineExceeded && code != codes.Canceled {
				return nil
			}
			return fmt.Errorf("connect to the broker at %s as %s: %w", address, c.ID(), transportError(err))
		}
		if !conn.WaitForStateChange(ctx, state) {
			return fmt.Errorf("connect to the broker at %s as %s: %w", address, c.ID(), context.Cause(ctx))
		}
	}
}

// transportError is the cause of a failed connection without gRPC's words around it. gRPC keeps the text of a
// refused handshake alone, so the kind of the refusal is read from it: for the hint, and nothing else.
func transportError(err error) error {
	text := status.Convert(err).Message()
	if at := strings.LastIndex(text, `desc = "`); at >= 0 {
		if plain, e := strconv.Unquote(strings.TrimSpace(text[at+len("desc = "):])); e == nil {
			text = plain
		}
	}
	for _, words := range []string{"transport: ", "Error while dialing: ", "authentication handshake failed: "} {
		text = strings.TrimPrefix(text, words)
	}
	for _, kind := range []error{certs.ErrUnexpectedID, certs.ErrExpired, certs.ErrNotYetValid, certs.ErrUntrusted} {
		if rest, ok := strings.CutPrefix(text, kind.Error()); ok {
			return fmt.Errorf("%w: %w%s", client.ErrUnavailable, kind, rest)
		}
	}
	return fmt.Errorf("%w: %s", client.ErrUnavailable, text)
}

// withBroker runs one exchange with the broker's operator side, within --timeout.
func (a *app) withBroker(c *cobra.Command, f func(ctx context.Context, conn *grpc.ClientConn) error) error {
	ctx, cancel := context.WithTimeoutCause(c.Context(), a.timeout, errTimeout)
	defer cancel()
	broker, err := a.connect(ctx, false)
	if err != nil {
		return err
	}
	defer broker.Close()
	return client.FromStatus(f(ctx, broker.Conn()))
}

// withStream is withBroker for a stream. It may last as long as something comes: f calls alive when it did, and
// the stream is ended after silence; 0 sets no limit.
func (a *app) withStream(c *cobra.Command, silence time.Duration, f func(ctx context.Context, conn *grpc.ClientConn, alive func()) error) error {
	ctx, cancel := context.WithCancelCause(c.Context())
	defer cancel(nil)
	broker, err := a.connect(ctx, false)
	if err != nil {
		return err
	}
	defer broker.Close()
	alive := func() {}
	if silence > 0 {
		timer := time.AfterFunc(silence, func() { cancel(errTimeout) })
		defer timer.Stop()
		alive = func() { timer.Reset(silence) }
	}
	err = f(ctx, broker.Conn(), alive)
	if err != nil && errors.Is(context.Cause(ctx), errTimeout) {
		return fmt.Errorf("the broker was silent for %s: %w", silence, errTimeout)
	}
	return client.FromStatus(err)
}

// offline is the context of a command that works on files: --timeout counts only if it was given.
func (a *app) offline(c *cobra.Command) (context.Context, context.CancelFunc) {
	if !a.timeoutSet {
		return c.Context(), func() {}
	}
	return context.WithTimeout(c.Context(), a.timeout)
}

// holdsSecrets is called by commands through which a secret goes, before it does.
func (a *app) holdsSecrets() {
	if err := harden.Process(); err != nil {
		a.warn("%v", err)
	}
}

// readFile reads a small file that a flag names.
func readFile(flag, path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, usage("%s: %v", flag, err)
	}
	defer f.Close()
	text, err := readAtMost(f, limit)
	if err != nil {
		return nil, usage("%s: read %s: %v", flag, path, err)
	}
	return text, nil
}
