// Package harden makes a process that holds secrets harder to look into from outside.
//
// On Linux, [Process] makes the process not dumpable: other processes of the same user can't attach to it
// with ptrace or read /proc/PID/mem, environ and the like, and the kernel writes no core dump of it. It also
// lowers the soft limit of core files to 0, which child processes inherit (and may raise again). On other Unix
// systems only the latter is done, elsewhere nothing.
//
// What it does not do: it does not stop root or a process with CAP_SYS_PTRACE, nor the kernel, a hypervisor
// or a debugger that was there first. It does not lock memory: the heap of a Go program grows and moves, so
// that a locked one would fail at the limit; use encrypted swap or none. It does not reach a child process:
// the kernel makes a program dumpable again when it is started, and what is in its environment can be read by
// its user for as long as it runs.
package harden

// Process hardens the calling process. What can't be done here is in the error, and the rest is done.
func Process() error { return process() }
