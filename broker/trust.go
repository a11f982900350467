package broker

import (
	"context"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"google.golang.org/grpc/codes"

	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
)

// noteTrust records the trust bundle by which the caller's chain is judged now, once, and returns its digest. Without
// it the chain in the log could not be checked any more when the authorities have been replaced.
func (b *Broker) noteTrust(ctx context.Context, now time.Time, who caller) (event.Digest, error) {
	bundle, err := b.source.GetX509BundleForTrustDomain(who.id.TrustDomain())
	if err == nil {
		// The bundle may be a newer one than the call was admitted by.
		_, err = certs.Verify(who.conn.chain, x509bundle.NewSet(bundle), now)
	}
	if err != nil {
		return event.Digest{}, refuse(codes.Unauthenticated, checkIdentity, "the client certificate of this connection does not hold any more: %v; connect again with a current SVID", cause(err))
	}
	var authorities [][]byte
	for _, a := range bundle.X509Authorities() {
		authorities = append(authorities, a.Raw)
	}
	seen := event.NewTrustObserved(who.id.TrustDomain().Name(), authorities)
	_, _, err = b.ledger.Trust(ctx, seen.Bundle.String())
	if !errors.Is(err, ledger.ErrNotFound) {
		return seen.Bundle, err
	}
	err = b.record(ctx, event.New(now, "", seen))
	if errors.Is(err, ledger.ErrTransition) { // another call was quicker
		_, _, err = b.ledger.Trust(ctx, seen.Bundle.String())
	}
	return seen.Bundle, err
}
