package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/dev"
	"github.com/bulla-project/bulla/attest/tpm/device"
	"github.com/bulla-project/bulla/attest/tpm/evidence"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
)

// maxChain is the largest file of certificates that is read, in bytes.
const maxChain = 256 << 10

func newDeviceCommand(a *app) *cobra.Command {
	return group("device", "Enrol, list, show and revoke devices",
		"A device is what workloads attest: a TPM, named for good by its endorsement key, the image of a\n"+
			"confidential machine, or, in development, a key in a file.",
		"  bulla device enroll --tpm device:/dev/tpmrm0 --principal spiffe://example.org/db\n  bulla device list",
		newDeviceEnrollCommand(a), newDeviceListCommand(a), newDeviceShowCommand(a), newDeviceRevokeCommand(a))
}

func newDeviceEnrollCommand(a *app) *cobra.Command {
	var principals []string
	var chain string
	var image imageFlags
	c := &cobra.Command{
		Use: "enroll [--tpm ADDRESS | --device-file FILE | --kind KIND] --principal ID [flags]", Short: "Enrol a device",
		Long: "Enrols the TPM of this machine: it shows its endorsement key with the certificate of its maker, and\n" +
			"answers a challenge that only the TPM with that key can answer. Which makers or keys are accepted is\n" +
			"said by the reference values of the active policy. In development a device file can stand in.\n\n" +
			"Of confidential machines (--kind nitro, sev-snp or tdx) the image is enrolled, by what its hardware measures:\n" +
			"from a file of measurements, as `nitro-cli build-enclave` prints them, or from a report that such a machine\n" +
			"has made. You vouch for these values; every attestation has to show them. An image of sev-snp and tdx is\n" +
			"pinned to the processor of the report, unless --any-platform is given.\n\n" +
			"Each --principal is a SPIFFE ID that may run on the device. Without any, the policy alone decides.",
		Example: "  bulla device enroll --tpm device:/dev/tpmrm0 --principal spiffe://example.org/db\n" +
			"  bulla device enroll --tpm unix:/run/swtpm/sock --chain intermediates.pem --principal spiffe://example.org/db\n" +
			"  bulla device enroll --kind nitro --measurements pcrs.json --principal spiffe://example.org/db\n" +
			"  bulla device enroll --kind sev-snp --evidence report.bin --any-platform --principal spiffe://example.org/db",
		Args: argument(), ValidArgsFunction: cobra.NoFileCompletions, DisableFlagsInUseLine: true,
		RunE: func(c *cobra.Command, _ []string) error { return a.enroll(c, principals, chain, image) },
	}
	c.Flags().StringSliceVar(&principals, "principal", nil, "SPIFFE ID that may run on the device; may be repeated")
	c.Flags().StringVar(&chain, "chain", "", "PEM file with intermediate certificates that the TPM does not hold itself")
	image.add(c)
	a.addIdentity(c)
	a.addDevice(c)
	return c
}

// enrollee is a device that can go through an enrolment.
type enrollee struct {
	kind    attest.Kind
	request []byte
	answer  func(ctx context.Context, challenge []byte) ([]byte, error)
}

func (a *app) enroll(c *cobra.Command, principals []string, chain string, image imageFlags) error {
	cfg, err := a.identity.config()
	if err != nil {
		return err
	}
	for _, p := range principals {
		if _, err := certs.ParseID(p); err != nil {
			return usage("--principal: %v", err)
		}
	}
	slices.Sort(principals)
	principals = slices.Compact(principals)
	var chainPEM []byte
	if chain != "" {
		if cfg.TPM == "" {
			return usage("--chain belongs to a TPM: name it with --tpm")
		}
		if chainPEM, err = readFile("--chain", chain, maxChain); err != nil {
			return err
		}
	}
	named, err := image.enrollee()
	if err != nil {
		return err
	}
	var enrolled *bullav1.Device
	err = a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) error {
		what := named
		if what.kind == "" {
			if what, err = newEnrollee(ctx, cfg, chainPEM); err != nil {
				return err
			}
		}
		enrolled, err = what.enrol(ctx, bullav1.NewDevicesClient(conn), principals)
		return err
	})
	if err != nil {
		return fmt.Errorf("enrol the device: %w", err)
	}
	return a.printDevice(enrolled)
}

