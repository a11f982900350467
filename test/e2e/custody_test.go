package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// roundShape is a round as `bulla share` prints it.
func roundShape() fields {
	return fields{
		"id": word, "kind": word, "state": word, "requester": word, "secret": word, "version": whole, "approvals": whole, "needed": whole,
		"role": any_, "holders": any_, "share_file": boolean, "opened_at": word, "expires_at": word, "answered": any_,
	}
}

// any_ takes every value.
func any_(any) string { return "" }

// waitingFor returns the id of the round of a secret that waits for a custodian.
func (d *dev) waitingFor(t testing.TB, custodian, secret string) (id string) {
	t.Helper()
	until(t, "a round waits for "+custodian, func() bool {
		r := run(t, d.as(t, custodian), "share", "list", "-o", "json").want(t, done)
		var list struct {
			Rounds []struct{ ID, Secret, State, Answered string }
		}
		if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
			t.Fatal(err)
		}
		for _, found := range list.Rounds {
			if found.Secret == secret && found.State == "open" && found.Answered == "" {
				id = found.ID
				return true
			}
		}
		return false
	})
	return id
}

// TestCustodians goes through a split secret, an approval, a rejection and a cancelled wait with the real binary.
func TestCustodians(t *testing.T) {
	t.Parallel()
	d := shared(t)
	d.put(t, "demo/custody-split", "split", "the root key")
	d.put(t, "demo/custody-approved", "approved", "a value")
	workload := d.as(t, "workload")

	get := launch(t, workload, "get", "demo/custody-split", "--timeout", "50s")
	id := d.waitingFor(t, "custodian-1", "demo/custody-split")
	run(t, d.as(t, "custodian-1"), "share", "approve", id, "-o", "json").want(t, done).object(t, roundShape())
	run(t, d.as(t, "custodian-1"), "share", "approve", id).want(t, failed).says(t, "answered")
	run(t, d.as(t, "operator"), "share", "approve", id).want(t, denied)
	run(t, workload, "share", "list").want(t, denied)
	run(t, d.as(t, "custodian-3"), "share", "approve", id).want(t, done)
	get.exit(t, done)
	if got := get.stdout.String(); got != "the root key" {
		t.Errorf("%q", got)
	}
	if told := get.stderr.String(); !strings.Contains(told, "round "+id+" has 0 of 2 shares") {
		t.Errorf("stderr does not say what it waits for: %s", told)
	}

	get = launch(t, workload, "get", "demo/custody-approved", "--timeout", "50s")
	id = d.waitingFor(t, "custodian-2", "demo/custody-approved")
	run(t, d.as(t, "custodian-2"), "share", "approve", id).want(t, done)
	get.exit(t, done)
	if got := get.stdout.String(); got != "a value" {
		t.Errorf("%q", got)
	}

	get = launch(t, workload, "get", "demo/custody-approved", "--timeout", "50s")
	id = d.waitingFor(t, "custodian-2", "demo/custody-approved")
	run(t, d.as(t, "custodian-2"), "share", "reject", id).want(t, wrongUsage).says(t, "--reason")
	run(t, d.as(t, "custodian-2"), "share", "reject", id, "--reason", "not announced").want(t, done)
	get.exit(t, denied)
	if told := get.stderr.String(); !strings.Contains(told, "not announced") || !strings.Contains(told, "custodian-2") {
		t.Errorf("stderr does not say who rejected, and why: %s", told)
	}

	run(t, workload, "get", "demo/custody-split", "--timeout", "2s").want(t, unavailable).says(t, "0 of 2 approvals")
	run(t, d.as(t, "custodian-1"), "share", "approve", "no-id").want(t, wrongUsage)
}

