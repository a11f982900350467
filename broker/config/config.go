// Package config reads the configuration of a broker: one YAML file, strict. Unknown keys are refused with
// their line, all faults are reported at once, and secrets stand in files that the configuration names, never
// in the configuration itself. Relative paths are relative to the file.
//
// The package opens nothing but that file; package server makes a broker of what it says.
package config

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/broker/proxy"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/internal/strictyaml"
	"github.com/bulla-project/bulla/policy/remote"
)

// maxBundleKeys is how many keys may sign bundles: each is tried.
const maxBundleKeys = 16

// ErrInvalid is wrapped by every refusal of Load.
var ErrInvalid = errors.New("configuration refused")

// Config is a broker's configuration.
type Config struct {
	// Listen is host:port of the gRPC listener.
	Listen string `yaml:"listen"`
	// HTTPListen is host:port of /live, /ready and /metrics; empty: none. It answers everybody, so it belongs
	// on loopback or an inner network.
	HTTPListen string `yaml:"http_listen"`
	// DataDir holds everything that the broker writes.
	DataDir string  `yaml:"data_dir"`
	SPIFFE  SPIFFE  `yaml:"spiffe"`
	Policy  Policy  `yaml:"policy"`
	Keyring Keyring `yaml:"keyring"`
	Log     Log     `yaml:"log"`
	Site    Site    `yaml:"site"`
	// PrincipalTypes maps path prefixes of SPIFFE IDs to SERVICE, USER, CONTAINER, FUNCTION or PIPELINE.
	PrincipalTypes map[string]string `yaml:"principal_types"`
	Factors        Factors           `yaml:"factors"`
	Signals        Signals           `yaml:"signals"`
	// Proxies are the CIDR ranges of load balancers in front of Listen: each has to begin its connections with a
	// PROXY header of version 2, which is believed. Of everybody else the connection's address counts.
	Proxies []string `yaml:"proxies"`
	// Place says by what the places of addresses are known.
	Place Place `yaml:"place"`
	// Export says where the events are written as OCSF lines.
	Export Export `yaml:"export"`
	// Retention says when the record of what is over is erased.
	Retention Retention `yaml:"retention"`
}

// SPIFFE says where the broker's identity comes from: a Workload API, or PEM files.
type SPIFFE struct {
	EndpointSocket string `yaml:"endpoint_socket"`
	CertFile       string `yaml:"cert_file"`
	KeyFile        string `yaml:"key_file"`
	BundleFile     string `yaml:"bundle_file"`
	// TrustDomains are the federated ones whose members are admitted, besides the broker's own.
	TrustDomains []string `yaml:"trust_domains"`
}

// Policy says where the first revision comes from.
type Policy struct {
	Dir string `yaml:"dir"`
	// HoldSharePercent and HoldMinimum say when the sessions that a new revision would end wait for somebody's word:
	// where they are more than so many per cent of those that live, and at least so many. 0: 20 %, 10.
	HoldSharePercent int `yaml:"hold_share_percent"`
	HoldMinimum      int `yaml:"hold_minimum"`
	// BundleKeys are PEM files with the public keys under which bundles are signed. `server init` writes them into the
	// ledger, and from then on only signed bundles are activated. Later changes here have no effect: see
	// `bulla server bundle-key`; but a broker with keys here, and none in its ledger, does not start.
	BundleKeys []string `yaml:"bundle_keys"`
	// BundleServer is an OPA bundle server, whose bundles are staged as they change; it needs bundle keys.
	BundleServer BundleServer `yaml:"bundle_server"`
}

// BundleServer says where bundles are fetched from. An empty URL: nowhere.
type BundleServer struct {
	URL             string        `yaml:"url"`     // https, of a .tar.gz
	CAFile          string        `yaml:"ca_file"` // PEM; empty: the system's
	BearerTokenFile string        `yaml:"bearer_token_file"`
	Poll            time.Duration `yaml:"poll"` // 0: a minute; at least a second
}

