// Package e2e starts the real bulla binary as separate processes and holds it to what scripts rely on: command
// lines, environment, exit codes, files, and the exact shape of its JSON. Nothing of the product runs inside the
// test but the SDK, where a test needs a workload that lives longer than one command, and go-spiffe.
//
// Most tests share one development server, with a software TPM where swtpm is installed, and keep to secrets of
// their own. Tests that stop, kill, starve or reconfigure a server start one for themselves.
//
// The package holds tests only. What a broker does with forged requests is in test/abuse; what a command does
// without a broker, in the most detail, in cmd/bulla.
package e2e
