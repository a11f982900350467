package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
)

// maxRotations is how many rotations are spelled out as commands; the list above them has all.
const maxRotations = 20

// steps are the commands to run next: stop it, then make what is out worthless, then look further.
func (b *blast) steps(ctx context.Context, listed []*exposure) error {
	step := func(why, format string, args ...any) {
		b.out.Steps = append(b.out.Steps, &bullav1.Step{Command: fmt.Sprintf(format, args...), Why: why})
	}
	if err := b.stop(ctx, step); err != nil {
		return err
	}
	rotated := map[string]bool{}
	for _, e := range listed {
		if _, todo, _ := e.todo(); todo != todoRotate || rotated[e.secret] {
			continue
		}
		if rotated[e.secret] = true; len(rotated) > maxRotations {
			break
		}
		why := "make a new value at the source, put it, then end the old one at the source"
		if e.kind == "" || e.kind == "opaque" {
			step(why, "bulla secret put %s < NEW-VALUE", quoted(e.secret))
		} else {
			step("make a new key; what trusts the old one has to stop", "bulla secret generate %s", quoted(e.secret))
		}
	}
	for _, e := range listed {
		if _, todo, _ := e.todo(); todo == todoReview {
			step("what was done with keys that never left", "bulla audit tail -o json | jq 'select(.event.type == \"session.operated\")'")
			break
		}
	}
	switch {
	case b.what.device != "":
		for _, p := range b.out.GetPrincipals()[:min(len(b.out.GetPrincipals()), maxOthers)] {
			step("it ran there: what did it get elsewhere?", "bulla audit blast-radius --principal %s", quoted(p))
		}
	case b.what.principal != "":
		step("what it tried and did not get", "bulla audit query --principal %s --outcome deny", quoted(b.what.principal))
	case b.what.secret != "":
		step("who got it, one by one", "bulla audit query --secret %s", quoted(b.what.secret))
	default:
		step("what it permitted, one by one", "bulla audit query --revision %s", b.what.revision)
	}
	return nil
}

// stop names what ends the sessions, and keeps new ones from being delivered.
func (b *blast) stop(ctx context.Context, step func(why, format string, args ...any)) error {
	flag, value := "--secret", b.what.secret
	switch {
	case b.what.device != "":
		flag, value = "--device", b.what.device
		d, _, err := b.ledger.Device(ctx, value)
		if err != nil && !errors.Is(err, ledger.ErrNotFound) {
			return err
		}
		if err == nil && d.Revoked.IsZero() {
			step("ends the device for good, and the sessions that rely on it", "bulla device revoke %s --reason 'WHY'", quoted(value))
		}
	case b.what.principal != "":
		flag, value = "--principal", b.what.principal
		step("first take its registration from SPIRE and its grants from the policy: a revocation bars nobody", "bulla policy list")
	case !b.what.revision.IsZero():
		flag, value = "--revision", b.what.revision.String()
		active, _, err := b.ledger.ActiveRevision(ctx)
		if err != nil {
			return err
		}
		if active.Digest == b.what.revision {
			step("it still decides: activate a good one before you revoke, or it permits the same again", "bulla policy push DIR --note 'WHY'")
		}
	}
	if b.out.GetLive() > 0 {
		step(fmt.Sprintf("%s: see which", liveText(b.out.GetLive())), "bulla session revoke %s %s --dry-run", flag, quoted(value))
		step("end them", "bulla session revoke %s %s --reason 'WHY'", flag, quoted(value))
	}
	return nil
}

func liveText(n uint64) string {
	if n == 1 {
		return "one session lives"
	}
	return fmt.Sprintf("%d sessions live", n)
}

// quoted is a word as a shell takes it. Names are plain; what is not, is quoted.
func quoted(word string) string {
	if strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:@%+=,") == "" && word != "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
