package devserver

import (
	"strings"

	"github.com/bulla-project/bulla/client"
)

// Variable is one variable of an environment.
type Variable struct{ Name, Value string }

// Environment is the environment of an identity, as env/NAME.sh exports it.
func (s *Server) Environment(name string) []Variable {
	vars := []Variable{
		{client.EnvSocket, "unix://" + s.sockets.path(name)},
		{client.EnvAddress, s.Addr()},
		{client.EnvServerID, ServerID},
	}
	if name == deviceOwner {
		vars = append(vars, s.device.variable())
	}
	return vars
}

// Client is the client configuration of an identity: what client.FromEnvironment makes of its environment.
func (s *Server) Client(name string) client.Config {
	cfg := client.Config{
		Address: s.Addr(), ServerID: ServerID, EndpointSocket: "unix://" + s.sockets.path(name), Log: s.cfg.Log, Now: s.cfg.Now,
	}
	if name == deviceOwner {
		cfg.TPM, cfg.DeviceFile = s.device.TPM, s.device.File
	}
	return cfg
}

// script is an environment in POSIX shell. No value has a quote or a newline in it: complete refuses such paths.
func script(vars []Variable) []byte {
	var b strings.Builder
	for _, v := range vars {
		b.WriteString("export " + v.Name + "='" + v.Value + "'\n")
	}
	return []byte(b.String())
}
