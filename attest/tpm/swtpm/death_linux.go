package swtpm

import "syscall"

// deathWithParent has the kernel end the child when the thread that started it ends. A process group of
// its own keeps the terminal's interrupt away: Close ends the TPM in order.
func deathWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
