package event

// SignalReceived is an external signal that a configured transmitter sent, verified. What it says of a target holds
// until Expires. Target names a principal, a device or a trust domain: "principal/ID", "device/ID", "domain/NAME".
type SignalReceived struct {
	Transmitter string   `json:"transmitter"`
	Issuer      string   `json:"issuer"`
	TokenID     string   `json:"token_id"` // jti
	Token       Digest   `json:"token"`    // SHA-256 of the token, which is not kept
	Kind        string   `json:"kind"`     // such as session-revoked
	IssuedAt    Time     `json:"issued_at"`
	Targets     []string `json:"targets,omitempty"` // none: nobody here is the subject
	Level       string   `json:"level,omitempty"`   // raised, high; "": it raises nothing
	Revokes     bool     `json:"revokes,omitempty"`
	Expires     Time     `json:"expires,omitzero"`
}

// SignalSettled says what became of the sessions that a signal revoked. Held says that the transmitter's limit was
// reached first: what is left is for people to judge.
type SignalSettled struct {
	Signal      ID     `json:"signal"` // the SignalReceived event
	Transmitter string `json:"transmitter"`
	Target      string `json:"target"`
	Ended       uint32 `json:"ended"`
	Held        bool   `json:"held,omitempty"`
}

// SignalRefused records what came to a transmitter's address and was not believed. It changes nothing: anybody can
// send it.
type SignalRefused struct {
	Transmitter string `json:"transmitter"`
	Reason      string `json:"reason"`
}

// The types of these events.
const (
	TypeSignalReceived Type = "signal.received"
	TypeSignalSettled  Type = "signal.settled"
	TypeSignalRefused  Type = "signal.refused"
)

// EventType implements Body.
func (SignalReceived) EventType() Type { return TypeSignalReceived }

// EventType implements Body.
func (SignalSettled) EventType() Type { return TypeSignalSettled }

// EventType implements Body.
func (SignalRefused) EventType() Type { return TypeSignalRefused }
