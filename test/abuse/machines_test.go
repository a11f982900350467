package abuse

import (
	"context"
	"fmt"
	"strings"
	"testing"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	attestx "github.com/bulla-project/bulla/attest/xtest"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
	"github.com/bulla-project/bulla/test/rig"
)

// confidential starts a broker whose class high demands an affirmed machine of the kind of m.
func confidential(t *testing.T, m *attestx.Machine, part func(string) string) *rig.Rig {
	t.Helper()
	r := rig.Start(t, rig.Config{Policy: func(files map[string]string) {
		files["references.yaml"] = string(attestx.MachineYAML([]*attestx.Machine{m}, func(_ attest.Kind, text string) string {
			if part != nil {
				text = part(text)
			}
			return text
		}))
		standard, rest, _ := strings.Cut(files["data/classes.yaml"], "high:\n")
		rest = strings.Replace(rest, "levels: [BASIC, ENHANCED, HIGH_ASSURANCE]", "levels: [BASIC, HIGH_ASSURANCE]", 1)
		rest = strings.Replace(rest, "kinds: [tpm2, development]\n    tiers: [affirming, warning]", fmt.Sprintf("kinds: [%s]\n    tiers: [affirming]", m.Kind), 1)
		files["canaries.yaml"] = strings.NewReplacer("kind: development, device_id: dev-1, tier: warning, score: 40", "kind: "+string(m.Kind)+", device_id: dev-1, tier: affirming, score: 90",
			"level: BASIC, svid_not_before: 1736157000000000, svid_not_after: 1736160600000000}\n      resource: {kind: secret, secret: {name: demo/high", "level: HIGH_ASSURANCE, svid_not_before: 1736157000000000, svid_not_after: 1736160600000000}\n      resource: {kind: secret, secret: {name: demo/high").Replace(files["canaries.yaml"])
		files["data/classes.yaml"] = standard + "high:\n" + rest
	}})
	r.Put("demo/high", "high", "top")
	return r
}

// enrolMachine enrols an image, as an operator.
func enrolMachine(t *testing.T, r *rig.Rig, k attest.Kind, image attest.Image, principals ...string) (string, error) {
	t.Helper()
	devices := bullav1.NewDevicesClient(r.Client("operator").Conn())
	begun, err := devices.BeginEnrolment(t.Context(), &bullav1.BeginEnrolmentRequest{Kind: string(k), Request: image.EnrolRequest(), Principals: principals})
	if err != nil {
		return "", err
	}
	done, err := devices.FinishEnrolment(t.Context(), &bullav1.FinishEnrolmentRequest{Enrolment: begun.GetEnrolment()})
	return done.GetId(), err
}

// A workload on each kind of confidential machine gets a secret of a class that demands one; every forgery is
// refused with its reason, over the same connection, and nobody suffers from it.
func TestAbuse_A15_confidential_machines(t *testing.T) {
	for _, m := range attestx.Machines(t) {
		t.Run(string(m.Kind), func(t *testing.T) {
			r := confidential(t, m, nil)
			w := r.Raw("workload")
			stepUp(t, w)
			id, err := enrolMachine(t, r, m.Kind, m.Image, rig.ID("workload").String())
			if err != nil {
				t.Fatal(err)
			}
			w.Challenge(nil)
			reply, err := show(t, w, string(m.Kind), "", m.Evidence(t, binding(t, w))) // the evidence names the device
			if err != nil {
				t.Fatal(err)
			}
			result, err := attest.DecodeResult(reply.GetResult())
			if err != nil || result.DeviceID.String() != id || result.Status != attest.Affirming || !result.HardwareBound() || result.Keys.InstanceInHardware {
				t.Fatalf("%s, %v", reply.GetResult(), err)
			}
			delivered, _, err := w.Deliver(t.Context(), "demo/high")
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range m.Forgeries {
				t.Run(f.Name, func(t *testing.T) {
					w.Challenge(nil)
					_, err := show(t, w, string(m.Kind), id, f.Forge(t, binding(t, w)))
					unauthentic(t, err)
				})
			}
			refused := of[event.AttestationRefused](r.Events())
			if len(refused) != len(m.Forgeries) {
				t.Fatalf("%d refusals are recorded, want %d", len(refused), len(m.Forgeries))
			}
			for i, f := range m.Forgeries {
				if got := refused[i]; got.Kind != string(m.Kind) || !strings.Contains(got.Reason, clipped(f.Because)) {
					t.Errorf("%s: recorded as %q, want %q", f.Name, got.Reason, f.Because)
				}
			}
			if got := sessionState(t, r, delivered.GetSessionId()); got != session.Issued {
				t.Errorf("after the forgeries the session is %s", got)
			}
			if _, _, err := w.Deliver(t.Context(), "demo/high"); err != nil {
				t.Errorf("after the forgeries: %v", err)
			}
			calm(t, r)
			r.Check()
		})
	}
}

// clipped is what of a reason is short enough to stand in the record for certain.
func clipped(s string) string { return s[:min(len(s), 40)] }

