package broker

import (
	"context"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/secret/keys"
)

// GenerateSecret makes a key inside the broker and adds it as a version: a put of which nobody saw the value.
func (s secrets) GenerateSecret(ctx context.Context, in *bullav1.GenerateSecretRequest) (*bullav1.GenerateSecretReply, error) {
	name, err := secret.ParseName(in.GetName())
	if err != nil {
		return nil, wrong("%v", err)
	}
	if kind, err := secret.ParseType(in.GetType()); in.GetType() != "" && (err != nil || !kind.IsKey()) {
		return nil, wrong("the broker can't make a secret of type %q: use ecdsa-p256, ed25519, hmac-sha256 or aes-256-gcm", clip(in.GetType()))
	}
	if _, err := event.ParseID(in.GetRequestId()); err != nil {
		return nil, wrong("the request id is not a UUID of version 7")
	}
	return twice(func() (*bullav1.GenerateSecretReply, error) { return s.generate(ctx, name, in) })
}

func (s secrets) generate(ctx context.Context, name secret.Name, in *bullav1.GenerateSecretRequest) (*bullav1.GenerateSecretReply, error) {
	kind := secret.Type(in.GetType())
	op, t, class, err := s.authorisePut(ctx, name, in.GetClass(), func(t target) secret.Type {
		if kind == "" && len(t.secret.Versions) > 0 {
			kind = typeOf(t.secret)
		}
		return kind
	})
	if err != nil {
		return nil, err
	}
	if !kind.IsKey() {
		return nil, wrong("%s is no key: name a type with --type, and another name where it is taken", name)
	}
	value, err := keys.Generate(kind)
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	defer value.Zero()
	key, err := keys.Parse(kind, 1, value) // for its public half, which has no version
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	public, err := key.Public().JWK()
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	commit, put, err := s.putCommit(op, t, class, made{value: value, kind: kind, public: public})
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	reply := &bullav1.GenerateSecretReply{Name: put.GetName(), Version: put.GetVersion(), Class: put.GetClass(), Type: string(kind), PublicKey: public}
	request := ledger.Request{
		Key:   "generate/" + op.id.String() + "/" + in.GetRequestId(),
		Owner: s.ring.NameHash("generate\x00" + name.String() + "\x00" + class.String() + "\x00" + string(kind)),
	}
	return commitPut(ctx, s, op, commit, request, reply)
}

// typeOf is the type of a secret, which is that of each of its versions.
func typeOf(s ledger.Secret) secret.Type {
	return target{version: s.Versions[len(s.Versions)-1]}.keyType()
}