// newEnrollee takes the device that flags and environment name.
func newEnrollee(ctx context.Context, cfg client.Config, chainPEM []byte) (enrollee, error) {
	switch {
	case cfg.TPM != "":
		if err := checkTPM(cfg.TPM); err != nil {
			return enrollee{}, err
		}
		t, err := device.Open(ctx, cfg.TPM)
		if err != nil {
			return enrollee{}, err
		}
		request, err := t.EnrolRequest(ctx, chainPEM)
		if err != nil {
			return enrollee{}, err
		}
		return enrollee{attest.KindTPM2, request.Marshal(), func(ctx context.Context, challenge []byte) ([]byte, error) {
			parsed, err := evidence.ParseChallenge(challenge)
			if err != nil {
				return nil, fmt.Errorf("the broker's challenge: %w", err)
			}
			return t.Activate(ctx, parsed)
		}}, nil
	case cfg.DeviceFile != "":
		d, err := dev.Load(cfg.DeviceFile)
		if err != nil {
			return enrollee{}, err
		}
		return enrollee{attest.KindDevelopment, d.EnrolRequest(), func(context.Context, []byte) ([]byte, error) { return nil, nil }}, nil
	}
	return enrollee{}, usage("no device to enrol: name it with --tpm (%s) or --device-file (%s), or an image with --kind", client.EnvTPM, client.EnvDeviceFile)
}

func (e enrollee) enrol(ctx context.Context, devices bullav1.DevicesClient, principals []string) (*bullav1.Device, error) {
	begun, err := devices.BeginEnrolment(ctx, &bullav1.BeginEnrolmentRequest{Kind: string(e.kind), Request: e.request, Principals: principals})
	if err != nil {
		return nil, err
	}
	answer, err := e.answer(ctx, begun.GetChallenge())
	if err != nil {
		return nil, err
	}
	return devices.FinishEnrolment(ctx, &bullav1.FinishEnrolmentRequest{Enrolment: begun.GetEnrolment(), Answer: answer})
}

// deviceJSON is a device in JSON. Record is what the broker keeps of it.
type deviceJSON struct {
	ID         string          `json:"id"`
	Kind       string          `json:"kind"`
	State      string          `json:"state"`
	EnrolledAt string          `json:"enrolled_at"`
	RevokedAt  *string         `json:"revoked_at"`
	Reason     string          `json:"reason"`
	Record     json.RawMessage `json:"record"`
}

func newDeviceJSON(d *bullav1.Device) deviceJSON {
	record := json.RawMessage(d.GetRecord())
	if !json.Valid(record) {
		record = json.RawMessage("null")
	}
	return deviceJSON{d.GetId(), d.GetKind(), deviceState(d), moment(d.GetEnrolledAt()), momentOrNull(d.GetRevokedAt()), d.GetReason(), record}
}

func deviceState(d *bullav1.Device) string {
	if d.GetRevokedAt() != nil {
		return "revoked"
	}
	return "enrolled"
}

func (a *app) printDevice(d *bullav1.Device) error {
	return a.print(newDeviceJSON(d), func(w io.Writer) error {
		record, err := attest.DecodeDevice(d.GetRecord())
		if err != nil {
			return fmt.Errorf("the broker's record of the device: %w", err)
		}
		who := strings.Join(record.Principals, " ")
		if who == "" {
			who = "whom the policy allows"
		}
		return show.Fields(w, append([]show.Field{
			{Name: "device", Value: d.GetId()},
			{Name: "kind", Value: d.GetKind()},
			{Name: "state", Value: deviceState(d)},
			{Name: "principals", Value: who},
			{Name: "platform", Value: strings.TrimSpace(record.Platform.Manufacturer + " " + record.Platform.Model + " " + record.Platform.Version)},
			{Name: "identity key", Value: record.IdentityHash},
			{Name: "vouched for by", Value: record.Anchor},
			{Name: "profile", Value: record.Profile},
			{Name: "enrolled", Value: second(d.GetEnrolledAt())},
			{Name: "revoked", Value: second(d.GetRevokedAt())},
			{Name: "reason", Value: d.GetReason()},
		}, imageFields(record.Image)...))
	})
}

