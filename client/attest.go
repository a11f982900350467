package client

import (
	"context"
	"fmt"
	"os"

	"google.golang.org/protobuf/proto"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm/device"
	"github.com/bulla-project/bulla/attest/tsm"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/ledger/event"
)

// kind is what this client can attest with; "" if with nothing.
func (c *Client) kind() attest.Kind {
	switch {
	case c.tpm != nil:
		return attest.KindTPM2
	case c.evidence != nil:
		return c.evidence.Kind()
	case c.devDevice != nil:
		return attest.KindDevelopment
	}
	return ""
}

// Evidence makes evidence of the machine that the client runs on, for kinds that say themselves which device it is
// of: [github.com/bulla-project/bulla/attest/tsm.Device] for AMD SEV-SNP and Intel TDX. A program in a Nitro enclave
// brings its own: it asks /dev/nsm for a document with Binding.Nonce as nonce, Binding.ReportData as user_data and
// Binding.InstanceKey as public_key, and returns it as it is.
type Evidence interface {
	Kind() attest.Kind
	Attest(ctx context.Context, b attest.Binding) ([]byte, error)
}

// openTSM is Config.Evidence, or what reads the reports of this machine; nil without either.
func openTSM(cfg Config) (Evidence, error) {
	if cfg.Evidence != nil || cfg.TSM == "" {
		return cfg.Evidence, nil
	}
	var certs []byte
	if cfg.TSMCerts != "" {
		var err error
		if certs, err = os.ReadFile(cfg.TSMCerts); err != nil {
			return nil, fmt.Errorf("%w: certificates for reports (%s): %w", ErrConfig, EnvTSMCerts, err)
		}
	}
	device, err := tsm.Open(tsm.Config{Dir: cfg.TSM, Certificates: certs})
	if err != nil {
		return nil, fmt.Errorf("open the reports of this machine (%s): %w", EnvTSM, err)
	}
	return device, nil
}

// machineEvidence is the evidence of a confidential machine. It names no device: the evidence does.
func machineEvidence(ctx context.Context, c *Client, b attest.Binding) (string, []byte, error) {
	shown, err := c.evidence.Attest(ctx, b)
	if err != nil {
		return "", nil, fmt.Errorf("get evidence of this machine: %w", err)
	}
	return "", shown, nil
}

// Attest shows the device's evidence to the broker and returns the attestation result (JSON). Get does it by
// itself when the policy asks for it. With a TPM, later envelopes are sealed to a key inside it. Calls that come
// while one runs share its result.
func (c *Client) Attest(ctx context.Context) ([]byte, error) {
	for {
		c.attestMu.Lock()
		running := c.attesting
		if running == nil {
			running = &attestation{done: make(chan struct{})}
			c.attesting = running
			c.attestMu.Unlock()
			recipient, result, err := c.attest(ctx)
			c.attestMu.Lock()
			if err == nil {
				c.recipient = recipient
			}
			c.attesting, running.result, running.err, running.left = nil, result, err, ctx.Err() != nil
			c.attestMu.Unlock()
			close(running.done)
			return result, err
		}
		c.attestMu.Unlock()
		select {
		case <-running.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if running.err == nil || !running.left {
			return running.result, running.err
		}
		// The caller who ran it gave up: this one takes over.
	}
}

// attestation is one that runs; the rest may be read once done is closed.
type attestation struct {
	done   chan struct{}
	result []byte
	err    error
	left   bool // whoever ran it gave up, or its time was up
}

// attest shows the evidence, and returns the recipient key that it vouches for (nil: none).
func (c *Client) attest(ctx context.Context) (*envelope.Recipient, []byte, error) {
	kind := c.kind()
	if kind == "" {
		return nil, nil, fmt.Errorf("%w: there is no device to attest: set %s to the TPM's address, or %s on a confidential machine", ErrConfig, EnvTPM, EnvTSM)
	}
	evidence := devEvidence
	if c.evidence != nil {
		evidence = machineEvidence
	}
	var recipient *envelope.Recipient
	if c.tpm != nil {
		key, err := c.tpm.NewRecipientKey(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("make a recipient key in the TPM: %w", err)
		}
		if recipient, err = envelope.NewHardwareRecipient(envelope.SuiteHybridP256(), key); err != nil {
			return nil, nil, err
		}
		evidence = func(ctx context.Context, c *Client, b attest.Binding) (string, []byte, error) {
			b.RecipientKey = key.PublicKey().Bytes()
			return c.tpmEvidence(ctx, b, key)
		}
	}
	reply, err := call(ctx, c, bullav1.Broker_Attest_FullMethodName, &sent{id: newRequestID(c)}, func(ch *channel, nonce [32]byte) (proto.Message, error) {
		id, shown, err := evidence(ctx, c, attest.Binding{Nonce: nonce, Channel: ch.exporter, Principal: c.ID().String(), InstanceKey: c.spki})
		if err != nil {
			return nil, err
		}
		out := &bullav1.AttestRequest{Kind: string(kind), Device: id, Evidence: shown}
		if recipient != nil {
			out.RecipientKey, out.RecipientSuite = recipient.PublicKey(), recipient.Suite().String()
		}
		return out, nil
	}, c.broker.Attest)
	if err != nil {
		return nil, nil, err
	}
	return recipient, reply.GetResult(), nil
}

// devEvidence is the evidence of the development device.
func devEvidence(ctx context.Context, c *Client, b attest.Binding) (string, []byte, error) {
	id, err := c.devDevice.ID()
	if err != nil {
		return "", nil, err
	}
	shown, err := c.devDevice.Attest(ctx, b)
	return id.String(), shown, err
}

func (c *Client) tpmEvidence(ctx context.Context, b attest.Binding, recipient *device.RecipientKey) (string, []byte, error) {
	id, err := c.tpm.DeviceID(ctx)
	if err != nil {
		return "", nil, err
	}
	shown, err := c.tpm.Attest(ctx, b, c.tpmKey, recipient)
	if err != nil {
		return "", nil, fmt.Errorf("get evidence from the TPM: %w", err)
	}
	return id.String(), shown, nil
}

// recipientKey is the key that the next envelope is sealed to: the attested one in the TPM, or a fresh one.
func (c *Client) recipientKey() (*envelope.Recipient, error) {
	c.attestMu.Lock()
	defer c.attestMu.Unlock()
	if c.recipient != nil {
		return c.recipient, nil
	}
	r, err := envelope.GenerateRecipient(envelope.SuiteHybridX25519())
	if err != nil {
		return nil, fmt.Errorf("make a recipient key: %w", err)
	}
	return r, nil
}

func newRequestID(c *Client) string { return event.NewRequestID(c.cfg.Now()).String() }
