package ledger

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
)

// The outcomes of a commit that a caller can tell apart. Nothing of a commit that failed is kept.
var (
	// ErrPrecondition: a row is not what the caller based its decision on. Decide again, once.
	ErrPrecondition = errors.New("the ledger moved on since the decision was made")
	// ErrLimit: a counter has reached its limit.
	ErrLimit = errors.New("limit reached")
	// ErrDuplicateRequest: the request key is taken. Read the stored reply with Request.
	ErrDuplicateRequest = errors.New("request was answered before")
	// ErrTransition: the event does not fit the state, as in session.Apply.
	ErrTransition = errors.New("event does not fit the state")
	// ErrUnavailable: nothing can be said to be durable. Whether the commit took effect is found out
	// with Request, never by committing again, unless the error is ErrNotApplied as well.
	ErrUnavailable = errors.New("ledger unavailable")
	// ErrNotApplied: it is known that nothing of the commit, or of the batch, took effect or ever will.
	ErrNotApplied = errors.New("nothing was applied")
	// ErrNotFound: there is no such row, event or reply.
	ErrNotFound = errors.New("not found")
	// ErrTampered: what lies in the store is not what the ledger wrote there.
	ErrTampered = errors.New("the store was altered")
	// ErrErased: the event can't be read any more, by an event that says so. The log still proves it.
	ErrErased = errors.New("erased")
	// ErrHeld: a legal hold keeps it from being erased.
	ErrHeld = errors.New("a legal hold keeps it")
	// ErrSubjectKey is a store's word that another key of the subject was there first. Callers of Commit
	// never see it.
	ErrSubjectKey = errors.New("the subject has another key")
	// ErrBroken is a store's word that its handle can't be trusted any more (an fsync or other disk error,
	// a full disk): Recover comes before anything else.
	ErrBroken = errors.New("the store's handle can't be trusted")
)

// Kind names a projection.
type Kind string

// The projections: state that is made from events alone, and can be made again.
const (
	// KindSession rows hold session.Session, by session id.
	KindSession Kind = "session"
	// KindSecret rows hold Secret, by name.
	KindSecret Kind = "secret"
	// KindDevice rows hold Device, by device id.
	KindDevice Kind = "device"
	// KindDeviceCounter rows hold DeviceCounter, by device id. They stand apart from KindDevice so that
	// fresh evidence does not invalidate the preconditions of deliveries that rely on the device.
	KindDeviceCounter Kind = "device-counter"
	// KindPassport rows hold Passport (the newest appraisal), by InstanceKey(principal, instance).
	KindPassport Kind = "passport"
	// KindRevision rows hold Revision, by digest; the row with key ActiveRevision names the active one.
	KindRevision Kind = "revision"
	// KindKey rows hold Key, by key id.
	KindKey Kind = "key"
	// KindAlerts rows hold Alerts, by target.
	KindAlerts Kind = "alerts"
	// KindRound rows hold round.Round, by round id.
	KindRound Kind = "round"
	// KindRevocation rows hold Order, by RevocationKey: deliveries have them as preconditions.
	KindRevocation Kind = "revocation"
	// KindRevocationEnd rows hold RevocationEnd, by RevocationKey.
	KindRevocationEnd Kind = "revocation-end"
	// KindWiped rows hold Wiped, by session id.
	KindWiped Kind = "wiped"
	// KindDemand rows hold Demand, by InstanceKey.
	KindDemand Kind = "demand"
	// KindSweep has one row, ActiveRevision, which holds Sweep.
	KindSweep Kind = "sweep"
	// KindStaged rows hold Staged, by digest.
	KindStaged Kind = "staged"
	// KindProposal has one row, ActiveRevision, which holds Proposal.
	KindProposal Kind = "proposal"
	// KindShadow has one row, ActiveRevision, which holds Shadow.
	KindShadow Kind = "shadow"
	// KindTrust rows hold Trust, by the digest of the bundle.
	KindTrust Kind = "trust"
	// KindDenial rows hold Denial, by scope, value and index.
	KindDenial Kind = "denial"
	// KindActivation rows hold Activation, by sequence.
	KindActivation Kind = "activation"
	// KindErasure rows hold Erasure, by the name of the key that was destroyed.
	KindErasure Kind = "erasure"
	// KindHold rows hold Hold, by HoldKey.
	KindHold Kind = "hold"
	// KindIncarnation has one row, CurrentIncarnation, which holds Incarnation; there is none before the first restore.
	KindIncarnation Kind = "incarnation"
)

