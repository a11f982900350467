package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/certs"
)

const (
	// maxMessage is the largest gRPC message that is read, in bytes: a policy bundle is the largest.
	maxMessage = 2 << 20
	// maxStreams is how many calls one connection may have under way.
	maxStreams = 128
	// maxHeaders is the largest header list of a call, in bytes.
	maxHeaders = 16 << 10
	// maxHandshakes is how many TLS handshakes run at once, and handshakeWait how long one waits for its turn.
	maxHandshakes = 32
	handshakeWait = 3 * time.Second
	// connectTime is how long a peer may take for its handshake; so many of them, over all and of one address,
	// may be at it at once. What comes on top is closed: strangers who say nothing can't use up the connections.
	connectTime         = 5 * time.Second
	maxStrangers        = 2048
	strangersPerAddress = 512
	// maxAge is how long a connection lives, and ageGrace how long its calls may go on after that.
	maxAge   = 3 * time.Minute
	ageGrace = 30 * time.Second
	// workers are long-lived goroutines for calls: fresh ones grow their stack again for each evaluation.
	workers = 64
)

// GRPC returns the server with all services, for one listener.
func (b *Broker) GRPC() *grpc.Server {
	creds := &transport{
		TransportCredentials: credentials.NewTLS(certs.ServerTLS(b.source)),
		handshakes:           make(chan struct{}, maxHandshakes), wait: handshakeWait, strangers: newConnSlots(maxStrangers, strangersPerAddress),
	}
	s := grpc.NewServer(
		grpc.Creds(creds), grpc.NumStreamWorkers(workers), grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxHeaderListSize(maxHeaders), grpc.ConnectionTimeout(connectTime),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge: maxAge, MaxConnectionAgeGrace: ageGrace, MaxConnectionIdle: 15 * time.Minute, Time: time.Minute, Timeout: 10 * time.Second,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 20 * time.Second, PermitWithoutStream: true}),
		grpc.InTapHandle(b.tap), grpc.UnaryInterceptor(b.unary), grpc.StreamInterceptor(b.stream),
		grpc.WaitForHandlers(true), // what they use is closed after Stop
	)
	bullav1.RegisterBrokerServer(s, b)
	bullav1.RegisterRoundsServer(s, rounds{Broker: b})
	bullav1.RegisterSecretsServer(s, secrets{Broker: b})
	bullav1.RegisterSessionsServer(s, sessions{Broker: b})
	bullav1.RegisterRevocationsServer(s, revocations{Broker: b})
	bullav1.RegisterStoriesServer(s, stories{Broker: b})
	bullav1.RegisterDevicesServer(s, devices{Broker: b})
	bullav1.RegisterPoliciesServer(s, policies{Broker: b})
	bullav1.RegisterRevisionsServer(s, revisions{Broker: b})
	bullav1.RegisterAuditServer(s, auditor{Broker: b})
	bullav1.RegisterProofsServer(s, prover{Broker: b})
	bullav1.RegisterQuestionsServer(s, questions{Broker: b})
	bullav1.RegisterErasuresServer(s, erasures{Broker: b})
	healthpb.RegisterHealthServer(s, health{Broker: b})
	return s
}

// health is gRPC's health service: what /ready says, to whoever may call. There is no Watch, since a stream
// would outlive its caller's certificate.
type health struct {
	healthpb.UnimplementedHealthServer
	*Broker
}

// Watch implements healthpb.HealthServer, and says that there is none.
func (h health) Watch(in *healthpb.HealthCheckRequest, out healthpb.Health_WatchServer) error {
	return h.UnimplementedHealthServer.Watch(in, out)
}

// Check implements healthpb.HealthServer.
func (h health) Check(ctx context.Context, in *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if _, err := h.caller(ctx, h.now()); err != nil {
		return nil, err
	}
	if in.GetService() != "" {
		return nil, missing("health is that of the whole broker: name no service")
	}
	out := &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}
	for _, c := range h.Health(ctx) {
		if c.Err != nil {
			out.Status = healthpb.HealthCheckResponse_NOT_SERVING
		}
	}
	return out, nil
}

