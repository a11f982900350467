// Package client is Bulla's Go SDK: it gets secrets for a workload from a Bulla broker.
//
// A Client proves its SPIFFE identity over mutual TLS, makes an instance key (in the TPM where there is one),
// signs every request with it, attests the device when the policy asks for it, opens the envelopes that it
// gets, hands in their receipts, and tries again where that is safe. It talks to one broker identity and to
// nobody else.
//
//	c, err := client.New(ctx, client.FromEnvironment())
//	…
//	secret, err := c.Get(ctx, "demo/database")
//	…
//	defer secret.Close()
//	err = secret.Use(func(plaintext []byte) error { … })
//
// What it does not do: it writes no files and caches no plaintext beyond the Secret that it returned; it
// can't keep a program from copying what Use shows to it. It reaches neither policy engine nor store.
package client

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest/dev"
	"github.com/bulla-project/bulla/attest/tpm/device"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/envelope/proof"
)

// The environment that FromEnvironment reads.
const (
	EnvAddress    = "BULLA_ADDR"             // host:port of the broker
	EnvServerID   = "BULLA_SERVER_ID"        // the broker's SPIFFE ID
	EnvSocket     = "SPIFFE_ENDPOINT_SOCKET" // Workload API
	EnvTPM        = "BULLA_TPM"              // unix:PATH or device:PATH
	EnvDeviceFile = "BULLA_DEVICE_FILE"      // a development device, as `bulla dev` makes it
	EnvTSM        = "BULLA_TSM"              // directory of configfs-tsm reports, such as /sys/kernel/config/tsm/report
	EnvTSMCerts   = "BULLA_TSM_CERTS"        // PEM file of certificates to send along with SEV-SNP reports
	EnvTokenFile  = "BULLA_TOKEN_FILE"       // a token of another issuer
)

// brokerPath is the path of the broker's SPIFFE ID in the own trust domain, where no ID is configured.
const brokerPath = "/bulla/broker"

// Config says who the client is and whom it talks to. The zero value of a field has the meaning that its
// comment says; Address is always needed.
type Config struct {
	Address  string // host:port of the broker
	ServerID string // SPIFFE ID of the broker; "": spiffe://<own trust domain>/bulla/broker

	// Where the identity comes from: a Workload API, or PEM files.
	EndpointSocket                string
	CertFile, KeyFile, BundleFile string
	TrustDomains                  []string // further ones, where the broker is in another

	TPM        string // unix:PATH or device:PATH; "": none
	DeviceFile string // a development device; "": none
	TSM        string // directory of configfs-tsm reports of a confidential machine; "": none
	TSMCerts   string // PEM file with certificates that SEV-SNP hosts do not give to their guests; "": none
	// Evidence, if set, makes evidence of a confidential machine, instead of TSM.
	Evidence Evidence

	// TokenFile holds a token of another issuer (OpenID Connect, or a JWT-SVID), which is read anew and shown only when
	// the policy asks for a further factor; "": none.
	TokenFile string
	// Token, if set, gets such a token instead. instance is the thumbprint of the instance key: an issuer that takes a
	// nonce can bind the token to it.
	Token func(ctx context.Context, instance string) (string, error)

	// MinimumSuite is the weakest envelope that is opened; zero: any post-quantum hybrid.
	MinimumSuite envelope.Suite
	// LogKey, if set, is the log's verifier key: VerifyInclusion needs it.
	LogKey proofs.Key
	// ConnectTimeout limits the wait for the Workload API, and for a connection; 0: 3 s.
	ConnectTimeout time.Duration
	// OnRound, if set, is told how a round stands for which Get waits, whenever that changes.
	OnRound func(RoundProgress)
	Now     func() time.Time // nil: time.Now
	Log     *slog.Logger     // nil: silent
}

// FromEnvironment returns the configuration that the environment describes. It does not check it.
func FromEnvironment() Config {
	return Config{
		Address: os.Getenv(EnvAddress), ServerID: os.Getenv(EnvServerID), EndpointSocket: os.Getenv(EnvSocket),
		TPM: os.Getenv(EnvTPM), DeviceFile: os.Getenv(EnvDeviceFile),
		TSM: os.Getenv(EnvTSM), TSMCerts: os.Getenv(EnvTSMCerts), TokenFile: os.Getenv(EnvTokenFile),
	}
}