// Kinds lists the projections.
func Kinds() []Kind {
	return []Kind{
		KindSession, KindSecret, KindDevice, KindDeviceCounter, KindPassport, KindRevision, KindKey, KindAlerts, KindRound,
		KindRevocation, KindRevocationEnd, KindWiped, KindDemand, KindSweep, KindStaged, KindProposal, KindShadow, KindTrust,
		KindDenial, KindActivation, KindErasure, KindHold, KindIncarnation,
	}
}

// ActiveRevision is the key of the KindRevision row that holds the active revision.
const ActiveRevision = "active"

// RowKey addresses a projection row.
type RowKey struct {
	Kind Kind
	Key  string
}

// Row is a projection row. Value is canonical JSON; Seq is the index of the event that wrote it last,
// plus one, so that 0 stands for a row that never was.
type Row struct {
	RowKey
	Value []byte
	Seq   int64
	// Opened is set by Snapshot.Sessions: the index of the event that opened the session.
	Opened int64
	// Fault is set by Snapshot.Rows when the columns by which the store finds the row disagree with Value.
	Fault string

	memo *atomic.Pointer[any] // Value decoded, shared by copies of the row
}

// NewRow returns a row that remembers its decoded value; stores that keep rows in memory make them with it.
func NewRow(key RowKey, value []byte, seq int64) Row {
	return Row{RowKey: key, Value: value, Seq: seq, memo: new(atomic.Pointer[any])}
}

// decode returns the value of a row. It is shared: nobody changes what it points to.
func decode[T any](r Row) (v T, err error) {
	if r.memo != nil {
		if known := r.memo.Load(); known != nil {
			if v, ok := (*known).(T); ok {
				return v, nil
			}
		}
	}
	if err := event.Unmarshal(r.Value, &v); err != nil {
		return v, fmt.Errorf("%w: %s %q: %w", ErrTampered, r.Kind, r.Key, err)
	}
	r.remember(v)
	return v, nil
}

func (r Row) remember(v any) {
	if r.memo != nil {
		r.memo.Store(&v)
	}
}

// Precondition demands that a row is still at Seq when the commit takes effect; 0 demands its absence.
type Precondition struct {
	RowKey
	Seq int64
}

// Counter demands that fewer than Max commits counted under Key in the window that starts at Window, and
// counts this one. Counters are not projections; a window that is over is swept.
type Counter struct {
	Key    string
	Window time.Time
	Length time.Duration
	Max    uint32
}

// Request is an idempotency row: the reply that the same key and the same Owner gets again until Expires,
// or until Session (if any) has ended.
type Request struct {
	Key     string
	Owner   [32]byte
	Reply   []byte
	Expires time.Time
	Session event.ID
	Index   int64 // of the event that was committed with it; set by the store
}

// Blob is ciphertext, or a public archive, that lies beside the ledger: its digest stands in the event
// that brings it.
type Blob struct {
	Key    string
	Data   []byte
	Digest event.Digest // SHA-256 of Data
}

// Commit is one event with all that has to take effect together with it, or not at all.
type Commit struct {
	Event    event.Event
	Reply    event.Digest // the digest that the client gets; zero: none
	Require  []Precondition
	Counters []Counter
	Request  *Request
	Blob     *Blob
}

// Result says where an event stands in the log.
type Result struct {
	Index     int64 // of the leaf, from 0
	Leaf      event.Leaf
	ReplySalt event.Salt
}

// Record is a commit as the store gets it: the event encrypted, its leaf made, its effects described.
// Event stays readable for the projection, which runs inside the store's transaction.
type Record struct {
	Commit
	Leaf    event.Leaf
	Subject string // name of the key that Body is sealed under: subject#id, or "" for the ledger's own
	Body    []byte // sealed event, see package ledger
	// NewSubject is the wrapped key under which Body is sealed, when the subject may have none in the
	// store yet. The store keeps the first one; a record with another one gets ErrSubjectKey.
	NewSubject []byte
}

// Outcome is what became of one record of a batch: an index and the rows that changed, or an error that
// wraps one of the sentinels.
type Outcome struct {
	Index   int64
	Changed []Row
	Err     error
}

// Stored is an event as it lies in the store.
type Stored struct {
	Index   int64
	ID      event.ID
	Leaf    event.Leaf
	Subject string
	Body    []byte
}

