package harden

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

func process() error {
	var dump error
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		dump = fmt.Errorf("forbid other processes to look into this one (PR_SET_DUMPABLE): %w", err)
	}
	return errors.Join(dump, noCore())
}
