package policy

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Invariants are what a site demands of every revision, whatever is in the bundle. They come from the
// ledger, so that nobody who can only push a bundle can change them. Two hold always: the empty input is
// denied, and a principal that the bundle does not know is denied everything.
type Invariants struct {
	// Security are the SPIFFE IDs of which at least one must still be able to push a revision and to activate it,
	// if need be after a step-up, or with the word of another one of them. Without any the check is left out.
	Security []string
	// Auditors are the SPIFFE IDs that may not be given any secret.
	Auditors []string
}

const (
	maxProbeNames = 64
	maxProbePeers = 3
)

var probeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,255}$`)

// checkInvariants asks the policy about requests under the best circumstances: highest level, fresh and
// affirming attestation, quiet history, in each zone. Names and classes of secrets are taken from the data
// and the constants of the policy. It is a sample, not a proof, of what Rego could be made to say.
func (r *Revision) checkInvariants(ctx context.Context, inv Invariants, b *bundle) []Fault {
	p := &prober{ctx: ctx, rev: r, peers: r.probePeers()}
	for _, input := range []ast.Value{ast.NewObject(), ast.Null{}, ast.NewArray(), ast.String("")} {
		cancel, stop := endAfter(ctx, caseLimit)
		d := r.judgeRaw(ctx, input, cancel)
		stop()
		p.want(d, d.Effect == Deny && !d.Covered, "the input %v must be denied without reasons", input)
	}
	p.strangers(inv, b)
	p.auditors(inv, b)
	p.security(inv)
	return p.faults
}

type prober struct {
	ctx    context.Context
	rev    *Revision
	peers  []string
	faults []Fault
	ended  bool // an evaluation did not end: no further ones
}

func (p *prober) want(d Decision, ok bool, format string, args ...any) {
	p.ended = p.ended || d.TimedOut
	if !ok || d.Fault != "" {
		p.faults = append(p.faults, Fault{
			Check:   "invariants",
			Message: fmt.Sprintf(format, args...) + ", but the policy says " + describe(d),
		})
	}
}

func (p *prober) judge(s Signals) Decision {
	cancel, stop := endAfter(p.ctx, caseLimit)
	defer stop()
	return p.rev.judge(p.ctx, s, cancel)
}

// strangers: a principal that nobody named is denied every action, and learns nothing.
func (p *prober) strangers(inv Invariants, b *bundle) {
	domains := []string{"bulla-invariant-probe.invalid"}
	for _, id := range slices.Concat(inv.Security, inv.Auditors) {
		td, _, _ := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/")
		if !slices.Contains(domains, td) {
			domains = append(domains, td)
		}
	}
	names, classes := probeNames(b, ""), probeClasses(b)
	for _, td := range domains {
		id := "spiffe://" + td + "/bulla-invariant-probe"
		for _, action := range Actions() {
			for i, name := range names {
				if action != ActionDeliver && i > 0 {
					break
				}
				for _, class := range classes {
					s := p.best(id, action, name, class)
					d := p.judge(s)
					p.want(d, d.Effect == Deny && !d.Covered, "an unknown principal %s must be denied %s of %q without reasons", id, action, name)
					if p.ended || len(p.faults) > 0 {
						return
					}
				}
			}
		}
	}
}

// auditors: no auditor is given a secret, not even after a step-up.
func (p *prober) auditors(inv Invariants, b *bundle) {
	classes := probeClasses(b)
	for _, id := range inv.Auditors {
		for _, name := range probeNames(b, id) {
			for _, class := range classes {
				for _, s := range p.variants(p.best(id, ActionDeliver, name, class)) {
					d := p.judge(s)
					p.want(d, d.Effect == Deny, "the auditor %s must be denied the secret %q of class %q", id, name, class)
					if p.ended || len(p.faults) > 0 {
						return
					}
				}
			}
		}
	}
}

// security: at least one can still push a revision and activate it, if need be with the word of another of them.
func (p *prober) security(inv Invariants) {
	if len(inv.Security) == 0 {
		return
	}
	for _, action := range []Action{ActionPolicyPush, ActionPolicyPromote} {
		if last, ok := p.anyOf(inv.Security, action); !ok && !p.ended {
			p.want(last, false, "one of %q must be able to do %s, if need be with the word of another one", inv.Security, action)
		}
	}
}

func (p *prober) anyOf(ids []string, action Action) (last Decision, ok bool) {
	for _, id := range ids {
		for _, s := range p.variants(p.best(id, action, "", "")) {
			for _, other := range ids {
				if other != id && len(s.Approvals) < maxProbeNames {
					s.Approvals = append(s.Approvals, Approval{Principal: other, At: s.Now - second})
				}
			}
			last = p.judge(s)
			if p.ended || last.Effect == Permit || last.Effect == StepUp && last.Requires.Approval == nil {
				return last, !p.ended
			}
		}
	}
	return last, false
}

// probeTime is Monday, 6 January 2025, 10:00 UTC.
const probeTime = 1_736_157_600 * second

// best is a request under the best circumstances.
func (p *prober) best(id string, action Action, name, class string) Signals {
	td, path, _ := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/")
	s := Signals{
		Version: SignalsVersion, Now: probeTime, Action: action, Instance: "probe",
		Principal: Principal{
			ID: id, TrustDomain: td, Path: "/" + path, Type: TypeService, Level: LevelHighAssurance,
			NotBefore: probeTime - 60*second, NotAfter: probeTime + 3600*second,
		},
		Attestation: &Attestation{
			Kind: "tpm2", DeviceID: "probe", Tier: "affirming", Score: 100, IssuedAt: probeTime - second,
			KeysBound: true, Hardware: true,
		},
		Network:   Network{Peer: p.peers[0], TLSGroup: "X25519MLKEM768", PostQuantum: true},
		Recipient: &Recipient{Suite: 9, InHardware: true},
		History:   &History{},
		Request:   Request{Grade: string(GradeOpen)},
	}
	s.Resource = probeResource(action, name, class)
	return s
}

func probeResource(action Action, name, class string) Resource {
	kind, _, _ := strings.Cut(string(action), ".")
	switch kind {
	case "deliver", KindSecret:
		return Resource{Kind: KindSecret, Secret: &Secret{Name: name, Exists: true, Class: class, Version: 1, Exposure: "none", NewClass: class}}
	case KindSession:
		return Resource{Kind: KindSession, Session: &Session{ID: "probe", State: "confirmed"}}
	case KindDevice:
		return Resource{Kind: KindDevice, Device: &Device{ID: "probe", Kind: "tpm2"}}
	case "policy":
		return Resource{Kind: KindRevision, Revision: &NewRules{Digest: "probe", Name: "probe"}}
	case KindAudit:
		return Resource{Kind: KindAudit}
	case "share":
		return Resource{Kind: KindRound, Round: &Round{ID: "probe", Kind: "approval", Secret: name, Version: 1}}
	}
	return Resource{Kind: KindSystem}
}

// variants are the request in each zone, with an attestation and without.
func (p *prober) variants(s Signals) []Signals {
	var out []Signals
	for _, peer := range p.peers {
		s.Network.Peer = peer
		for _, kind := range []string{"tpm2", ""} {
			v := s
			v.Attestation = nil
			if kind != "" {
				a := *s.Attestation
				a.Kind = kind
				v.Attestation = &a
			}
			out = append(out, v)
		}
	}
	return out
}

// probePeers is one address in each zone, and one in none.
func (r *Revision) probePeers() []string {
	peers := map[string]string{}
	for prefix, zone := range r.zones.table.AllSorted() {
		if peers[zone] == "" {
			peers[zone] = netip.AddrPortFrom(prefix.Addr(), 40000).String()
		}
	}
	out := []string{"203.0.113.77:40000"}
	for _, zone := range r.zones.names {
		if peers[zone] != "" {
			out = append(out, peers[zone])
		}
	}
	slices.Reverse(out)
	return out[max(0, len(out)-maxProbePeers):]
}

// probeNames collects what could be the name or the folder of a secret: first everything in the data below
// the given SPIFFE ID, then the rest of the data and the constants of the policy, up to maxProbeNames.
func probeNames(b *bundle, id string) []string {
	out := []string{"demo/bulla-invariant-probe", "bulla-invariant-probe"}
	seen := map[string]bool{}
	add := func(t *ast.Term) bool {
		s, ok := t.Value.(ast.String)
		if !ok || len(out) >= maxProbeNames || !probeName.MatchString(string(s)) {
			return false
		}
		name := string(s)
		if strings.HasSuffix(name, "/") {
			name += "bulla-invariant-probe"
		}
		if strings.Contains(name, "/") && !seen[name] {
			seen[name] = true
			out = append(out, name)
		}
		return false
	}
	if id != "" {
		ast.WalkTerms(b.data, func(t *ast.Term) bool {
			if obj, ok := t.Value.(ast.Object); ok {
				if below := obj.Get(ast.StringTerm(id)); below != nil {
					ast.WalkTerms(below, add)
				}
			}
			return false
		})
	}
	for _, name := range sortedNames(b.files) {
		if m := b.policy[name]; m != nil {
			ast.WalkTerms(m, add)
		}
	}
	ast.WalkTerms(b.data, add)
	return out
}

// probeClasses are the classes of the data, and one that nobody named.
func probeClasses(b *bundle) []string {
	out := []string{"", "bulla-invariant-probe", "standard", "high"}
	if t := b.data.Get(ast.StringTerm("classes")); t != nil {
		if obj, ok := t.Value.(ast.Object); ok {
			for _, k := range obj.Keys() {
				if s, ok := k.Value.(ast.String); ok && !slices.Contains(out, string(s)) && len(out) < 16 {
					out = append(out, string(s))
				}
			}
		}
	}
	return out
}