// Store keeps events and projections durably. Implementations: sqlite, and a volatile and a hostile one
// for tests.
//
// Append applies the records in order inside ONE transaction. For each: the event's id and the request key
// are free, the preconditions hold, the counters are below their limits, Project applies; then event row,
// projection rows, blob, subject key and request row are written. An event.SubjectErased also takes away its key (for
// good: a record that would bring it back gets ErrSubjectKey), the request rows of its events, their KindDenial rows,
// which no event names, and the RoundBlob of its sessions; it is refused with ErrPrecondition if there is no such key, or an event under it at or after Seen. Nothing
// of what was taken away stays in a file of the store once every snapshot from before is closed. A record that is refused leaves nothing
// and does not disturb the others. When Append returns a nil error, everything it reports as done is
// durable. An error that wraps ErrNotApplied left nothing of the whole batch; after any other one nothing is
// known: the batch may or may not have taken effect, until Recover. The index of an event is gapless and
// given inside the transaction, in an order in which each event follows those that it depends on.
//
// Recover drops the handle and opens the store anew. After a nil error no earlier Append can take effect any
// more, what a Snapshot shows is durable, and a write has been made durable to prove it. It never retries an
// fsync that failed: it writes anew what has to be durable.
//
// Snapshot gives a consistent view for reading; it never blocks Append. Sweep deletes up to max request
// rows and counters that were over before now. All methods are safe for concurrent use, but Append is
// called by one goroutine, and Recover not while that one is in Append.
type Store interface {
	Append(ctx context.Context, batch []Record) ([]Outcome, error)
	Snapshot(ctx context.Context) (Snapshot, error)
	Sweep(ctx context.Context, now time.Time, max int) (int, error)
	Recover(ctx context.Context) error
	Close() error
}

// Snapshot reads one consistent state of a store, by one goroutine at a time. Close releases it.
type Snapshot interface {
	// Row returns ErrNotFound for a row that is not there.
	Row(ctx context.Context, key RowKey) (Row, error)
	// Rows lists up to max rows of a kind whose key is greater than after, by key.
	Rows(ctx context.Context, kind Kind, after string, max int) ([]Row, error)
	// Sessions lists up to q.Max sessions that match, the newest first; what was due first comes first
	// in a query by time.
	Sessions(ctx context.Context, q SessionQuery) ([]Row, error)
	// Scan passes all sessions that match to f, in an order that is the store's own; each row is good until f returns.
	// Of q it knows Principal, Secret, Device, From and Below.
	Scan(ctx context.Context, q SessionQuery, f func(Row) error) error
	// Recipients passes each delivery of a secret, from index from on and below index below, to f: by principal, and
	// for each by index.
	Recipients(ctx context.Context, secret string, from, below int64, f func(principal string, index int64) error) error
	// Events lists up to max events from index from, in order.
	Events(ctx context.Context, from int64, max int) ([]Stored, error)
	// Leaves is Events with nothing but index and leaf: the log integrates all of them all the time.
	Leaves(ctx context.Context, from int64, max int) ([]Stored, error)
	// Find returns the event with this id, or ErrNotFound.
	Find(ctx context.Context, id event.ID) (Stored, error)
	Size(ctx context.Context) (int64, error)
	Request(ctx context.Context, key string) (Request, error)
	Blob(ctx context.Context, key string) ([]byte, error)
	SubjectKey(ctx context.Context, subject string) ([]byte, error)
	Close() error
}

// SessionQuery selects sessions by index. Empty fields select everything.
type SessionQuery struct {
	Principal string
	Secret    string
	Device    string
	States    []string
	// ExpiresBefore selects sessions that have not ended and whose end is at or before it.
	ExpiresBefore time.Time
	// LiveFrom selects sessions that have not ended, by their end and then by id: those that end at LiveFrom come
	// after the session LiveAfter. It is how all that live are gone through while some of them end.
	LiveFrom  time.Time
	LiveAfter string
	// ReceiptBefore selects issued sessions whose receipt was due at or before it, and that live on.
	ReceiptBefore time.Time
	Before        string // session id: continue a listing below it; not for queries by time
	// From and Below select sessions that an event from index From on and below index Below opened. A Below of 0
	// stands for no limit.
	From, Below int64
	Max         int // at most MaxPage, which 0 stands for
}

// MaxPage is the largest number of rows or events that one call returns.
const MaxPage = 1000
