//go:build unix

package harden

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// noCore lowers the soft limit alone, so that a child process that wants core files can have them.
func noCore() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("read the limit of core files: %w", err)
	}
	limit.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	return nil
}