// Place names a database of countries or cities in the MaxMind DB format; empty: no place is known.
type Place struct {
	MMDB string `yaml:"mmdb"`
}

// Retention erases what is over for more than Days, once an export that holds it lies verified in ExportDir. 0: never.
type Retention struct {
	Days      int    `yaml:"days"`
	ExportDir string `yaml:"export_dir"`
}

func (r Retention) validate(fault func(key, format string, args ...any)) {
	if r.Days < 0 || r.Days > maxRetentionDays || (r.Days > 0) != (r.ExportDir != "") {
		fault("retention", "days (1 to %d) and export_dir are needed together: nothing is erased that was not exported", maxRetentionDays)
	}
}

// maxRetentionDays is a hundred years.
const maxRetentionDays = 36_525

// Keyring says what wraps the keys at rest: exactly one of the two.
type Keyring struct {
	KEKFile string  `yaml:"kek_file"`
	AWSKMS  *AWSKMS `yaml:"aws_kms"`
}

// AWSKMS names a key in AWS KMS; credentials come from the environment as the AWS SDK finds them.
type AWSKMS struct {
	KeyID    string `yaml:"key_id"`
	Region   string `yaml:"region"`
	Endpoint string `yaml:"endpoint"` // only for private endpoints
}

// Log says what the Merkle log is called.
type Log struct {
	// Origin names the log for ever; by convention a URL without its scheme.
	Origin string `yaml:"origin"`
	// CheckpointCopy is a path outside of data_dir, on storage that is not restored together with it: the
	// broker refuses to go on when the log is behind it.
	CheckpointCopy string `yaml:"checkpoint_copy"`
	// What of the log others see: see docs/audit.md.
	Witnesses Witnesses     `yaml:"witnesses"`
	Publish   []Publication `yaml:"publish"`
	Tiles     Tiles         `yaml:"tiles"`
}

// Site holds what no policy bundle can change; it goes into the first event of the ledger.
type Site struct {
	Security []string `yaml:"security"` // SPIFFE IDs of which one must always be able to activate a revision
	Auditors []string `yaml:"auditors"` // SPIFFE IDs that may never read a secret
}

