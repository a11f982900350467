package broker

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/keyring"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/secret"
)

// maxPage is how many rows one listing returns at most.
const maxPage = 1000

// secrets is the service that manages secrets; it never shows a value.
type secrets struct {
	bullav1.UnimplementedSecretsServer
	*Broker
}

// PutSecret adds a version.
func (s secrets) PutSecret(ctx context.Context, in *bullav1.PutSecretRequest) (*bullav1.PutSecretReply, error) {
	value := secret.NewBytes(in.GetValue())
	defer value.Zero()
	name, err := secret.ParseName(in.GetName())
	if err != nil {
		return nil, wrong("%v", err)
	}
	if value.Len() == 0 || value.Len() > secret.MaxValue {
		return nil, wrong("the value has %d bytes: 1 to %d are allowed", value.Len(), secret.MaxValue)
	}
	if _, err := event.ParseID(in.GetRequestId()); err != nil {
		return nil, wrong("the request id is not a UUID of version 7")
	}
	return twice(func() (*bullav1.PutSecretReply, error) {
		return s.put(ctx, name, in, value)
	})
}

func (s secrets) put(ctx context.Context, name secret.Name, in *bullav1.PutSecretRequest, value secret.Bytes) (*bullav1.PutSecretReply, error) {
	op, t, parsed, err := s.authorisePut(ctx, name, in.GetClass(), func(target) secret.Type { return secret.TypeOpaque })
	if err != nil {
		return nil, err
	}
	shared, err := sourceSplit(op, name, value, in.GetSplitBinding())
	if err != nil {
		return nil, err
	}
	commit, reply, err := s.putCommit(op, t, parsed, made{value: value, kind: secret.TypeOpaque, split: shared})
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	// The keyed hash says whether a retry brings the same value, and tells a reader of the store nothing.
	digest := sha256.Sum256(value.Expose())
	owner := s.ring.NameHash("put\x00" + name.String() + "\x00" + parsed.String() + "\x00" + string(digest[:]))
	return commitPut(ctx, s, op, commit, ledger.Request{Key: "put/" + op.id.String() + "/" + in.GetRequestId(), Owner: owner}, reply)
}

// authorisePut asks policy for a new version of a secret. Without a class it keeps the one that it has.
func (s secrets) authorisePut(ctx context.Context, name secret.Name, class string, kind func(target) secret.Type) (operation, target, secret.Class, error) {
	t, err := s.target(ctx, ask{name: name})
	if err != nil {
		return operation{}, target{}, secret.Class{}, s.unavailable(err)
	}
	if class == "" && t.exists {
		class = t.secret.Class
	}
	// Whether a class has to be named depends on whether the secret exists, which not everybody may learn.
	parsed, nameless := secret.ParseClass(class)
	facts := secretFacts(t)
	facts.NewClass, facts.NewType = parsed.String(), kind(t).Recorded()
	op, err := s.authorise(ctx, policy.ActionSecretPut, policy.Resource{Kind: policy.KindSecret, Secret: facts})
	var denied *refusal
	if nameless != nil && (err == nil || errors.As(err, &denied) && len(denied.reasons) > 0) {
		if class == "" {
			return operation{}, target{}, secret.Class{}, wrong("a new secret needs a class: name one with --class")
		}
		return operation{}, target{}, secret.Class{}, wrong("%v: name one with --class", nameless)
	}
	if err != nil {
		return operation{}, target{}, secret.Class{}, err
	}
	if n := len(t.secret.Versions); n > 0 && t.secret.Versions[n-1].Type != kind(t).Recorded() {
		is, _ := secret.ParseRecordedType(t.secret.Versions[n-1].Type)
		return operation{}, target{}, secret.Class{}, wrong("%s is of type %s, which can't become %s: choose another name", name, is, kind(t))
	}
	return op, t, parsed, nil
}

// commitPut commits a new version, or finds the answer that the same request got before.
func commitPut[R any, P interface {
	*R
	proto.Message
}](ctx context.Context, s secrets, op operation, commit ledger.Commit, request ledger.Request, reply P) (P, error) {
	stored, err := proto.Marshal(reply)
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	request.Reply, request.Expires = stored, op.now.Add(putMemory)
	commit.Request = &request
	_, err = s.ledger.Commit(ctx, commit)
	if errors.Is(err, ledger.ErrDuplicateRequest) {
		return putBefore[R, P](ctx, s, op, request)
	}
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	return reply, nil
}

// putBefore is the answer to a put that took effect already: the same one, for the same value.
func putBefore[R any, P interface {
	*R
	proto.Message
}](ctx context.Context, s secrets, op operation, again ledger.Request) (P, error) {
	before, err := s.ledger.Request(ctx, again.Key)
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	if before.Owner != again.Owner {
		return nil, refuse(codes.AlreadyExists, checkRequest, "this request id was used for another put: choose a new one")
	}
	reply := P(new(R))
	if err := proto.Unmarshal(before.Reply, reply); err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	return reply, nil
}

