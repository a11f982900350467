package sqlite

import (
	"errors"
	"fmt"

	"modernc.org/sqlite"

	"github.com/bulla-project/bulla/ledger"
)

// Primary result codes of SQLite, see https://www.sqlite.org/rescode.html.
const (
	codeBusy       = 5
	codeLocked     = 6
	codeInterrupt  = 9
	codeTooBig     = 18
	codeConstraint = 19
	codeMismatch   = 20
	codeNotADB     = 26
)

// code returns the primary result code in err, 0 if there is none.
func code(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code() & 0xff
	}
	return 0
}

// harmless reports whether err speaks of the statement, not of the disk or the handle.
func harmless(err error) bool {
	switch code(err) {
	case codeBusy, codeLocked, codeInterrupt, codeTooBig, codeConstraint, codeMismatch:
		return true
	}
	return false
}

// undone describes an error before the end of a transaction that was rolled back.
func undone(what string, err error) error {
	if harmless(err) {
		return fmt.Errorf("%s: %w: %w", what, ledger.ErrNotApplied, err)
	}
	return fmt.Errorf("%s: %w: %w: %w", what, ledger.ErrNotApplied, ledger.ErrBroken, err)
}
