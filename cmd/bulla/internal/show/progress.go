package show

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// redraw is how often a progress line is written at most.
const redraw = 100 * time.Millisecond

// Progress is a line on a terminal that says how far something is. A nil *Progress says nothing. It is used by
// one goroutine.
type Progress struct {
	w     io.Writer
	what  string
	last  time.Time
	shown int // characters on the line
}

// NewProgress returns a line that begins with what, or nil where w is no terminal.
func NewProgress(w io.Writer, terminal bool, what string) *Progress {
	if !terminal {
		return nil
	}
	return &Progress{w: w, what: what}
}

// Set shows that done of total are done; 0: of how many is not known.
func (p *Progress) Set(done, total int64) {
	if total == 0 {
		p.Count(done)
		return
	}
	if p == nil || time.Since(p.last) < redraw && done != total {
		return
	}
	p.draw(fmt.Sprintf("%s %d of %d", p.what, done, total))
}

// Count shows that done are done, of nobody knows how many.
func (p *Progress) Count(done int64) {
	if p == nil || time.Since(p.last) < redraw {
		return
	}
	p.draw(fmt.Sprintf("%s %d", p.what, done))
}

func (p *Progress) draw(text string) {
	p.last = time.Now()
	_, _ = fmt.Fprintf(p.w, "\r%s", text) // a progress line that can't be written is not worth an error
	p.shown = max(p.shown, len(text))
}

// Clear takes the line away.
func (p *Progress) Clear() {
	if p == nil || p.shown == 0 {
		return
	}
	_, _ = fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", p.shown))
	p.shown = 0
}
