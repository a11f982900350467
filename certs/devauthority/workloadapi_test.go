package devauthority_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func withAddr(addr string) workloadapi.SourceOption {
	return workloadapi.WithClientOptions(workloadapi.WithAddr(addr))
}

func client(t testing.TB, addr string) *workloadapi.Client {
	t.Helper()
	c, err := workloadapi.New(t.Context(), workloadapi.WithAddr(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestX509SourceOfGoSpiffeWorksUnchanged(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.TTL = time.Second
	a := start(t, cfg)
	src, err := workloadapi.NewX509Source(t.Context(), withAddr(serve(t, a)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	first, err := src.GetX509SVID()
	if err != nil || first.ID != workloadID {
		t.Fatalf("GetX509SVID: %v, %v", first, err)
	}
	if id, _, err := x509svid.Verify(first.Certificates, src); err != nil || id != workloadID {
		t.Errorf("it does not verify: %v, %v", id, err)
	}
	wait(t, src.Updated(), "it is renewed", func() bool {
		svid, err := src.GetX509SVID()
		return err == nil && !svid.Certificates[0].Equal(first.Certificates[0])
	})
	if _, err := a.RotateAuthority(); err != nil {
		t.Fatal(err)
	}
	wait(t, src.Updated(), "the new authority is in the bundle", func() bool {
		bundle, err := src.GetX509BundleForTrustDomain(a.TrustDomain())
		return err == nil && bundle.Equal(a.Bundle().X509Bundle()) && len(bundle.X509Authorities()) == 2
	})
}

func TestTaintRenewsAtOnce(t *testing.T) {
	a := start(t, config(t.TempDir())) // an hour: no renewal by time
	src, err := workloadapi.NewX509Source(t.Context(), withAddr(serve(t, a)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	second, err := a.RotateAuthority()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.TaintAuthority(a.Authorities()[0].ID); err != nil {
		t.Fatal(err)
	}
	wait(t, src.Updated(), "the SVID comes from the new authority", func() bool {
		svid, err := src.GetX509SVID()
		return err == nil && svid.Certificates[0].Issuer.SerialNumber == second
	})
	if bundle, err := src.GetX509BundleForTrustDomain(a.TrustDomain()); err != nil || len(bundle.X509Authorities()) != 2 {
		t.Errorf("the tainted authority left the bundle: %v", err)
	}
}

func TestJWTSourceOfGoSpiffeWorksUnchanged(t *testing.T) {
	a := start(t, config(t.TempDir()))
	addr := serve(t, a)
	src, err := workloadapi.NewJWTSource(t.Context(), withAddr(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	svid, err := src.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "one", ExtraAudiences: []string{"two"}, Subject: workloadID})
	if err != nil {
		t.Fatal(err)
	}
	if life := time.Until(svid.Expiry); svid.ID != workloadID || len(svid.Audience) != 2 || life > 5*time.Minute || life < 4*time.Minute {
		t.Errorf("JWT-SVID of %s for %v, lives %s", svid.ID, svid.Audience, life)
	}
	if got, err := jwtsvid.ParseAndValidate(svid.Marshal(), src, []string{"two"}); err != nil || got.ID != workloadID {
		t.Errorf("it does not validate: %v, %v", got, err)
	}
	c := client(t, addr)
	if got, err := c.ValidateJWTSVID(t.Context(), svid.Marshal(), "one"); err != nil || got.ID != workloadID {
		t.Errorf("ValidateJWTSVID: %v, %v", got, err)
	}
	for name, call := range map[string]func() error{
		"another audience": func() error { _, err := c.ValidateJWTSVID(t.Context(), svid.Marshal(), "three"); return err },
		"a cut token":      func() error { _, err := c.ValidateJWTSVID(t.Context(), svid.Marshal()[:100], "one"); return err },
		"no token":         func() error { _, err := c.ValidateJWTSVID(t.Context(), "", "one"); return err },
		"no audience":      func() error { _, err := c.ValidateJWTSVID(t.Context(), svid.Marshal(), ""); return err },
		"an empty audience": func() error {
			_, err := c.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: ""})
			return err
		},
		"too many audiences": func() error {
			_, err := c.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "a", ExtraAudiences: make([]string, 16)})
			return err
		},
	} {
		if err := call(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v; want InvalidArgument", name, err)
		}
	}
	stranger := jwtsvid.Params{Audience: "one", Subject: spiffeid.RequireFromString("spiffe://td.test/operator")}
	if _, err := c.FetchJWTSVID(t.Context(), stranger); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a JWT-SVID of somebody else: %v; want PermissionDenied", err)
	}
	if _, err := c.FetchWITSVID(t.Context(), ""); status.Code(err) != codes.Unimplemented {
		t.Errorf("a WIT-SVID: %v; want Unimplemented", err)
	}
}

func TestBundleSourceOfGoSpiffeWorksUnchanged(t *testing.T) {
	a := start(t, config(t.TempDir()))
	otherCfg := config(t.TempDir())
	otherCfg.TrustDomain = "other.test"
	other := start(t, otherCfg)
	addr := serve(t, a)
	src, err := workloadapi.NewBundleSource(t.Context(), withAddr(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	if b, err := src.GetX509BundleForTrustDomain(a.TrustDomain()); err != nil || !b.Equal(a.Bundle().X509Bundle()) {
		t.Errorf("own bundle: %v, %v", b, err)
	}
	if err := a.AddFederatedBundle(a.Bundle()); err == nil {
		t.Error("the own bundle was taken as a federated one")
	}
	if err := a.AddFederatedBundle(other.Bundle()); err != nil {
		t.Fatal(err)
	}
	wait(t, src.Updated(), "the federated bundles arrive", func() bool {
		x, xErr := src.GetX509BundleForTrustDomain(other.TrustDomain())
		j, jErr := src.GetJWTBundleForTrustDomain(other.TrustDomain())
		return xErr == nil && jErr == nil && x.Equal(other.Bundle().X509Bundle()) && j.Equal(other.Bundle().JWTBundle())
	})
	c := client(t, addr)
	x509Context, err := c.FetchX509Context(t.Context())
	if err != nil || !x509Context.Bundles.Has(other.TrustDomain()) || !x509Context.Bundles.Has(a.TrustDomain()) {
		t.Errorf("FetchX509Context lacks a bundle: %v", err)
	}
	if err := a.RemoveFederatedBundle(other.TrustDomain()); err != nil {
		t.Fatal(err)
	}
	wait(t, src.Updated(), "the federated bundle goes", func() bool {
		_, err := src.GetX509BundleForTrustDomain(other.TrustDomain())
		return err != nil
	})
}

// recorder is a watcher of go-spiffe for all three streams.
type recorder struct {
	mu      sync.Mutex
	x509    int
	bundles int
	jwt     int
	errs    []error
	signal  chan struct{}
}

func (r *recorder) count(what *int) {
	r.mu.Lock()
	*what++
	r.mu.Unlock()
	r.wake()
}

func (r *recorder) fail(err error) {
	r.mu.Lock()
	r.errs = append(r.errs, err)
	r.mu.Unlock()
	r.wake()
}

func (r *recorder) wake() {
	select {
	case r.signal <- struct{}{}:
	default:
	}
}

func (r *recorder) OnX509ContextUpdate(*workloadapi.X509Context) { r.count(&r.x509) }
func (r *recorder) OnX509ContextWatchError(err error)            { r.fail(err) }
func (r *recorder) OnX509BundlesUpdate(*x509bundle.Set)          { r.count(&r.bundles) }
func (r *recorder) OnX509BundlesWatchError(err error)            { r.fail(err) }
func (r *recorder) OnJWTBundlesUpdate(*jwtbundle.Set)            { r.count(&r.jwt) }
func (r *recorder) OnJWTBundlesWatchError(err error)             { r.fail(err) }

func (r *recorder) has(x509, bundles, jwt, errs int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.x509 >= x509 && r.bundles >= bundles && r.jwt >= jwt && len(r.errs) >= errs
}

func TestWatchersSeeEveryChangeAndTheEnd(t *testing.T) {
	a := start(t, config(t.TempDir()))
	c := client(t, serve(t, a))
	ctx, stop := context.WithCancel(t.Context())
	r := &recorder{signal: make(chan struct{}, 1)}
	var watches sync.WaitGroup
	watches.Go(func() { _ = c.WatchX509Context(ctx, r) })
	watches.Go(func() { _ = c.WatchX509Bundles(ctx, r) })
	watches.Go(func() { _ = c.WatchJWTBundles(ctx, r) })
	defer watches.Wait()
	defer stop()
	wait(t, r.signal, "each stream says how things are", func() bool { return r.has(1, 1, 1, 0) })
	if _, err := a.RotateAuthority(); err != nil {
		t.Fatal(err)
	}
	wait(t, r.signal, "each stream tells of the rotation", func() bool { return r.has(2, 2, 2, 0) })
	if r.has(0, 0, 0, 1) {
		t.Errorf("errors while all was well: %v", r.errs)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	wait(t, r.signal, "each stream ends", func() bool { return r.has(0, 0, 0, 3) })
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, err := range r.errs {
		if status.Code(err) != codes.Unavailable {
			t.Errorf("the end of a stream: %v; want Unavailable, after which clients try again", err)
		}
	}
}

func TestManyStreamsAtOnce(t *testing.T) {
	a := start(t, config(t.TempDir()))
	addr := serve(t, a)
	r := &recorder{signal: make(chan struct{}, 1)}
	ctx, stop := context.WithCancel(t.Context())
	var watches sync.WaitGroup
	const clients, each = 4, 50
	for range clients {
		c := client(t, addr)
		for range each {
			watches.Go(func() { _ = c.WatchX509Context(ctx, r) })
		}
	}
	defer watches.Wait()
	defer stop()
	wait(t, r.signal, "all have an SVID", func() bool { return r.has(clients*each, 0, 0, 0) })
	if _, err := a.RotateAuthority(); err != nil {
		t.Fatal(err)
	}
	wait(t, r.signal, "all have the new bundle", func() bool { return r.has(2*clients*each, 0, 0, 0) })
}

func TestSecurityHeaderIsRequired(t *testing.T) {
	addr := serve(t, start(t, config(t.TempDir())))
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	api := workload.NewSpiffeWorkloadAPIClient(conn)
	ctx, cancel := context.WithCancel(t.Context()) // ends the streams
	defer cancel()
	calls := map[string]func(context.Context) error{
		"FetchX509SVID": func(ctx context.Context) error { return first(api.FetchX509SVID(ctx, &workload.X509SVIDRequest{})) },
		"FetchX509Bundles": func(ctx context.Context) error {
			return first(api.FetchX509Bundles(ctx, &workload.X509BundlesRequest{}))
		},
		"FetchJWTBundles": func(ctx context.Context) error { return first(api.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})) },
		"FetchJWTSVID": func(ctx context.Context) error {
			_, err := api.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}})
			return err
		},
	}
	for name, call := range calls {
		for _, values := range [][]string{{}, {"false"}, {""}, {"TRUE"}, {"true", "true"}} {
			md := metadata.MD{"workload.spiffe.io": values}
			if err := call(metadata.NewOutgoingContext(ctx, md)); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%s with header %q: %v; want InvalidArgument", name, values, err)
			}
		}
		if err := call(metadata.NewOutgoingContext(ctx, metadata.Pairs("workload.spiffe.io", "true"))); err != nil {
			t.Errorf("%s with the header: %v", name, err)
		}
	}
	validate := &workload.ValidateJWTSVIDRequest{Audience: "a", Svid: "b"}
	if _, err := api.ValidateJWTSVID(ctx, validate); status.Code(err) != codes.InvalidArgument || errors.Is(err, context.Canceled) {
		t.Errorf("ValidateJWTSVID without the header: %v; want InvalidArgument", err)
	}
}

// first waits for the first message of a stream.
func first[T any](stream grpc.ServerStreamingClient[T], err error) error {
	if err == nil {
		_, err = stream.Recv()
	}
	return err
}
