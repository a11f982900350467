package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/dev"
	"github.com/bulla-project/bulla/attest/tpm/device"
	"github.com/bulla-project/bulla/attest/tsm"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
)

// clockLimit is how far two clocks may be apart: deliveries fail beyond it.
const clockLimit = 30 * time.Second

func newDoctorCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "doctor [flags]", Short: "Find out what is not well, and what to do about it",
		Long: "Looks at everything between this process and a delivery, in order: settings, identity, device,\n" +
			"broker, clocks; then, if the policy lets this identity ask, at what the broker says of itself. What\n" +
			"can't be looked at because something before it failed is left out.\n\n" +
			"The exit code is that of the first check that failed: 2 settings, 4 unavailable, 1 anything else.",
		Example: "  bulla doctor\n  bulla doctor -o json | jq '.checks[] | select(.ok | not)'",
		Args:    argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error { return a.doctor(c.Context()) },
	}
	a.addIdentity(c)
	a.addDevice(c)
	return c
}

// finding is one check and how it went.
type finding struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Hint   string `json:"hint"`
}

// examination collects findings; code is that of the first that is not well.
type examination struct {
	findings []finding
	code     int
}

// note records a check, and reports whether it is well.
func (x *examination) note(name string, err error, detail, hint string) bool {
	if err == nil {
		x.findings = append(x.findings, finding{Name: name, OK: true, Detail: detail})
		return true
	}
	o := judge(err)
	if hint == "" {
		hint = strings.TrimSpace(strings.TrimSuffix(o.hint, seeDoctor))
	}
	if x.code == exitDone {
		x.code = o.code
	}
	x.findings = append(x.findings, finding{Name: name, Detail: sentence(err), Hint: hint})
	return false
}

func (a *app) doctor(parent context.Context) error {
	ctx, cancel := context.WithTimeoutCause(parent, a.timeout, errTimeout)
	defer cancel()
	x := new(examination)
	a.examine(ctx, x)
	if err := parent.Err(); err != nil {
		return err
	}
	err := a.print(struct {
		OK     bool      `json:"ok"`
		Checks []finding `json:"checks"`
	}{x.code == exitDone, x.findings}, func(w io.Writer) error { return findingText(w, x.findings) })
	if err == nil && x.code != exitDone {
		return &reported{x.code}
	}
	return err
}

func findingText(w io.Writer, findings []finding) error {
	width := 0
	for _, f := range findings {
		width = max(width, utf8.RuneCountInString(show.Text(f.Name)))
	}
	for _, f := range findings {
		verdict := "ok    "
		if !f.OK {
			verdict = "FAILED"
		}
		if _, err := fmt.Fprintf(w, "%s  %-*s  %s\n", verdict, width, show.Text(f.Name), show.Lines(f.Detail)); err != nil {
			return err
		}
		if f.Hint != "" && !f.OK {
			if _, err := fmt.Fprintf(w, "%*s%s\n", len(verdict)+width+4, "", show.Lines(f.Hint)); err != nil {
				return err
			}
		}
	}
	return nil
}

// examine goes from the inside out, and stops where nothing further can be said.
func (a *app) examine(ctx context.Context, x *examination) {
	cfg, err := a.identity.config()
	if !x.note("settings", err, "broker "+cfg.Address, "run `bulla dev` and source one of its env files, or see `bulla get --help` for the flags") {
		return
	}
	identified := a.examineIdentity(ctx, x, cfg)
	examineDevice(ctx, x, cfg)
	if !identified {
		return
	}
	broker, err := a.connect(ctx, false)
	if !x.note("broker", err, "reached at "+cfg.Address, "") {
		return
	}
	defer broker.Close()
	examineClock(ctx, x, broker.Conn())
	examineBroker(ctx, x, broker.Conn())
}

// examineIdentity gets an SVID and looks at its validity.
func (a *app) examineIdentity(ctx context.Context, x *examination, cfg client.Config) bool {
	from := cfg.EndpointSocket
	if cfg.CertFile != "" {
		from = cfg.CertFile
	}
	source, err := certs.Open(ctx, certs.Config{
		EndpointSocket: cfg.EndpointSocket, CertFile: cfg.CertFile, KeyFile: cfg.KeyFile, BundleFile: cfg.BundleFile,
		TrustDomains: cfg.TrustDomains, ConnectTimeout: min(connectTimeout, a.timeout),
	})
	if !x.note("identity", err, "from "+from, "") {
		return false
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		return x.note("svid", err, "", "compare this machine's clock with that of the SPIRE server")
	}
	left := time.Until(svid.Certificates[0].NotAfter).Truncate(time.Second)
	return x.note("svid", nil, fmt.Sprintf("%s, valid for %s", svid.ID, left), "")
}

// examineDevice opens the device that attestation would use.
func examineDevice(ctx context.Context, x *examination, cfg client.Config) {
	switch {
	case cfg.TPM != "":
		id, err := tpmID(ctx, cfg.TPM)
		x.note("tpm", err, fmt.Sprintf("%s at %s", id, cfg.TPM), "")
	case cfg.TSM != "":
		d, err := tsm.Open(tsm.Config{Dir: cfg.TSM})
		kind := attest.Kind("")
		if err == nil {
			kind = d.Kind()
		}
		x.note("machine", err, fmt.Sprintf("%s, reports in %s", kind, cfg.TSM), "")
	case cfg.DeviceFile != "":
		d, err := dev.Load(cfg.DeviceFile)
		var id attest.DeviceID
		if err == nil {
			id, err = d.ID()
		}
		x.note("device", err, fmt.Sprintf("%s in %s", id, cfg.DeviceFile), "name the file of a development device, as `bulla dev` writes it")
	default:
		x.note("device", nil, "none: secrets that need an attestation can't be had", "")
	}
}

func tpmID(ctx context.Context, address string) (attest.DeviceID, error) {
	if err := checkTPM(address); err != nil {
		return attest.DeviceID{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	t, err := device.Open(ctx, address)
	if err != nil {
		return attest.DeviceID{}, err
	}
	return t.DeviceID(ctx)
}

// examineClock compares this machine's clock with the broker's.
func examineClock(ctx context.Context, x *examination, conn *grpc.ClientConn) {
	before := time.Now()
	reply, err := bullav1.NewBrokerClient(conn).Challenge(ctx, &bullav1.ChallengeRequest{})
	if err != nil {
		x.note("clock", client.FromStatus(err), "", "")
		return
	}
	middle := before.Add(time.Since(before) / 2)
	apart := reply.GetNow().AsTime().Sub(middle)
	if apart.Abs() > clockLimit {
		err = fmt.Errorf("the broker's clock is %s apart from this one", apart.Round(time.Second))
	}
	x.note("clock", err, fmt.Sprintf("%s apart from the broker's", apart.Round(time.Millisecond)), "set both clocks, best by NTP")
}

// examineBroker asks the broker how it is. To be refused is no fault: not everybody may know.
func examineBroker(ctx context.Context, x *examination, conn *grpc.ClientConn) {
	reply, err := bullav1.NewAuditClient(conn).Doctor(ctx, &bullav1.DoctorRequest{})
	err = client.FromStatus(err)
	if errors.Is(err, client.ErrDenied) {
		x.note("broker's health", nil, "not shown to this identity", "")
		return
	}
	if err != nil {
		x.note("broker's health", err, "", "")
		return
	}
	for _, check := range reply.GetChecks() {
		var fault error
		if !check.GetOk() {
			fault = errors.New(check.GetDetail())
		}
		x.note("broker: "+check.GetName(), fault, check.GetDetail(), check.GetHint())
	}
}