// Load reads and checks the file at path.
func Load(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, strictyaml.MaxSize+1))
	if err != nil {
		return Config{}, fmt.Errorf("%w: read %s: %w", ErrInvalid, path, err)
	}
	var c Config
	if err := strictyaml.Decode(path, data, &c); err != nil {
		return Config{}, fmt.Errorf("%w:\n%w", ErrInvalid, err)
	}
	if err := c.Validate(); err != nil {
		return Config{}, fmt.Errorf("%w: %s:\n%w", ErrInvalid, path, err)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return Config{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	files := append(c.factorFiles(), append(c.outwardFiles(), c.exportFiles()...)...)
	files = append(files, &c.Policy.BundleServer.CAFile, &c.Policy.BundleServer.BearerTokenFile)
	for i := range c.Policy.BundleKeys {
		files = append(files, &c.Policy.BundleKeys[i])
	}
	for _, p := range append(files,
		&c.DataDir, &c.SPIFFE.CertFile, &c.SPIFFE.KeyFile, &c.SPIFFE.BundleFile, &c.Policy.Dir, &c.Keyring.KEKFile, &c.Log.CheckpointCopy, &c.Place.MMDB, &c.Retention.ExportDir,
	) {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	return c, nil
}

// Validate joins all faults. It looks at no files.
func (c Config) Validate() error {
	var errs []error
	fault := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	if err := address(c.Listen); err != nil {
		fault("listen", "%v", err)
	}
	if c.HTTPListen != "" {
		if err := address(c.HTTPListen); err != nil {
			fault("http_listen", "%v", err)
		}
	}
	if c.DataDir == "" {
		fault("data_dir", "it is missing: name the directory that the broker may write to")
	}
	if err := proofs.CheckOrigin(c.Log.Origin); err != nil {
		fault("log.origin", "%v", err)
	} else if _, n := proofs.SplitIncarnation(c.Log.Origin); n > 1 {
		fault("log.origin", "%s is a name that a log gets by a restore: leave the end out, the name here never changes", c.Log.Origin)
	}
	if _, err := proxy.ParseProxies(c.Proxies); err != nil {
		fault("proxies", "%v", err)
	}
	if c.Policy.HoldSharePercent < 0 || c.Policy.HoldSharePercent > 100 || c.Policy.HoldMinimum < 0 {
		fault("policy", "hold_share_percent is 0 to 100, and hold_minimum is not negative")
	}
	if len(c.Policy.BundleKeys) > maxBundleKeys || slices.Contains(c.Policy.BundleKeys, "") {
		fault("policy.bundle_keys", "want at most %d names of files", maxBundleKeys)
	}
	if b := c.Policy.BundleServer; b != (BundleServer{}) {
		if err := remote.CheckURL(b.URL); err != nil {
			fault("policy.bundle_server.url", "%v", err)
		}
		if b.Poll != 0 && b.Poll < time.Second {
			fault("policy.bundle_server.poll", "%s is less than a second", b.Poll)
		}
	}
	c.SPIFFE.validate(fault)
	c.Keyring.validate(fault)
	c.Factors.validate(fault)
	c.Signals.validate(fault)
	c.Log.Witnesses.validate(fault)
	validatePublish(c.Log.Publish, fault)
	c.Log.Tiles.validate(fault)
	c.Export.validate(fault)
	c.Retention.validate(fault)
	for _, id := range append(append([]string{}, c.Site.Security...), c.Site.Auditors...) {
		if _, err := certs.ParseID(id); err != nil {
			fault("site", "%v", err)
		}
	}
	for _, prefix := range sortedKeys(c.PrincipalTypes) {
		switch kind := c.PrincipalTypes[prefix]; kind {
		case "SERVICE", "USER", "CONTAINER", "FUNCTION", "PIPELINE":
		default:
			fault("principal_types", "%q is none of SERVICE, USER, CONTAINER, FUNCTION, PIPELINE", kind)
		}
		if !strings.HasPrefix(prefix, "/") {
			fault("principal_types", "%q is no path: it starts with /", prefix)
		}
	}
	return errors.Join(errs...)
}

func (s SPIFFE) validate(fault func(key, format string, args ...any)) {
	files := 0
	for _, f := range []string{s.CertFile, s.KeyFile, s.BundleFile} {
		if f != "" {
			files++
		}
	}
	switch {
	case s.EndpointSocket == "" && files == 0:
		fault("spiffe", "name endpoint_socket (a Workload API), or cert_file, key_file and bundle_file")
	case s.EndpointSocket != "" && files > 0:
		fault("spiffe", "endpoint_socket and PEM files exclude each other")
	case s.EndpointSocket == "" && files < 3:
		fault("spiffe", "cert_file, key_file and bundle_file are needed together")
	}
	for _, td := range s.TrustDomains {
		if _, err := certs.ParseTrustDomain(td); err != nil {
			fault("spiffe.trust_domains", "%v", err)
		}
	}
}

func (k Keyring) validate(fault func(key, format string, args ...any)) {
	switch {
	case k.KEKFile == "" && k.AWSKMS == nil:
		fault("keyring", "name kek_file, or aws_kms")
	case k.KEKFile != "" && k.AWSKMS != nil:
		fault("keyring", "kek_file and aws_kms exclude each other")
	case k.AWSKMS != nil && k.AWSKMS.KeyID == "":
		fault("keyring.aws_kms.key_id", "it is missing")
	}
}

func address(s string) error {
	if s == "" {
		return errors.New("it is missing: use host:port")
	}
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not host:port", s)
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return fmt.Errorf("%q has no valid port", s)
	}
	return nil
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
