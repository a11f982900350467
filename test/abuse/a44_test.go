package abuse

import (
	"crypto/rand"
	"testing"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest/dev"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
	"github.com/bulla-project/bulla/test/rig"
)

// victim is an instance of workload on an enrolled development device, with a session that relies on it.
type victim struct {
	*rig.Raw
	device  *dev.Device
	id      string
	session string
}

func newVictim(t *testing.T, r *rig.Rig) victim {
	t.Helper()
	file, id := r.Device(rig.ID("workload").String())
	d, err := dev.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	v := victim{Raw: r.Raw("workload"), device: d, id: id}
	v.attest(t)
	reply, _, err := v.Deliver(t.Context(), "demo/high")
	if err != nil {
		t.Fatal(err)
	}
	v.session = reply.GetSessionId()
	return v
}

func (v victim) attest(t *testing.T) {
	t.Helper()
	v.Challenge(nil)
	ev, err := v.device.Attest(t.Context(), binding(t, v.Raw))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := show(t, v.Raw, "development", v.id, ev); err != nil {
		t.Fatal(err)
	}
}

// lives demands that the victim lost nothing: its session, its passport and its device are as they were.
func (v victim) lives(t *testing.T, r *rig.Rig) {
	t.Helper()
	if got := sessionState(t, r, v.session); got != session.Issued {
		t.Errorf("the victim's session is %s", got)
	}
	if _, _, err := v.Deliver(t.Context(), "demo/high"); err != nil {
		t.Errorf("the victim's passport: %v", err)
	}
}

// stepUp demands that w gets nothing of class high, and that only an attestation of its own would help.
func stepUp(t *testing.T, w *rig.Raw) {
	t.Helper()
	_, _, err := w.Deliver(t.Context(), "demo/high")
	code(t, err, codes.PermissionDenied, "denied")
	if r := rig.Refusal(err); r.GetDecision() != "STEP_UP" {
		t.Errorf("decision %q, want STEP_UP", r.GetDecision())
	}
}

func TestAbuse_A44_anothers_device(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/high", "high", "top")
	v := newVictim(t, r)
	otherFile, otherID := r.Device(rig.ID("operator").String())
	other, err := dev.Load(otherFile)
	if err != nil {
		t.Fatal(err)
	}
	strangers, strangersID := r.Device(rig.ID("stranger").String())
	own, err := dev.Load(strangers)
	if err != nil {
		t.Fatal(err)
	}
	refusals := 0
	refuse := func(t *testing.T, w *rig.Raw, id string, ev []byte) {
		t.Helper()
		_, err := show(t, w, "development", id, ev)
		unauthentic(t, err)
		refusals++
	}
	evidence := func(t *testing.T, d *dev.Device, w *rig.Raw) []byte {
		t.Helper()
		ev, err := d.Attest(t.Context(), binding(t, w))
		if err != nil {
			t.Fatal(err)
		}
		return ev
	}

	t.Run("SVID of workload on a device that is not for it", func(t *testing.T) {
		thief := r.Raw("workload")
		refuse(t, thief, otherID, evidence(t, other, thief))
		stepUp(t, thief)
	})
	t.Run("evidence of one device under the name of another", func(t *testing.T) {
		thief := r.Raw("workload")
		refuse(t, thief, v.id, evidence(t, other, thief))
		stepUp(t, thief)
	})
	t.Run("evidence that the victim's device made for the victim", func(t *testing.T) {
		thief := r.Raw("workload")
		v.Challenge(nil)
		refuse(t, thief, v.id, evidence(t, v.device, v.Raw)) // another nonce, channel and key
		stepUp(t, thief)
	})
	t.Run("evidence for the victim's key over the thief's connection", func(t *testing.T) {
		thief := r.Raw("workload")
		b := binding(t, thief)
		b.InstanceKey = binding(t, v.Raw).InstanceKey
		ev, err := v.device.Attest(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		refuse(t, thief, v.id, ev)
		stepUp(t, thief)
	})
	t.Run("evidence from another connection of the same instance", func(t *testing.T) {
		again := r.RawWith("workload", v.Key)
		b := binding(t, again)
		b.Channel = v.Exporter
		ev, err := v.device.Attest(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		refuse(t, again, v.id, ev)
	})
	t.Run("another principal on the victim's device", func(t *testing.T) {
		w := r.Raw("stranger")
		refuse(t, w, v.id, evidence(t, v.device, w))
	})
	t.Run("evidence that names the victim's device and fails", func(t *testing.T) {
		for _, name := range []string{"workload", "stranger"} {
			w := r.Raw(name)
			garbage := make([]byte, 512)
			if _, err := rand.Read(garbage); err != nil {
				t.Fatal(err)
			}
			refuse(t, w, v.id, garbage)
			w.Challenge(nil)
			ev := evidence(t, v.device, w)
			ev[len(ev)-1] ^= 1
			refuse(t, w, v.id, ev)
		}
	})
	t.Run("a passport of a sibling replica", func(t *testing.T) { stepUp(t, r.Raw("workload")) })
	t.Run("a passport under another principal", func(t *testing.T) {
		w := r.RawWith("stranger", v.Key)
		_, _, err := w.Deliver(t.Context(), "demo/high")
		code(t, err, codes.PermissionDenied, "denied")
		if got := rig.Refusal(err); got.GetDecision() != "DENY" || len(got.GetReasons()) > 0 {
			t.Errorf("a stranger is told %v", got)
		}
	})
	t.Run("a device that nobody enrolled, and one of another kind", func(t *testing.T) {
		w := r.Raw("workload")
		refuse(t, w, "dev-"+v.id[4:len(v.id)-4]+"aaaa", evidence(t, v.device, w))
		w.Challenge(nil)
		_, err := show(t, w, "tpm2", v.id, evidence(t, v.device, w))
		unauthentic(t, err)
		refusals++
	})
	v.lives(t, r)
	t.Run("a revoked device", func(t *testing.T) {
		_, err := bullav1.NewDevicesClient(r.Client("operator").Conn()).RevokeDevice(t.Context(), &bullav1.RevokeDeviceRequest{Id: strangersID, Reason: "lost"})
		if err != nil {
			t.Fatal(err)
		}
		w := r.Raw("stranger")
		refuse(t, w, strangersID, evidence(t, own, w))
	})
	v.lives(t, r)
	events := r.Events()
	if got := len(of[event.AttestationRefused](events)); got != refusals {
		t.Errorf("%d refusals are recorded, want %d", got, refusals)
	}
	if got := len(of[event.AttestationAppraised](events)); got != 1 {
		t.Errorf("%d appraisals are recorded, want that of the victim alone", got)
	}
	if got := len(of[event.SessionRevoked](events)); got != 0 {
		t.Errorf("%d sessions were revoked", got)
	}
	r.Check()
}

// A device that is revoked takes its sessions and passports with it, at once and for every instance.
func TestAbuse_A44_revoked_device(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/high", "high", "top")
	v := newVictim(t, r)
	_, err := bullav1.NewDevicesClient(r.Client("operator").Conn()).RevokeDevice(t.Context(), &bullav1.RevokeDeviceRequest{Id: v.id, Reason: "stolen"})
	if err != nil {
		t.Fatal(err)
	}
	if got := sessionState(t, r, v.session); got != session.Revoked {
		t.Errorf("its session is %s", got)
	}
	stepUp(t, v.Raw)
	r.Check()
}
