package devserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/dev"
	"github.com/bulla-project/bulla/attest/tpm/device"
	"github.com/bulla-project/bulla/attest/tpm/evidence"
	"github.com/bulla-project/bulla/attest/tpm/swtpm"
	"github.com/bulla-project/bulla/client"
)

// deviceOwner is the one identity that has a device.
const deviceOwner = "workload"

// TPMMode says whether `workload` gets a software TPM or a development device.
type TPMMode string

// The modes.
const (
	TPMAuto TPMMode = "auto" // a TPM if swtpm is installed
	TPMOn   TPMMode = "on"   // a TPM, or no start
	TPMOff  TPMMode = "off"  // a development device
)

// ParseTPMMode reads auto, on or off.
func ParseTPMMode(s string) (TPMMode, error) {
	switch m := TPMMode(s); m {
	case TPMAuto, TPMOn, TPMOff:
		return m, nil
	}
	return "", fmt.Errorf("%w: tpm %q is none of auto, on, off", ErrConfig, s)
}

// Device is what `workload` attests with: a TPM or a file.
type Device struct {
	Kind attest.Kind
	ID   attest.DeviceID
	TPM  string // address of the TPM, unix:PATH; "" for a development device
	File string // path of the development device; "" for a TPM
	// Missing says why there is no TPM although one was wanted if possible; nil otherwise. Its text names the
	// packages to install.
	Missing error
}

func (d Device) variable() Variable {
	if d.TPM != "" {
		return Variable{client.EnvTPM, d.TPM}
	}
	return Variable{client.EnvDeviceFile, d.File}
}

// startDevice starts the software TPM, or makes the development device.
func (s *Server) startDevice(ctx context.Context) error {
	missing := swtpm.Available()
	switch {
	case s.cfg.TPM == TPMOff:
		return s.softwareDevice(nil)
	case missing != nil && s.cfg.TPM == TPMOn:
		return missing
	case missing != nil:
		s.cfg.Log.Warn("no software TPM: workload gets a development device", "reason", missing)
		return s.softwareDevice(missing)
	}
	tpm, err := swtpm.Start(ctx, s.paths.tpm())
	if err != nil {
		return err
	}
	s.tpm = tpm
	s.tasks.Go(func() {
		select {
		case <-tpm.Done():
			s.fail(fmt.Errorf("the software TPM (process %d) ended; its log is %s/swtpm.log", tpm.PID(), s.paths.tpm()))
		case <-s.ended:
		}
	})
	opened, err := device.Open(ctx, tpm.Address())
	if err != nil {
		return err
	}
	id, err := opened.DeviceID(ctx)
	if err != nil {
		return err
	}
	s.device = Device{Kind: attest.KindTPM2, ID: id, TPM: tpm.Address()}
	return nil
}

// softwareDevice loads the development device, or makes it and has the authority vouch for it.
func (s *Server) softwareDevice(missing error) error {
	path := s.paths.device()
	d, err := dev.Load(path)
	if errors.Is(err, fs.ErrNotExist) {
		d, err = dev.Create(path, func(public []byte) ([]byte, error) { return dev.Vouch(s.authority.DeviceKey(), public) })
	}
	if err != nil {
		return err
	}
	id, err := d.ID()
	if err != nil {
		return err
	}
	s.device = Device{Kind: attest.KindDevelopment, ID: id, File: path, Missing: missing}
	return nil
}

// enrol enrols the device for its owner through the broker, as operator, unless that was done before.
func (s *Server) enrol(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	as := s.Client("operator")
	as.ConnectTimeout = startWait
	c, err := client.New(ctx, as)
	if err != nil {
		return fmt.Errorf("enrol the device of %s: %w", deviceOwner, err)
	}
	err = s.enrolWith(ctx, bullav1.NewDevicesClient(c.Conn()))
	if errors.Is(err, client.ErrDenied) && s.kept().Device == s.device.ID.String() {
		// An edited policy may well take that right away; the device was enrolled by an earlier start.
		s.cfg.Log.Warn("the active policy does not let operator look after the device of workload: it is left as it is", "error", err)
		err = nil
	}
	if err != nil {
		return errors.Join(fmt.Errorf("enrol the device of %s: %w", deviceOwner, err), c.Close())
	}
	return errors.Join(s.keep(func(st *state) { st.Device = s.device.ID.String() }), c.Close())
}

func (s *Server) enrolWith(ctx context.Context, devices bullav1.DevicesClient) error {
	found, err := devices.GetDevice(ctx, &bullav1.GetDeviceRequest{Id: s.device.ID.String()}, grpc.WaitForReady(true))
	if err == nil {
		if found.GetRevokedAt() != nil {
			s.cfg.Log.Warn("the device of workload was revoked, and stays so: it can't attest", "device", found.GetId(), "reason", found.GetReason())
		}
		return nil
	}
	if err = client.FromStatus(err); !errors.Is(err, client.ErrNotFound) {
		return err
	}
	request, answer, err := s.enrolment(ctx)
	if err != nil {
		return err
	}
	begun, err := devices.BeginEnrolment(ctx, &bullav1.BeginEnrolmentRequest{
		Kind: string(s.device.Kind), Request: request, Principals: []string{ID(deviceOwner)},
	})
	if err != nil {
		return client.FromStatus(err)
	}
	answered, err := answer(begun.GetChallenge())
	if err != nil {
		return err
	}
	_, err = devices.FinishEnrolment(ctx, &bullav1.FinishEnrolmentRequest{Enrolment: begun.GetEnrolment(), Answer: answered})
	return client.FromStatus(err)
}

// enrolment is what the device says of itself, and the function that answers the broker's challenge.
func (s *Server) enrolment(ctx context.Context) (request []byte, answer func(challenge []byte) ([]byte, error), err error) {
	if s.tpm == nil {
		d, err := dev.Load(s.device.File)
		if err != nil {
			return nil, nil, err
		}
		return d.EnrolRequest(), func([]byte) ([]byte, error) { return nil, nil }, nil
	}
	tpm, err := device.Open(ctx, s.tpm.Address())
	if err != nil {
		return nil, nil, err
	}
	chain, err := s.tpm.ChainPEM()
	if err != nil {
		return nil, nil, err
	}
	made, err := tpm.EnrolRequest(ctx, chain)
	if err != nil {
		return nil, nil, err
	}
	return made.Marshal(), func(challenge []byte) ([]byte, error) {
		parsed, err := evidence.ParseChallenge(challenge)
		if err != nil {
			return nil, err
		}
		return tpm.Activate(ctx, parsed)
	}, nil
}