// made is the content of a new version.
type made struct {
	value  secret.Bytes
	kind   secret.Type
	public []byte             // JWK of a signature key
	split  *event.SourceSplit // nil: the broker can read the value
}

// putCommit seals the value and describes the change.
func (s secrets) putCommit(op operation, t target, class secret.Class, content made) (ledger.Commit, *bullav1.PutSecretReply, error) {
	version := ledger.SecretVersion{
		Version: 1, RecordID: event.NewID(op.now), Class: class.String(), Owner: op.id.String(), Policy: op.permit.active.digest,
		Type: content.kind.Recorded(),
	}
	if n := len(t.secret.Versions); n > 0 {
		version.Version = t.secret.Versions[n-1].Version + 1
	}
	sealed, err := s.ring.Seal(keyring.PurposeSecret, content.value.Expose(), secretAAD(t.name, version).Bytes())
	if err != nil {
		return ledger.Commit{}, nil, err
	}
	digest := event.Digest(sha256.Sum256(sealed))
	return ledger.Commit{
		Event: event.New(op.now, op.id.String(), event.SecretPut{
			Name: t.name, Class: class.String(), Version: version.Version, RecordID: version.RecordID, Owner: version.Owner,
			Policy: version.Policy, CiphertextDigest: digest, By: op.by(), Type: version.Type, PublicKey: content.public, Split: content.split,
		}),
		Require: []ledger.Precondition{op.permit.active.unchanged(), t.unchanged()},
		Blob:    &ledger.Blob{Key: ledger.SecretBlob(version.RecordID), Data: sealed, Digest: digest},
	}, &bullav1.PutSecretReply{Name: t.name, Version: version.Version, Class: class.String()}, nil
}

// GetSecretMetadata shows one secret's metadata.
func (s secrets) GetSecretMetadata(ctx context.Context, in *bullav1.GetSecretMetadataRequest) (*bullav1.SecretMetadata, error) {
	name, err := secret.ParseName(in.GetName())
	if err != nil {
		return nil, wrong("%v", err)
	}
	t, err := s.target(ctx, ask{name: name})
	if err != nil {
		return nil, s.unavailable(err)
	}
	if _, err := s.read(ctx, policy.ActionSecretShow, policy.Resource{Kind: policy.KindSecret, Secret: secretFacts(t)}); err != nil {
		return nil, err
	}
	if !t.exists {
		return nil, missing("there is no secret %s", name)
	}
	return secretReply(t.secret), nil
}

// ListSecrets lists metadata of the secrets that the caller may see one by one: what reading denies, a
// listing does not show.
func (s secrets) ListSecrets(ctx context.Context, in *bullav1.ListSecretsRequest) (*bullav1.ListSecretsReply, error) {
	op, err := s.read(ctx, policy.ActionSecretList, policy.Resource{Kind: policy.KindSecret})
	if err != nil {
		return nil, err
	}
	limit, out := page(in.GetLimit()), new(bullav1.ListSecretsReply)
	after := in.GetAfter()
	for {
		rows, err := s.ledger.Secrets(ctx, after, limit)
		if err != nil {
			return nil, s.answer(ctx, op.caller, err)
		}
		for _, row := range rows {
			after = row.Name
			if !strings.HasPrefix(row.Name, in.GetPrefix()) {
				continue
			}
			if !s.sees(ctx, op, row) {
				continue
			}
			out.Secrets = append(out.Secrets, secretReply(row))
			if len(out.Secrets) == limit {
				out.Next = after
				return out, nil
			}
		}
		if len(rows) < limit {
			return out, nil
		}
	}
}

// sees asks the policy that permitted the listing whether its caller may see this entry.
func (s secrets) sees(ctx context.Context, op operation, row ledger.Secret) bool {
	facts := secretFacts(target{name: row.Name, exists: true, secret: row, version: row.Versions[len(row.Versions)-1]})
	return s.shows(ctx, op, policy.ActionSecretShow, policy.Resource{Kind: policy.KindSecret, Secret: facts})
}

func secretReply(s ledger.Secret) *bullav1.SecretMetadata {
	out := &bullav1.SecretMetadata{Name: s.Name, Class: s.Class, Exposure: s.Exposure, Type: string(typeOf(s))}
	for _, v := range s.Versions {
		out.Versions = append(out.Versions, &bullav1.SecretVersion{
			Version: v.Version, Stage: string(v.Stage), CreatedAt: timestamppb.New(v.Created.Time()), Owner: v.Owner, PublicKey: v.PublicKey,
		})
	}
	return out
}

func page(limit uint32) int {
	if limit == 0 || limit > maxPage {
		return maxPage
	}
	return int(limit)
}