// tap counts a call from its header on. The interceptors hear of it only when its whole message is there, and a
// message that never ends would be no call to them while it fills the memory.
func (b *Broker) tap(ctx context.Context, _ *tap.Info) (context.Context, error) {
	c, _, err := connOf(ctx)
	if err != nil {
		return ctx, refuse(codes.Unauthenticated, checkIdentity, "%v", err)
	}
	if !b.limits.begin(c.peer, b.now()) {
		return ctx, tooMany()
	}
	end := sync.OnceFunc(func() { b.limits.end(c.peer) })
	context.AfterFunc(ctx, end) // it ends with the stream
	return context.WithValue(ctx, begunKey{}, end), nil
}

// begunKey is under which tap leaves the end of its count.
type begunKey struct{}

// uncount ends tap's count of a call before the call ends: for streams that only wait, and are counted by other means.
func uncount(ctx context.Context) {
	if end, ok := ctx.Value(begunKey{}).(func()); ok {
		end()
	}
}

func tooMany() error {
	return refuse(codes.ResourceExhausted, checkLimit, "%d calls of this principal are under way: wait for them", maxInFlight)
}

// unary is plumbing: one principal has only so many calls under way, over all its connections, and a panic
// becomes INTERNAL, of which nothing reaches the caller.
func (b *Broker) unary(ctx context.Context, in any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (out any, err error) {
	defer b.recovered(info.FullMethod, &err)
	leave, err := b.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	b.ledger.Expect(1)
	defer b.ledger.Expect(-1)
	return next(ctx, in)
}

// enter counts a call as under way, until leave is called.
func (b *Broker) enter(ctx context.Context) (leave func(), err error) {
	c, _, err := connOf(ctx)
	if err != nil {
		return nil, refuse(codes.Unauthenticated, checkIdentity, "%v", err)
	}
	if !b.limits.enter(c.peer, b.now()) {
		return nil, tooMany()
	}
	return func() { b.limits.leave(c.peer) }, nil
}

func (b *Broker) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer b.recovered(info.FullMethod, &err)
	if info.FullMethod == bullav1.Broker_Watch_FullMethodName { // it counts its streams by itself: they are many, and wait
		return next(srv, ss)
	}
	leave, err := b.enter(ss.Context())
	if err != nil {
		return err
	}
	defer leave()
	return next(srv, ss)
}

// recovered logs where a panic came from, but not its value: that could hold anything.
func (b *Broker) recovered(method string, err *error) {
	if p := recover(); p != nil {
		b.logger.Error("panic in a call", "method", method, "panic_type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "internal error; it is in the broker's log")
	}
}

// HTTP serves /live, /ready and /metrics. It tells nothing that a peer could not know, and takes nothing.
func (b *Broker) HTTP() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /live", func(w http.ResponseWriter, _ *http.Request) { writeHealth(w, nil) })
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, r *http.Request) { writeHealth(w, b.Health(r.Context())) })
	mux.Handle("GET /metrics", b.Metrics())
	return mux
}

func writeHealth(w http.ResponseWriter, checks []Check) {
	code, answer := http.StatusOK, map[string]string{"status": "ok"}
	for _, c := range checks {
		if c.Err != nil {
			code, answer["status"] = http.StatusServiceUnavailable, "failed"
			answer[c.Name] = "failed"
			continue
		}
		answer[c.Name] = "ok"
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(answer) // the peer went away: nothing to do about it
}

// limitListener bounds the connections that are open at once: over all, and from one address.
type limitListener struct {
	net.Listener
	slots *connSlots
}

// Limit wraps a listener so that at most total connections are open, perAddress of them from one IP address.
// What comes on top is closed at once, before TLS.
func Limit(l net.Listener, total, perAddress int) net.Listener {
	return &limitListener{Listener: l, slots: newConnSlots(total, perAddress)}
}

// Accept implements net.Listener.
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host := hostOf(c.RemoteAddr())
		if l.slots.take(host) {
			return &slotConn{Conn: c, free: func() { l.slots.free(host) }}, nil
		}
		_ = c.Close()
	}
}
