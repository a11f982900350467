package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/broker/server"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
)

// defaultConfig is where a broker's configuration lies unless --config says otherwise.
const defaultConfig = "/etc/bulla/server.yaml"

func newServerCommand(a *app) *cobra.Command {
	return group("server", "Set up and run a broker",
		"Sets up and runs a broker on a configuration file. See deploy/ for examples; `bulla dev` needs none.",
		"  bulla server init --config /etc/bulla/server.yaml\n  bulla server run --config /etc/bulla/server.yaml",
		newServerInitCommand(a), newServerRunCommand(a), newServerHealthcheckCommand(a), newServerActivateCommand(a), newServerBundleKeyCommand(a),
		newServerRestoreCommand(a))
}

func newServerInitCommand(a *app) *cobra.Command {
	var file, level string
	var ifNeeded bool
	c := &cobra.Command{
		Use: "init [--config FILE]", Short: "Make the keys and the first events of a ledger",
		Long: "Makes the data directory that the configuration names: keys, the ledger's first event, and the first\n" +
			"policy revision, from policy.dir. It is done once; an interrupted run is taken up by the next.",
		Example: "  bulla server init --config /etc/bulla/server.yaml",
		Args:    argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := loadConfig(file)
			if err != nil {
				return err
			}
			log, err := a.logger(level)
			if err != nil {
				return err
			}
			ctx, cancel := a.offline(c)
			defer cancel()
			err = server.Init(ctx, cfg, product(), log)
			if err != nil && !(ifNeeded && errors.Is(err, server.ErrInitialised)) {
				return wrongConfig(err)
			}
			key, err := os.ReadFile(filepath.Join(cfg.DataDir, "log.pub"))
			if err != nil {
				return err
			}
			text := strings.TrimSpace(string(key))
			return a.print(serverInit{cfg.DataDir, cfg.Log.Origin, text}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "initialised %s; auditors verify its log with the key\n%s\nNext: bulla server run --config '%s'\n",
					show.Text(cfg.DataDir), show.Text(text), show.Text(file))
				return err
			})
		},
	}
	addConfig(c, &file)
	a.addLogLevel(c, &level)
	c.Flags().BoolVar(&ifNeeded, "if-needed", false, "do nothing, with exit 0, where it was done before")
	return c
}

// serverInit is the answer of `bulla server init`.
type serverInit struct {
	DataDir string `json:"data_dir"`
	Origin  string `json:"log_origin"`
	LogKey  string `json:"log_key"`
}

func newServerRunCommand(a *app) *cobra.Command {
	var file, level string
	c := &cobra.Command{
		Use: "run [--config FILE]", Short: "Run a broker",
		Long: "Runs the broker in the foreground until SIGTERM or SIGINT; calls that are under way then have five\n" +
			"seconds to finish. The log goes to stderr. `bulla server init` comes first, once.",
		Example: "  bulla server run --config /etc/bulla/server.yaml",
		Args:    argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error { return a.runServer(c.Context(), file, level) },
	}
	addConfig(c, &file)
	a.addLogLevel(c, &level)
	return c
}

// runServer runs a broker in production: no development key, no development authority.
func (a *app) runServer(ctx context.Context, file, level string) error {
	cfg, err := loadConfig(file)
	if err != nil {
		return err
	}
	log, err := a.logger(level)
	if err != nil {
		return err
	}
	a.holdsSecrets()
	signal.Ignore(syscall.SIGPIPE) // whoever reads the log or an export may go: the broker serves on
	defer runtime.KeepAlive(ballast(whileServing))
	s, err := server.Open(ctx, cfg, server.Options{Log: log})
	if err != nil {
		if ctx.Err() != nil {
			return nil // told to end before it served
		}
		return wrongConfig(err)
	}
	attrs := []any{"addr", s.Addr().String(), "spiffe_id", s.ID(), "product", product()}
	if at := s.HTTPAddr(); at != nil {
		attrs = append(attrs, "http_addr", at.String())
	}
	if at := s.SignalsAddr(); at != nil {
		attrs = append(attrs, "signals_addr", at.String())
	}
	if at := s.TilesAddr(); at != nil {
		attrs = append(attrs, "tiles_addr", at.String())
	}
	log.Info("the broker serves", attrs...)
	if err := s.Serve(ctx); err != nil {
		return err
	}
	log.Info("the broker has ended")
	return nil
}

func newServerHealthcheckCommand(a *app) *cobra.Command {
	var file, addr string
	c := &cobra.Command{
		Use: "healthcheck [--config FILE | --addr HOST:PORT]", Short: "Ask a running broker whether it is ready",
		Long: "Asks /ready on the broker's http_listen, for the health checks of containers: exit 0 if it is ready,\n" +
			"4 if it is not or does not answer.",
		Example: "  bulla server healthcheck --config /etc/bulla/server.yaml\n  bulla server healthcheck --addr 127.0.0.1:8080",
		Args:    argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error { return a.healthcheck(c.Context(), file, addr) },
	}
	flags := c.Flags()
	flags.StringVar(&file, "config", defaultConfig, "configuration file of the broker")
	flags.StringVar(&addr, "addr", "", "host:port of its http_listen")
	c.MarkFlagsMutuallyExclusive("config", "addr")
	return c
}

func (a *app) healthcheck(ctx context.Context, file, addr string) error {
	if addr == "" {
		cfg, err := loadConfig(file)
		if err != nil {
			return err
		}
		if cfg.HTTPListen == "" {
			return usage("%s has no http_listen: the broker can't be asked without it", file)
		}
		if addr, err = dialable(cfg.HTTPListen); err != nil {
			return usage("http_listen: %v", err)
		}
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return usage("--addr is %q: it has to be host:port", addr)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, a.timeout, errTimeout)
	defer cancel()
	if err := server.Healthcheck(ctx, addr); err != nil {
		return fmt.Errorf("%w: %w", client.ErrUnavailable, err)
	}
	return a.print(struct {
		Status string `json:"status"`
	}{"ok"}, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, "ready")
		return err
	})
}

// dialable is where a listener's address is reached from the same host.
func dialable(listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err == nil && n == 0 {
		return "", errors.New("port 0 is a free port of each start: use --addr")
	}
	return net.JoinHostPort(host, port), nil
}

func addConfig(c *cobra.Command, file *string) {
	c.Flags().StringVar(file, "config", defaultConfig, "configuration file (YAML)")
}

// loadConfig reads a configuration; what is wrong with it is wrong usage.
func loadConfig(file string) (config.Config, error) {
	if file == "" {
		return config.Config{}, usage("--config is missing: name the broker's configuration file")
	}
	cfg, err := config.Load(file)
	if err != nil {
		return config.Config{}, usage("%v", err)
	}
	return cfg, nil
}

// wrongConfig makes wrong usage of what the configuration is to blame for.
func wrongConfig(err error) error {
	if errors.Is(err, config.ErrInvalid) {
		return usage("%v", err)
	}
	return err
}