func newDeviceListCommand(a *app) *cobra.Command {
	in := new(bullav1.ListDevicesRequest)
	c := &cobra.Command{
		Use: "list [flags]", Short: "List devices",
		Long:    "Lists devices by id, revoked ones as well. Where there are more, --after goes on.",
		Example: "  bulla device list -o json | jq -r '.devices[] | select(.state == \"enrolled\").id'",
		Args:    argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			var reply *bullav1.ListDevicesReply
			err := a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
				reply, err = bullav1.NewDevicesClient(conn).ListDevices(ctx, in)
				return err
			})
			if err != nil {
				return fmt.Errorf("list devices: %w", err)
			}
			return a.printDevices(reply)
		},
	}
	c.Flags().StringVar(&in.After, "after", "", "go on after this device")
	c.Flags().Uint32Var(&in.Limit, "limit", 100, "list at most so many, up to 1000")
	a.addIdentity(c)
	return c
}

func (a *app) printDevices(reply *bullav1.ListDevicesReply) error {
	answer := struct {
		Devices []deviceJSON `json:"devices"`
		Next    *string      `json:"next"`
	}{[]deviceJSON{}, orNull(reply.GetNext())}
	var rows [][]string
	for _, d := range reply.GetDevices() {
		answer.Devices = append(answer.Devices, newDeviceJSON(d))
		rows = append(rows, []string{d.GetId(), deviceState(d), d.GetEnrolledAt().AsTime().UTC().Format("2006-01-02")})
	}
	return a.print(answer, func(w io.Writer) error {
		// The id says the kind; it is 56 characters long and is needed whole by show and revoke.
		if err := show.Table(w, []show.Column{{Title: "DEVICE"}, {Title: "STATE", Max: 8}, {Title: "ENROLLED"}}, rows); err != nil {
			return err
		}
		return more(w, reply.GetNext(), "--after")
	})
}

func newDeviceShowCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "show ID [flags]", Short: "Show a device", Long: "Shows what the broker keeps of a device. An unknown id is an error (exit code 1).",
		Example: "  bulla device show tpm-… -o json",
		Args:    argument("ID"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			return a.withDevice(c, args[0], func(ctx context.Context, s bullav1.DevicesClient) (*bullav1.Device, error) {
				return s.GetDevice(ctx, &bullav1.GetDeviceRequest{Id: args[0]})
			})
		},
	}
	a.addIdentity(c)
	return c
}

func newDeviceRevokeCommand(a *app) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "revoke ID --reason TEXT", Short: "Revoke a device for good",
		Long:    "Revokes a device, and every session that relied on it. It can't be enrolled again.",
		Example: "  bulla device revoke tpm-… --reason \"machine was sold\"",
		Args:    argument("ID"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			if err := checkReason(reason); err != nil {
				return err
			}
			return a.withDevice(c, args[0], func(ctx context.Context, s bullav1.DevicesClient) (*bullav1.Device, error) {
				return s.RevokeDevice(ctx, &bullav1.RevokeDeviceRequest{Id: args[0], Reason: reason})
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record (required)")
	a.addIdentity(c)
	return c
}

// withDevice asks the broker about one device and prints the answer.
func (a *app) withDevice(c *cobra.Command, id string, ask func(context.Context, bullav1.DevicesClient) (*bullav1.Device, error)) error {
	if _, err := attest.ParseDeviceID(id); err != nil {
		return fmt.Errorf("%w: there is no device %q: `bulla device list` shows which there are", client.ErrNotFound, id)
	}
	var d *bullav1.Device
	err := a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		d, err = ask(ctx, bullav1.NewDevicesClient(conn))
		return err
	})
	if err != nil {
		return fmt.Errorf("%s device %s: %w", c.Name(), id, err)
	}
	return a.printDevice(d)
}
