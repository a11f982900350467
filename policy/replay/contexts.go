package replay

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/bulla-project/bulla/policy"
)

const (
	second = int64(1_000_000) // microseconds
	// samplesPerPrincipal and maxDevices bound the contexts of one principal.
	samplesPerPrincipal = 4
	maxDevices          = 4
	maxApprovers        = 64
	maxCountries        = 8
	anyDevice           = "any-device"
)

// Context is a way in which a request could be made: what is not about who asks for what.
type Context struct {
	Name    string
	signals policy.Signals
}

// of is the request for a secret in the context.
func (c Context) of(principal string, s SecretFacts) policy.Signals {
	out := c.as(principal)
	out.Action = policy.ActionDeliver
	out.Resource = policy.Resource{Kind: policy.KindSecret, Secret: &policy.Secret{
		Name: s.Name, Exists: true, Class: s.Class, Version: max(1, s.Version), Exposure: "none", Type: s.Type,
	}}
	return out
}

// as is the context for a principal, with nothing asked for yet.
func (c Context) as(principal string) policy.Signals {
	out := c.signals
	out.Principal.ID = principal
	td, path, _ := strings.Cut(strings.TrimPrefix(principal, "spiffe://"), "/")
	out.Principal.TrustDomain, out.Principal.Path = td, "/"+path
	return out
}

// Assumed says in sentences what the synthetic contexts suppose.
func Assumed() []string {
	return []string{
		"an SVID one minute old, over a post-quantum connection, from an address of each zone of zones.yaml and of none",
		"a quiet history, and a secret that the principal has had before; no external signal raises the risk",
		"an attestation one second old, affirming, score 100, with the caller's keys bound and in hardware, of each kind that the data names, on each device that the principal may use",
		"HIGH_ASSURANCE, or ENHANCED by a further factor, where it is said so",
		"approvals of everybody in data.members who has a role",
		"the moment at which this was run; the places that the data names, where it names any",
		"a request for no certain time, number of uses or grade, and each operation of a key",
		"where what has one value here, such as the moment, is read by other rules or beside other data, and does not permit: INCONCLUSIVE",
		"a secret that nobody has put yet, in each class of the data, where a scope covers none that is known",
	}
}

// world is what the data of a revision says about who could be where.
type world struct {
	facts     facts
	peers     []string
	kinds     []string
	countries []string
	approvals []string
	before    facts // what is not in it is tried first, where not all can be
	now       int64
}

func newWorld(f, before facts, now int64) world {
	w := world{facts: f, peers: f.peers(), kinds: f.texts("kinds"), before: before, now: now}
	if len(w.kinds) == 0 {
		w.kinds = []string{"tpm2"}
	}
	w.countries = newFirst(f.countries(), before.countries(), maxCountries)
	w.approvals = f.approvers(before)
	return w
}

// newFirst is some of a sorted list, those first that are not in another one.
func newFirst(all, before []string, limit int) []string {
	isNew := func(s string) bool { return !slices.Contains(before, s) }
	out := slices.Clone(all)
	slices.SortStableFunc(out, func(a, b string) int {
		switch {
		case isNew(a) == isNew(b):
			return 0
		case isNew(a):
			return -1
		}
		return 1
	})
	return out[:min(len(out), limit)]
}

// plain is a request on an SVID alone.
func (w world) plain(peer string) policy.Signals {
	return policy.Signals{
		Version: policy.SignalsVersion, Now: w.now, Instance: "whatif",
		Principal: policy.Principal{Type: policy.TypeService, Level: policy.LevelBasic, NotBefore: w.now - 60*second, NotAfter: w.now + 3600*second},
		Network:   policy.Network{Peer: peer, TLSGroup: "X25519MLKEM768", PostQuantum: true},
		Recipient: &policy.Recipient{Suite: 9},
		History:   &policy.History{},
	}
}

// ladder are the contexts of a principal, what asks least of it first. The last one has everything.
func (w world) ladder(principal string) []Context {
	var out []Context
	rungs := []struct {
		name     string
		level    string
		attested bool
		approved bool
	}{
		{"on its SVID alone", policy.LevelBasic, false, false},
		{"with a further factor", policy.LevelEnhanced, false, false},
		{"on an attested device", policy.LevelBasic, true, false},
		{"on an attested device, with a further factor", policy.LevelEnhanced, true, false},
		{"on a device that its keys are bound to (HIGH_ASSURANCE)", policy.LevelHighAssurance, true, false},
		{"approved by others", policy.LevelBasic, false, true},
		{"with a further factor, approved by others", policy.LevelEnhanced, false, true},
		{"on an attested device, approved by others", policy.LevelBasic, true, true},
		{"with everything: HIGH_ASSURANCE on its device, approved by others", policy.LevelHighAssurance, true, true},
	}
	for _, r := range rungs {
		if r.approved && len(w.approvals) == 0 {
			continue
		}
		for _, peer := range w.peers {
			for _, s := range w.placed(w.plain(peer)) {
				s.Principal.Level = r.level
				if r.approved {
					for _, id := range w.approvals {
						s.Approvals = append(s.Approvals, policy.Approval{Principal: id, At: w.now - second})
					}
				}
				if !r.attested {
					out = append(out, Context{r.name + from(s), s})
					continue
				}
				out = append(out, w.attested(principal, r.name, s)...)
			}
		}
	}
	return out
}

