package event

// SessionOperated says that the broker worked with the key of a proxied session, on the decision to permit that. The
// rest is what the instance key signed: see package envelope/proof, with the decision's request id. It is the receipt,
// and it is there before the result moves.
//
// The payload begins with a salt that the client drew, so its hash does not tell an input that can be guessed. Object
// names what can be named without that danger: SHA-256 of the message that was signed or verified, or of the ciphertext
// that was made or opened; nothing for MACs.
type SessionOperated struct {
	Session       ID       `json:"session"`
	Operation     string   `json:"operation"`
	Object        Digest   `json:"object,omitzero"`
	Refuted       bool     `json:"refuted,omitempty"` // the signature, MAC or ciphertext was not of this key
	Most          uint32   `json:"most,omitempty"`    // uses of the session that the decision permits, this one with them
	Nonce         []byte   `json:"nonce"`
	Exporter      []byte   `json:"exporter"`
	PayloadSHA256 Digest   `json:"payload_sha256"`
	Signature     []byte   `json:"signature"`
	Decision      Decision `json:"decision"`
}

// TypeSessionOperated is the type of SessionOperated.
const TypeSessionOperated Type = "session.operated"

// EventType implements Body.
func (SessionOperated) EventType() Type { return TypeSessionOperated }
