package event

// Restored begins a new incarnation of the ledger: its store came back without events that had been signed. Those before
// this one are kept and are the beginning of the new log, which has a name and a key of its own: the old log is never
// signed again. Sessions that were live end by the events that follow; nothing else is revoked by it.
type Restored struct {
	Incarnation uint32    `json:"incarnation"` // 2 for the first one after the genesis's
	Origin      string    `json:"origin"`      // the log's name from here on
	LogKey      string    `json:"log_key"`
	Previous    string    `json:"previous"` // the name of the log that these events were in
	Known       KnownHead `json:"known"`
}

// KnownHead is the newest checkpoint that was known of the log before: how much of it there was, by the word of its key.
type KnownHead struct {
	Origin string `json:"origin"`
	Size   int64  `json:"size"`
	Root   string `json:"root"`   // base64, as in a checkpoint
	Signed []byte `json:"signed"` // the checkpoint itself
}

// TypeRestored is the type of Restored.
const TypeRestored Type = "log.restored"

// EventType implements Body.
func (Restored) EventType() Type { return TypeRestored }