// attested are a context on each kind of device that the principal may use.
func (w world) attested(principal, name string, s policy.Signals) []Context {
	var out []Context
	for _, kind := range w.kinds {
		for _, device := range w.devices(principal) {
			v := s
			v.Attestation = &policy.Attestation{
				Kind: kind, DeviceID: device, Tier: "affirming", Score: 100, IssuedAt: w.now - second, KeysBound: true,
				Hardware: s.Principal.Level == policy.LevelHighAssurance, Reasons: []string{},
			}
			v.Recipient = &policy.Recipient{Suite: 9, InHardware: v.Attestation.Hardware}
			out = append(out, Context{fmt.Sprintf("%s (%s, %s)%s", name, kind, device, from(v)), v})
		}
	}
	return out
}

// placed are a context without a place, or in each that the data names.
func (w world) placed(s policy.Signals) []policy.Signals {
	if len(w.countries) == 0 {
		return []policy.Signals{s}
	}
	var out []policy.Signals
	for _, code := range w.countries {
		v := s
		v.Place = &policy.Place{
			Country: code, Continent: "EU", Point: &policy.Point{RadiusKM: 1}, Source: "whatif", BuiltAt: w.now - second,
		}
		out = append(out, v)
	}
	return out
}

func from(s policy.Signals) string {
	text := " from " + s.Network.Peer
	if s.Place != nil {
		text += " in " + s.Place.Country
	}
	return text
}

// devices are those that the data lists for a principal.
func (w world) devices(principal string) []string {
	out := newFirst(w.facts.devices(principal), w.before.devices(principal), maxDevices)
	if len(out) == 0 {
		return []string{anyDevice}
	}
	return out
}

// devices are those that are listed for a principal, sorted.
func (f facts) devices(principal string) []string {
	var out []string
	for _, l := range f.leaves {
		if slices.Contains(l.path, principal) && l.path[len(l.path)-1] == "devices" {
			for _, d := range strings.Fields(strings.Trim(l.value, "[]")) {
				if d == "*" {
					d = anyDevice
				}
				out = append(out, d)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// approvers are some of those who have a role: those first whose entry was not there before, then in turn those of each
// entry, so that no role is left out.
func (f facts) approvers(before facts) []string {
	turn, seen := map[string]int{}, map[string]int{}
	all := f.below("data", "members")
	for _, id := range all {
		key := "data\x00members\x00" + id
		entry := f.leaves[key].value
		if before.leaves[key].value == entry {
			seen[entry]++
			turn[id] = seen[entry]
		}
	}
	slices.SortStableFunc(all, func(a, b string) int { return cmp.Compare(turn[a], turn[b]) })
	return all[:min(len(all), maxApprovers)]
}

// samples are recorded contexts, a few of each principal: those that differ in device, kind or address, the last ones.
type samples struct{ of map[string][]policy.Signals }

func newSamples() *samples { return &samples{of: map[string][]policy.Signals{}} }

func (s *samples) add(sig policy.Signals) {
	if sig.Action != policy.ActionDeliver {
		return
	}
	alike := func(o policy.Signals) bool {
		return host(o.Network.Peer) == host(sig.Network.Peer) && o.Principal.Level == sig.Principal.Level && device(o) == device(sig)
	}
	all := slices.DeleteFunc(s.of[sig.Principal.ID], alike)
	if len(all) == samplesPerPrincipal {
		all = all[1:]
	}
	s.of[sig.Principal.ID] = append(all, sig)
}

func host(peer string) string {
	if i := strings.LastIndexByte(peer, ':'); i >= 0 {
		return peer[:i]
	}
	return peer
}

func device(s policy.Signals) string {
	if s.Attestation == nil {
		return ""
	}
	return s.Attestation.Kind + " " + s.Attestation.DeviceID
}

// contexts are the recorded ones of a principal.
func (s *samples) contexts(principal string) []Context {
	var out []Context
	for _, sig := range s.of[principal] {
		out = append(out, Context{fmt.Sprintf("as it asked at %s%s", moment(microseconds(sig.Now)), from(sig)), sig})
	}
	return out
}

// principals are those that the recordings have.
func (s *samples) principals() []string {
	var out []string
	for id := range s.of {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}
