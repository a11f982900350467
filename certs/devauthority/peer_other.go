//go:build !linux

package devauthority

import (
	"log/slog"
	"net"
)

// ownOnly relies on the mode of the socket (0600) where the peer's credentials can't be asked for alike.
type ownOnly struct {
	*net.UnixListener
	log *slog.Logger
}
