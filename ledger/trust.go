package ledger

import (
	"context"

	"github.com/bulla-project/bulla/ledger/event"
)

// Trust is the projection of a trust bundle that certificates were judged by.
type Trust struct {
	TrustDomain string     `json:"trust_domain"`
	Observed    event.Time `json:"observed_at"`
}

// trustObserved takes each bundle once: events that name it come later than the row says.
func (p projection) trustObserved(b event.TrustObserved) error {
	if b.TrustDomain == "" || len(b.Authorities) == 0 || b.Bundle != event.TrustDigest(b.TrustDomain, b.Authorities) {
		return refuse("trust bundle of %q: it has another digest, or no authorities", b.TrustDomain)
	}
	switch _, ok, err := get[Trust](p, KindTrust, b.Bundle.String()); {
	case err != nil:
		return err
	case ok:
		return refuse("trust bundle %s is known", b.Bundle)
	}
	return put(p, KindTrust, b.Bundle.String(), Trust{b.TrustDomain, p.time})
}

// Trust returns the trust bundle with this digest, in hexadecimal.
func (l *Ledger) Trust(ctx context.Context, digest string) (Trust, int64, error) {
	return read[Trust](ctx, l, KindTrust, digest)
}
