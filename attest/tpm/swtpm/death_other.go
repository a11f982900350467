//go:build !linux

package swtpm

import "syscall"

// deathWithParent can't be had here: a TPM that is left over is found by its pid file.
func deathWithParent() *syscall.SysProcAttr { return nil }
