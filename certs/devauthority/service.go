package devauthority

import (
	"context"
	"crypto/x509"
	"encoding/json"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	maxAudiences      = 16
	maxAudienceLength = 1024 // bytes
)

// service is the SPIFFE Workload API for one identity. What it does not implement (WIT-SVIDs) answers Unimplemented.
type service struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	authority *Authority
	endpoint  *endpoint
}

// FetchX509SVID streams the SVID with its key and all X.509 bundles, anew whenever one of them changes.
func (s *service) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	var sent *issued
	return s.follow(stream.Context(), func(current *issued, p *published, bundlesChanged bool) error {
		if current == sent && !bundlesChanged {
			return nil
		}
		key, err := x509.MarshalPKCS8PrivateKey(current.svid.PrivateKey)
		if err != nil {
			return status.Error(codes.Internal, "the key of the SVID can't be encoded")
		}
		sent = current
		return stream.Send(&workload.X509SVIDResponse{
			Svids: []*workload.X509SVID{{
				SpiffeId:    s.endpoint.id.String(),
				X509Svid:    current.svid.Certificates[0].Raw,
				X509SvidKey: key,
				Bundle:      p.ownX509,
			}},
			FederatedBundles: p.federatedX509,
		})
	})
}

// FetchX509Bundles streams all X.509 bundles, anew whenever one changes.
func (s *service) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	return s.follow(stream.Context(), func(_ *issued, p *published, changed bool) error {
		if !changed {
			return nil
		}
		return stream.Send(&workload.X509BundlesResponse{Bundles: p.allX509})
	})
}

// FetchJWTBundles streams all JWT bundles, anew whenever a bundle changes.
func (s *service) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	return s.follow(stream.Context(), func(_ *issued, p *published, changed bool) error {
		if !changed {
			return nil
		}
		return stream.Send(&workload.JWTBundlesResponse{Bundles: p.allJWT})
	})
}

// follow calls send with the state now and after each change, until the stream ends or the Authority closes.
func (s *service) follow(ctx context.Context, send func(current *issued, p *published, bundlesChanged bool) error) error {
	var last *published
	for {
		s.authority.mu.Lock()
		current, p, changed := s.endpoint.current, s.authority.published, s.authority.changed
		s.authority.mu.Unlock()
		if err := send(current, p, p != last); err != nil {
			return err
		}
		last = p
		select {
		case <-changed:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-s.authority.done:
			return status.Error(codes.Unavailable, "the development authority ends")
		}
	}
}

// FetchJWTSVID issues a JWT-SVID for the audiences asked for.
func (s *service) FetchJWTSVID(_ context.Context, req *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	if err := checkAudiences(req.GetAudience()); err != nil {
		return nil, err
	}
	if want := req.GetSpiffeId(); want != "" && want != s.endpoint.id.String() {
		return nil, status.Error(codes.PermissionDenied, "no identity issued: this socket is for another SPIFFE ID")
	}
	a := s.authority
	now := a.cfg.Now()
	token, err := a.view().keys.signer(now).issueJWT(s.endpoint.id, req.GetAudience(), now, min(a.cfg.TTL, maxJWTTTL))
	if err != nil {
		return nil, status.Error(codes.Internal, "the JWT-SVID can't be issued")
	}
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: s.endpoint.id.String(), Svid: token}}}, nil
}

func checkAudiences(audiences []string) error {
	if len(audiences) == 0 || len(audiences) > maxAudiences {
		return status.Errorf(codes.InvalidArgument, "1 to %d audiences must be given", maxAudiences)
	}
	for _, audience := range audiences {
		if audience == "" || len(audience) > maxAudienceLength {
			return status.Errorf(codes.InvalidArgument, "an audience has 1 to %d bytes", maxAudienceLength)
		}
	}
	return nil
}

// ValidateJWTSVID verifies a JWT-SVID against the own and the federated bundles, for one audience.
func (s *service) ValidateJWTSVID(_ context.Context, req *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	switch {
	case req.GetAudience() == "":
		return nil, status.Error(codes.InvalidArgument, "audience must be given")
	case req.GetSvid() == "":
		return nil, status.Error(codes.InvalidArgument, "svid must be given")
	}
	svid, err := jwtsvid.ParseAndValidate(req.GetSvid(), s.authority.view().published.jwtBundles, []string{req.GetAudience()})
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	claims, err := claimsOf(svid)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "the claims can't be represented")
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: svid.ID.String(), Claims: claims}, nil
}

// claimsOf goes through JSON, since structpb does not know the number types of a decoded token.
func claimsOf(svid *jwtsvid.SVID) (*structpb.Struct, error) {
	document, err := json.Marshal(svid.Claims)
	if err != nil {
		return nil, err
	}
	claims := new(structpb.Struct)
	if err := protojson.Unmarshal(document, claims); err != nil {
		return nil, err
	}
	return claims, nil
}
