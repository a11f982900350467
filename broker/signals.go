package broker

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/broker/proxy"
	"github.com/bulla-project/bulla/policy"
)

// signals gathers the raw facts of a delivery, or of a use, which is one as far as policy is concerned. Nothing here
// judges them.
func (b *Broker) signals(ctx context.Context, now time.Time, who request, asked ask, to policy.Recipient, d device, t target, said external) policy.Signals {
	level := policy.LevelBasic
	if d.id != "" && d.result.HardwareBound() {
		level = policy.LevelHighAssurance
	}
	s := policy.Signals{
		Now: now.UnixMicro(), Action: policy.ActionDeliver, Principal: b.principal(who.caller, level), Instance: who.instance.thumbprint,
		Resource: policy.Resource{Kind: policy.KindSecret, Secret: secretFacts(t)}, Attestation: attestationFacts(d),
		Network:   network(who.caller),
		Place:     b.placeFacts(who.caller),
		Recipient: &to,
		History:   b.history.signals(ctx, who.caller.id.String(), d.id, t.name, now),
		Request: policy.Request{
			Grade: asked.grade, MaxUses: int64(asked.maxUses), TTLSeconds: int64(asked.ttl / time.Second), Operation: string(asked.operation),
		},
		Factors: asked.factors, External: said.signals,
	}
	s.History.Travel = b.travels.compare(ctx, s)
	return s
}

// principal is the verified caller as policy sees it.
func (b *Broker) principal(who caller, level string) policy.Principal {
	return policy.Principal{
		ID: who.id.String(), TrustDomain: who.id.TrustDomain().Name(), Path: who.id.Path(), Type: b.principalType(who.id), Level: level,
		NotBefore: who.leaf.NotBefore.UnixMicro(), NotAfter: who.leaf.NotAfter.UnixMicro(),
	}
}

// principalType is configured by the longest path prefix, whole segments only; SERVICE where none fits. The
// paths are those of the broker's own trust domain: in a federated one the same path is somebody else's choice.
func (b *Broker) principalType(id spiffeid.ID) string {
	best, found, path := -1, policy.TypeService, id.Path()
	if id.TrustDomain() != b.id.TrustDomain() {
		return found
	}
	for prefix, kind := range b.types {
		if len(prefix) > best && (path == prefix || strings.HasPrefix(path, strings.TrimSuffix(prefix, "/")+"/")) {
			best, found = len(prefix), kind
		}
	}
	return found
}

func network(who caller) policy.Network {
	group, via := who.conn.State.CurveID, ""
	if announced, ok := who.addr.(*proxy.Addr); ok {
		via = announced.Via.String()
	}
	return policy.Network{
		Peer: who.addr.String(), Proxy: via, TLSGroup: group.String(), PostQuantum: group == tls.X25519MLKEM768 || group == tls.SecP256r1MLKEM768 || group == tls.SecP384r1MLKEM1024,
		Channel: hex.EncodeToString(who.conn.exporter[:]),
	}
}

func secretFacts(t target) *policy.Secret {
	s := &policy.Secret{Name: t.name, Exists: t.exists, Exposure: "none"}
	if t.exists {
		s.Class, s.Version, s.Type = t.secret.Class, int64(t.version.Version), t.version.Type
		if t.version.Exposure != "" {
			s.Exposure = t.version.Exposure
		}
	}
	return s
}

func attestationFacts(d device) *policy.Attestation {
	if d.id == "" {
		return nil
	}
	r := d.result
	out := &policy.Attestation{
		Kind: string(r.Kind), DeviceID: d.id, Tier: string(r.Status), Score: int64(r.TrustScore), IssuedAt: r.IssuedAt.UnixMicro(),
		KeysBound: r.Keys.Instance != "", Hardware: r.Keys.RecipientInHardware, Reasons: []string{},
	}
	for _, reason := range r.Reasons {
		out.Reasons = append(out.Reasons, reason.Claim+": "+reason.Text)
	}
	return out
}

// recipient is the key that an envelope is asked for.
func recipient(d device, asked ask) policy.Recipient {
	return policy.Recipient{Suite: int64(asked.recipient.Suite().Number()), InHardware: hardwareRecipient(d, asked)}
}

// hardwareRecipient says whether the envelope would be sealed to the very key that the device certified.
func hardwareRecipient(d device, asked ask) bool {
	if d.id == "" || !d.result.Keys.RecipientInHardware {
		return false
	}
	half, err := asked.recipient.HardwareHalf()
	return err == nil && attest.Thumbprint(half.Bytes()) == d.result.Keys.Recipient
}