// Client is one instance of a workload. It is safe for concurrent use; Close ends it.
type Client struct {
	cfg      Config
	source   *certs.Source
	serverID spiffeid.ID
	conn     *grpc.ClientConn
	broker   bullav1.BrokerClient
	audit    bullav1.AuditClient
	rounds   bullav1.RoundsClient
	wire     *wire

	instance   crypto.Signer
	thumbprint string
	spki       []byte
	tpm        *device.TPM
	tpmKey     *device.InstanceKey
	devDevice  *dev.Device
	evidence   Evidence // of a confidential machine

	bindingMu   sync.Mutex // guards what follows
	bound       []byte     // binding of the instance key
	bindingOf   *x509.Certificate
	bindingEnds time.Time

	attestMu  sync.Mutex // guards what follows
	recipient *envelope.Recipient
	attesting *attestation // the one that runs, or nil

	seenMu     sync.Mutex // guards what follows
	checkpoint []byte
	seen       proofs.Checkpoint // checkpoint, where there is a LogKey to check it with
	keySet     *envelope.KeySet

	watch *watch
	poll  time.Duration // pollEvery

	run  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// New returns a client that holds an identity. It connects at the first call.
func New(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.Address == "" {
		return nil, fmt.Errorf("%w: no broker address: set %s to host:port", ErrConfig, EnvAddress)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 3 * time.Second
	}
	if cfg.MinimumSuite.IsZero() {
		cfg.MinimumSuite = envelope.SuiteHybridP256()
	}
	source, err := certs.Open(ctx, certs.Config{
		EndpointSocket: cfg.EndpointSocket, CertFile: cfg.CertFile, KeyFile: cfg.KeyFile, BundleFile: cfg.BundleFile,
		TrustDomains: cfg.TrustDomains, ConnectTimeout: cfg.ConnectTimeout, Now: cfg.Now, Log: cfg.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("get an identity: %w", err)
	}
	c := &Client{cfg: cfg, source: source}
	if err := c.open(ctx); err != nil {
		return nil, errors.Join(err, source.Close())
	}
	return c, nil
}

// open makes what stands on the identity: pin, instance key, connection.
func (c *Client) open(ctx context.Context) (err error) {
	if c.cfg.ServerID == "" {
		c.serverID, err = spiffeid.FromPath(c.source.TrustDomain(), brokerPath)
	} else {
		c.serverID, err = certs.ParseID(c.cfg.ServerID)
	}
	if err != nil {
		return fmt.Errorf("%w: the broker's SPIFFE ID (%s): %w", ErrConfig, EnvServerID, err)
	}
	if err := c.makeInstance(ctx); err != nil {
		return err
	}
	c.wire = newWire(c.source, c.serverID)
	c.conn, err = grpc.NewClient("passthrough:///"+c.cfg.Address,
		grpc.WithTransportCredentials(c.wire), grpc.WithDisableRetry(), grpc.WithNoProxy(), grpc.WithUnaryInterceptor(c.wire.unary),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(8<<20)),
		grpc.WithConnectParams(connectParams(c.cfg.ConnectTimeout)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Minute, Timeout: 10 * time.Second}))
	if err != nil {
		return fmt.Errorf("%w: broker address %q: %w", ErrConfig, c.cfg.Address, err)
	}
	c.broker, c.audit, c.rounds = bullav1.NewBrokerClient(c.conn), bullav1.NewAuditClient(c.conn), bullav1.NewRoundsClient(c.conn)
	c.watch, c.poll = newWatch(c), pollEvery
	c.run, c.stop = context.WithCancel(context.Background())
	return nil
}

// makeInstance makes the instance key: in the TPM where one is configured, else in memory.
func (c *Client) makeInstance(ctx context.Context) (err error) {
	switch {
	case c.cfg.TPM != "":
		if c.tpm, err = device.Open(ctx, c.cfg.TPM); err != nil {
			return fmt.Errorf("open the TPM (%s): %w", EnvTPM, err)
		}
		if c.tpmKey, err = c.tpm.NewInstanceKey(ctx); err != nil {
			return fmt.Errorf("make an instance key in the TPM: %w", err)
		}
		c.instance = c.tpmKey
	default:
		if c.instance, err = proof.GenerateInstanceKey(); err != nil {
			return fmt.Errorf("make an instance key: %w", err)
		}
		if c.evidence, err = openTSM(c.cfg); err != nil {
			return err
		}
		if c.cfg.DeviceFile != "" {
			if c.devDevice, err = dev.Load(c.cfg.DeviceFile); err != nil {
				return fmt.Errorf("load the development device (%s): %w", EnvDeviceFile, err)
			}
		}
	}
	public, err := proof.InstancePublic(c.instance)
	if err != nil {
		return err
	}
	c.thumbprint = proof.Thumbprint(public)
	c.spki, err = proof.MarshalInstanceKey(public)
	return err
}

// ID returns the client's own SPIFFE ID.
func (c *Client) ID() spiffeid.ID { return c.source.ID() }

// Conn returns the connection to the broker, for the services of the operator's side.
func (c *Client) Conn() *grpc.ClientConn { return c.conn }

// Checkpoint returns the newest signed tree head that the broker showed, or nil. Without Config.LogKey nobody
// has checked it.
func (c *Client) Checkpoint() []byte {
	c.seenMu.Lock()
	defer c.seenMu.Unlock()
	return c.checkpoint
}

// Close ends background work, waits for it, and closes connection and identity. Secrets stay usable until
// they are closed themselves, and are not watched any more.
func (c *Client) Close() error {
	c.watch.flush()
	c.stop()
	c.wg.Wait()
	return errors.Join(c.conn.Close(), c.source.Close())
}
