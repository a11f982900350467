package ocsf

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"

	"github.com/bulla-project/bulla/ledger/event"
)

// signals are those of package policy that are written; the others stay in the ledger.
type signals struct {
	Principal struct {
		ID          string `json:"id"`
		TrustDomain string `json:"trust_domain"`
		Type        string `json:"type"`
	} `json:"principal"`
	Instance string `json:"instance"`
	Resource struct {
		Kind   string `json:"kind"`
		Secret *struct {
			Name    string `json:"name"`
			Class   string `json:"class"`
			Version int64  `json:"version"`
		} `json:"secret"`
		Session *struct {
			ID     string `json:"id"`
			Secret string `json:"secret"`
		} `json:"session"`
		Device *struct {
			ID string `json:"id"`
		} `json:"device"`
		Revision *struct {
			Digest string `json:"digest"`
		} `json:"revision"`
		Round *struct {
			ID string `json:"id"`
		} `json:"round"`
	} `json:"resource"`
	Network struct {
		Peer  string `json:"peer"`
		Proxy string `json:"proxy"`
	} `json:"network"`
	Place *struct {
		Country   string `json:"country"`
		Continent string `json:"continent"`
	} `json:"place"`
	Request struct {
		Operation string `json:"operation"`
	} `json:"request"`
}

// result is what is written of a policy.Decision.
type result struct {
	Reasons  []string `json:"reasons"`
	TimedOut bool     `json:"timed_out"`
	Fault    string   `json:"fault"`
	Risk     *struct {
		Score int `json:"score"`
	} `json:"risk"`
}

// decided writes a decision: who asked, from where, for what, and what the policy said. An event keeps its line
// whatever a decision holds: what can't be read is left out, and the line says so.
func (o *object) decided(d event.Decision) signals {
	var s signals
	var r result
	// A nil decision is recorded as null, which is no fault.
	if json.Unmarshal(orNull(d.Signals), &s) != nil || json.Unmarshal(orNull(d.Result), &r) != nil {
		o.note("decision_unreadable", true)
	}
	o.caller(s, r)
	o.Actor.Authorizations = []authorization{{word(d.Effect), &policy{
		Name: "bulla", UID: word(d.Revision.String()), Version: strconv.FormatUint(d.Sequence, 10), IsApplied: true,
	}}}
	o.from(s)
	if o.API != nil {
		if o.API.Operation == "" {
			o.API.Operation = text(d.Action)
		}
		if d.RequestID != "" {
			o.API.Request = &request{UID: text(d.RequestID)}
		}
		o.Resources = append(o.Resources, resourcesOf(s)...)
	} else {
		o.note("request_id", d.RequestID)
		o.note("action", d.Action)
	}
	if o.Metadata.CorrelationUID == "" {
		o.Metadata.CorrelationUID = text(d.RequestID)
	}
	if len(r.Reasons) > 0 {
		o.StatusDetail = text(strings.Join(r.Reasons[:min(len(r.Reasons), maxList)], "; "))
		o.left("reasons", len(r.Reasons)-maxList)
	}
	o.note("timed_out", r.TimedOut)
	o.note("fault", r.Fault)
	return s
}

// by is decided for a decision that an event may have.
func (o *object) by(d *event.Decision) {
	if d != nil {
		o.decided(*d)
	}
}

func orNull(raw json.RawMessage) []byte {
	if len(raw) == 0 {
		return []byte("null")
	}
	return raw
}

// user is the actor's user, made where there is none yet.
func (o *object) user() *user {
	if o.Actor == nil {
		o.Actor = &actor{}
	}
	if o.Actor.User == nil {
		o.Actor.User = &user{}
	}
	return o.Actor.User
}

func (o *object) caller(s signals, r result) {
	u := o.user()
	if s.Principal.ID != "" {
		u.UID = text(s.Principal.ID)
	}
	u.Domain, u.Type = text(s.Principal.TrustDomain), text(s.Principal.Type)
	if s.Principal.Type != "" {
		kind := typeSystem
		if s.Principal.Type == "USER" {
			kind = typeUser
		}
		u.TypeID = &kind
	}
	if r.Risk != nil {
		u.RiskScore = &r.Risk.Score
	}
}

// from says where a call came from.
func (o *object) from(s signals) {
	if o.Src == nil {
		o.Src = &endpoint{}
	}
	o.Src.UID, o.Src.InstanceUID = text(s.Principal.ID), text(s.Instance)
	if peer, err := netip.ParseAddrPort(s.Network.Peer); err == nil {
		o.Src.IP, o.Src.Port = peer.Addr().WithZone("").String(), peer.Port()
	}
	if s.Place != nil && s.Place.Country != "" {
		o.Src.Location = &location{text(s.Place.Country), text(s.Place.Continent)}
	}
	o.note("proxy", s.Network.Proxy)
}

// resourcesOf is what a decision was about.
func resourcesOf(s signals) []resource {
	switch r := s.Resource; {
	case r.Secret != nil && r.Secret.Name != "":
		return []resource{secretResource(r.Secret.Name, r.Secret.Version, r.Secret.Class)}
	case r.Session != nil && r.Session.ID != "":
		return []resource{{UID: text(r.Session.ID), Type: "session"}}
	case r.Device != nil && r.Device.ID != "":
		return []resource{{UID: text(r.Device.ID), Type: "device"}}
	case r.Revision != nil && r.Revision.Digest != "":
		return []resource{{UID: text(r.Revision.Digest), Type: "policy revision"}}
	case r.Round != nil && r.Round.ID != "":
		return []resource{{UID: text(r.Round.ID), Type: "round"}}
	case r.Kind != "":
		return []resource{{Name: text(r.Kind), Type: text(r.Kind)}}
	}
	return nil
}

func secretResource(name string, version int64, class string) resource {
	r := resource{Name: word(name), UID: word(name), Type: "secret", Criticality: text(class)}
	if version > 0 {
		r.Version = strconv.FormatInt(version, 10)
	}
	return r
}

// activityOf is the activity of the API that an action of the policy language is.
func activityOf(action string) int {
	switch verb := action[strings.LastIndexByte(action, '.')+1:]; verb {
	case "deliver", "show", "list", "tail", "export", "check", "rebuild", "doctor", "fetch":
		return apiRead
	case "put", "enroll", "push":
		return apiCreate
	case "approve", "reject":
		return apiUpdate
	case "revoke":
		return apiDelete
	}
	return activityOther
}
