package event

// SignedCall is a call as the caller's instance key signed it (package envelope/proof), with what an SVID said for
// that key: whoever has the trust bundle can check it without believing the broker.
type SignedCall struct {
	Method    string   `json:"method"`
	RequestID string   `json:"request_id"`
	Nonce     []byte   `json:"nonce"`
	Exporter  []byte   `json:"exporter"`
	Payload   []byte   `json:"payload"`
	Signature []byte   `json:"signature"`
	Binding   []byte   `json:"binding"`
	Chain     [][]byte `json:"chain"` // DER, the leaf first
}

// Split says who has to take part before a secret can be read: Threshold of Holders, whose shares Manifest describes
// (SHA-256 of its encoding, see package envelope/split).
type Split struct {
	Manifest  Digest   `json:"manifest"`
	Threshold uint32   `json:"threshold"`
	Holders   []string `json:"holders"` // SPIFFE IDs
}

// SourceSplit is a split that was made before the secret reached the broker. Signer is the thumbprint of the key that
// signed the manifest, and Binding the SVID's word for that key.
type SourceSplit struct {
	Split
	Signer  string `json:"signer"`
	Binding []byte `json:"binding"`
}

// Custody opens a round of custodians with a delivery: the round has the session's id. Shares is the digest of what
// lies beside the ledger for it.
type Custody struct {
	Split
	Source  bool       `json:"source,omitempty"` // the holders have their shares already
	Shares  Digest     `json:"shares"`
	Expires Time       `json:"expires"`
	Request SignedCall `json:"request"`
}

// RoundOpened opens a round of approvals for one delivery: the round has the id of the request that will ask for it.
// Payload is the digest of what that request will be.
type RoundOpened struct {
	Round     ID         `json:"round"`
	Principal string     `json:"principal"`
	Instance  string     `json:"instance"`
	Secret    string     `json:"secret"`
	Version   uint32     `json:"version"`
	Class     string     `json:"class"`
	Role      string     `json:"role"`  // of those who may approve
	Count     uint32     `json:"count"` // how many have to
	Payload   Digest     `json:"payload"`
	Expires   Time       `json:"expires"`
	Request   SignedCall `json:"request"`
	Decision  Decision   `json:"decision"` // the STEP_UP that asks for it
}

// ShareIssued says that a holder was given its share, sealed to a key of its own.
type ShareIssued struct {
	Round          ID       `json:"round"`
	Holder         string   `json:"holder"`
	Instance       string   `json:"instance"`
	Suite          string   `json:"suite"`
	KeyID          string   `json:"key_id"`
	EnvelopeDigest Digest   `json:"envelope_digest"`
	ReceiptLock    Digest   `json:"receipt_lock"`
	Decision       Decision `json:"decision"`
}

// RoundApproved is a holder's or an approver's signed yes, with its share sealed to the requester where there is one.
// Approval is the signature over a split.Approval, by the instance key that Binding and Chain vouch for.
type RoundApproved struct {
	Round    ID       `json:"round"`
	Holder   string   `json:"holder"`
	Instance string   `json:"instance"`
	Share    []byte   `json:"share,omitempty"`
	Approval []byte   `json:"approval"`
	Binding  []byte   `json:"binding"`
	Chain    [][]byte `json:"chain"`
	Decision Decision `json:"decision"`
}

// RoundRejected is a holder's or an approver's no.
type RoundRejected struct {
	Round    ID       `json:"round"`
	Holder   string   `json:"holder"`
	Reason   string   `json:"reason"`
	Decision Decision `json:"decision"`
}

// RoundClosed is the requester's word that it is done with a round: it combined the shares, or gave up. Bad names the
// holders whose shares did not fit, as the requester says.
type RoundClosed struct {
	Round    ID       `json:"round"`
	Combined bool     `json:"combined,omitempty"`
	Bad      []string `json:"bad,omitempty"`
}

// RoundExpired is the sweeper's word that a round is over.
type RoundExpired struct {
	Round ID `json:"round"`
}

// The types of events about rounds.
const (
	TypeRoundOpened   Type = "round.opened"
	TypeShareIssued   Type = "round.share_issued"
	TypeRoundApproved Type = "round.approved"
	TypeRoundRejected Type = "round.rejected"
	TypeRoundClosed   Type = "round.closed"
	TypeRoundExpired  Type = "round.expired"
)

// EventType implements Body.
func (RoundOpened) EventType() Type { return TypeRoundOpened }

// EventType implements Body.
func (ShareIssued) EventType() Type { return TypeShareIssued }

// EventType implements Body.
func (RoundApproved) EventType() Type { return TypeRoundApproved }

// EventType implements Body.
func (RoundRejected) EventType() Type { return TypeRoundRejected }

// EventType implements Body.
func (RoundClosed) EventType() Type { return TypeRoundClosed }

// EventType implements Body.
func (RoundExpired) EventType() Type { return TypeRoundExpired }