// Evidence of one machine is worth nothing for another instance, another principal or under another device's name.
func TestAbuse_A44_confidential_machines(t *testing.T) {
	for _, m := range attestx.Machines(t) {
		t.Run(string(m.Kind), func(t *testing.T) {
			r := confidential(t, m, nil)
			id, err := enrolMachine(t, r, m.Kind, m.Image, rig.ID("workload").String())
			if err != nil {
				t.Fatal(err)
			}
			victim := r.Raw("workload")
			victim.Challenge(nil)
			if _, err := show(t, victim, string(m.Kind), id, m.Evidence(t, binding(t, victim))); err != nil {
				t.Fatal(err)
			}
			delivered, _, err := victim.Deliver(t.Context(), "demo/high")
			if err != nil {
				t.Fatal(err)
			}
			thief, stranger := r.Raw("workload"), r.Raw("stranger")
			victim.Challenge(nil)
			_, err = show(t, thief, string(m.Kind), id, m.Evidence(t, binding(t, victim)))
			unauthentic(t, err)
			thief.Challenge(nil)
			b := binding(t, thief)
			b.InstanceKey = binding(t, victim).InstanceKey
			_, err = show(t, thief, string(m.Kind), "", m.Evidence(t, b))
			unauthentic(t, err)
			stepUp(t, thief)
			stranger.Challenge(nil)
			_, err = show(t, stranger, string(m.Kind), "", m.Evidence(t, binding(t, stranger)))
			unauthentic(t, err)
			thief.Challenge(nil)
			_, err = show(t, thief, "development", id, m.Evidence(t, binding(t, thief)))
			unauthentic(t, err)
			if got := sessionState(t, r, delivered.GetSessionId()); got != session.Issued {
				t.Errorf("the victim's session is %s", got)
			}
			r.Check()
		})
	}
}

// Authentic evidence of a machine that is not as it should be ends what relied on it: all of it where the image is
// pinned to one machine, and what its own instance had where others run the same image.
func TestAbuse_A15_machine_fails_its_appraisal(t *testing.T) {
	for _, m := range attestx.Machines(t) {
		for name, bad := range map[string]func(testing.TB, attest.Binding) []byte{"other measurement": m.OtherImage, "old TCB": m.Old} {
			images := []attest.Image{m.Image, m.Loose}
			if len(m.Image) == len(m.Loose) {
				images = images[1:] // there is nothing to pin it to
			}
			for _, image := range images {
				if bad == nil {
					continue
				}
				t.Run(fmt.Sprintf("%s %s %d", m.Kind, name, len(image)), func(t *testing.T) {
					r := confidential(t, m, nil)
					if _, err := enrolMachine(t, r, m.Kind, image); err != nil {
						t.Fatal(err)
					}
					var sessions []string
					one, two := r.Raw("workload"), r.Raw("workload")
					for _, w := range []*rig.Raw{one, two} {
						w.Challenge(nil)
						if _, err := show(t, w, string(m.Kind), "", m.Evidence(t, binding(t, w))); err != nil {
							t.Fatal(err)
						}
						reply, _, err := w.Deliver(t.Context(), "demo/high")
						if err != nil {
							t.Fatal(err)
						}
						sessions = append(sessions, reply.GetSessionId())
					}
					one.Challenge(nil)
					reply, err := show(t, one, string(m.Kind), "", bad(t, binding(t, one)))
					if err != nil {
						t.Fatal(err)
					}
					if result, err := attest.DecodeResult(reply.GetResult()); err != nil || result.Status != attest.Contraindicated {
						t.Errorf("%s, %v", reply.GetResult(), err)
					}
					if _, _, err := one.Deliver(t.Context(), "demo/high"); err == nil {
						t.Error("a delivery to the machine that failed")
					}
					want := session.Revoked
					if !image.Pinned(m.Kind) {
						want = session.Issued
					}
					if a, b := sessionState(t, r, sessions[0]), sessionState(t, r, sessions[1]); a != session.Revoked || b != want {
						t.Errorf("its session is %s, that of the other %s, want %s", a, b, want)
					}
					r.Check()
				})
			}
		}
	}
}

// Without a root in the reference values no machine of the kind is taken, whoever enrolled it before.
func TestAbuse_A15_machine_without_a_root(t *testing.T) {
	m := attestx.MachineOf(t, attest.KindNitro)
	r := confidential(t, m, func(part string) string { return "" })
	if _, err := enrolMachine(t, r, m.Kind, m.Image); err == nil || !strings.Contains(err.Error(), "no root") {
		t.Errorf("enrolled: %v", err)
	}
}

// sdk makes evidence as a workload's own program would.
type sdk struct {
	t *testing.T
	m *attestx.Machine
}

func (s sdk) Kind() attest.Kind { return s.m.Kind }

func (s sdk) Attest(_ context.Context, b attest.Binding) ([]byte, error) {
	return s.m.Evidence(s.t, b), nil
}

// The SDK attests by itself when the policy asks for it, with evidence that the program makes.
func TestMachineThroughTheSDK(t *testing.T) {
	for _, m := range attestx.Machines(t) {
		t.Run(string(m.Kind), func(t *testing.T) {
			r := confidential(t, m, nil)
			if _, err := enrolMachine(t, r, m.Kind, m.Loose, rig.ID("workload").String()); err != nil {
				t.Fatal(err)
			}
			c := r.Client("workload", func(cfg *client.Config) { cfg.Evidence = sdk{t, m} })
			secret, err := c.Get(t.Context(), "demo/high")
			if err != nil {
				t.Fatal(err)
			}
			defer secret.Close()
			if err := secret.Use(func(plain []byte) error {
				if string(plain) != "top" {
					t.Errorf("got %q", plain)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
}