// TestSplitAtTheSource: the broker gets ciphertext, three custodians get files, one of which is damaged.
func TestSplitAtTheSource(t *testing.T) {
	t.Parallel()
	d := shared(t)
	operator, workload, dir := d.as(t, "operator"), d.as(t, "workload"), filepath.Join(t.TempDir(), "shares")
	holder := func(n string) string { return "spiffe://dev.bulla.test/custodian-" + n }
	split := []string{"secret", "put", "demo/custody-source", "--class", "standard", "--split", "2", "--holder", holder("1"), "--holder", holder("2"), "--holder", holder("3"), "--share-dir", dir}
	for _, wrong := range [][]string{
		split[:len(split)-2], append([]string{"secret", "put", "demo/x", "--split", "3"}, split[7:]...)[:9],
		{"secret", "put", "demo/x", "--holder", holder("1")},
		{"secret", "put", "demo/x", "--split", "2", "--holder", "a", "--holder", "b", "--share-dir", dir},
	} {
		command{env: operator, stdin: []byte("v"), args: wrong}.bulla(t).want(t, wrongUsage)
	}
	command{env: operator, stdin: []byte("the source's key"), args: append(split, "-o", "json")}.bulla(t).want(t, done).object(t, fields{
		"name": is("demo/custody-source"), "version": whole, "class": is("standard"), "threshold": whole, "package": word, "shares": any_,
	})
	command{env: operator, stdin: []byte("again"), args: split}.bulla(t).want(t, wrongUsage).says(t, "is there already")
	share := func(n string) string { return filepath.Join(dir, "demo-custody-source."+n+".custodian-"+n+".share") }
	pkg := filepath.Join(dir, "demo-custody-source.split")
	for _, path := range []string{pkg, share("1"), share("2"), share("3")} {
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 || strings.Contains(read(t, path), "source's key") {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	good := read(t, share("2"))
	at := strings.LastIndex(good, `"share": "`) + len(`"share": "`) + 3
	write(t, share("2"), good[:at]+string('A'+(good[at]-'A'+1)%26)+good[at+1:], 0o600)

	get := launch(t, workload, "get", "demo/custody-source", "--timeout", "50s")
	id := d.waitingFor(t, "custodian-1", "demo/custody-source")
	run(t, d.as(t, "custodian-2"), "share", "approve", id, "--share", share("2")).want(t, verification).says(t, holder("2"))
	run(t, d.as(t, "custodian-2"), "share", "approve", id).want(t, failed).says(t, "name the file")
	run(t, d.as(t, "custodian-1"), "share", "approve", id, "--share", share("3")).want(t, failed).says(t, "is that of")
	run(t, d.as(t, "custodian-1"), "share", "approve", id, "--share", share("1")).want(t, done)
	run(t, d.as(t, "custodian-3"), "share", "approve", id, "--share", share("3")).want(t, done)
	get.exit(t, done)
	if got := get.stdout.String(); got != "the source's key" {
		t.Errorf("%q", got)
	}

	run(t, nil, "share", "combine", pkg, share("1"), share("2")).want(t, verification).says(t, holder("2"))
	run(t, nil, "share", "combine", pkg, share("1"), share("1")).want(t, verification).says(t, holder("1"))
	run(t, nil, "share", "combine", pkg, share("1")).want(t, wrongUsage)
	if r := run(t, nil, "share", "combine", pkg, share("1"), share("3")).want(t, done); r.stdout != "the source's key" {
		t.Errorf("%q", r.stdout)
	}
	out := filepath.Join(dir, "recovered")
	run(t, nil, "share", "combine", pkg, share("3"), share("1"), "--out", out, "-o", "json").want(t, done)
	if read(t, out) != "the source's key" {
		t.Error("--out holds something else")
	}
}

// TestRoundsOutliveAKill: a round is in the ledger, whatever becomes of the process.
func TestRoundsOutliveAKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	d := startDev(t, dir, "--tpm=off")
	d.put(t, "demo/kill", "split", "x")
	get := launch(t, d.as(t, "workload"), "get", "demo/kill", "--timeout", "1m")
	id := d.waitingFor(t, "custodian-1", "demo/kill")
	run(t, d.as(t, "custodian-1"), "share", "approve", id).want(t, done)
	d.kill()
	get.kill()
	d = startDev(t, dir, "--tpm=off")
	if again := d.waitingFor(t, "custodian-2", "demo/kill"); again != id {
		t.Errorf("round %s, want %s", again, id)
	}
	run(t, d.as(t, "custodian-2"), "share", "approve", id).want(t, done)
	run(t, d.as(t, "auditor"), "audit", "rebuild", "--check").want(t, done)
	d.stop(t)
}
