package swtpm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	stateDir = "state"
	caDir    = "ca"
	madeFile = "made" // written last: without it the setup was cut short
)

// setup makes the TPM's state with an endorsement key and its certificate, once.
func (t *TPM) setup(ctx context.Context) error {
	made := filepath.Join(t.dir, madeFile)
	if _, err := os.Stat(made); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if strings.ContainsAny(t.dir, ",\n") {
		return errors.New("swtpm can't work in a directory with a comma or newline in its name")
	}
	localCA, err := findLocalCA()
	if err != nil {
		return err
	}
	for _, sub := range []string{stateDir, caDir} {
		path := filepath.Join(t.dir, sub)
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if err := os.MkdirAll(path, 0o700); err != nil {
			return err
		}
	}
	config, err := t.writeConfig(localCA)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, setupWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, "swtpm_setup", "--tpm2", "--tpm-state", filepath.Join(t.dir, stateDir), "--config", config,
		"--create-ek-cert", "--create-platform-cert", "--lock-nvram", "--pcr-banks", "sha256", "--overwrite")
	if out, err := cmd.CombinedOutput(); err != nil {
		const keep = 2000
		return fmt.Errorf("swtpm_setup: %w: %s", err, out[max(0, len(out)-keep):])
	}
	return os.WriteFile(made, nil, 0o600)
}

// writeConfig writes what swtpm_setup and its local authority read, so that nothing of the system's or the
// user's own configuration is used or changed.
func (t *TPM) writeConfig(localCA string) (string, error) {
	ca := filepath.Join(t.dir, caDir)
	authority, options, setup := filepath.Join(ca, "localca.conf"), filepath.Join(ca, "localca.options"), filepath.Join(ca, "setup.conf")
	files := map[string]string{
		authority: "statedir = " + ca + "\nsigningkey = " + filepath.Join(ca, "signkey.pem") +
			"\nissuercert = " + filepath.Join(ca, "issuercert.pem") + "\ncertserial = " + filepath.Join(ca, "certserial") + "\n",
		options: "--platform-manufacturer Bulla\n--platform-version 1.0\n--platform-model Development\n",
		setup: "create_certs_tool = " + localCA + "\ncreate_certs_tool_config = " + authority +
			"\ncreate_certs_tool_options = " + options + "\nactive_pcr_banks = sha256\n",
	}
	for path, text := range files {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	return setup, nil
}

func findLocalCA() (string, error) {
	for _, name := range []string{"swtpm_localca", "/usr/share/swtpm/swtpm-localca", "/usr/lib/swtpm/swtpm-localca"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: swtpm_localca is missing; install the package swtpm-tools", ErrNotInstalled)
}
