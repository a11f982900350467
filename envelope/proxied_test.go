package envelope

import (
	"errors"
	"testing"

	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/secret/keys"
)

// An envelope of grade proxied holds the description of a key, and nothing that could be one.
func TestProxiedHoldsNothingButTheDescription(t *testing.T) {
	value, err := keys.Generate(secret.TypeECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	key, err := keys.Parse(secret.TypeECDSAP256, 1, value)
	if err != nil {
		t.Fatal(err)
	}
	text, err := key.Public().Encode()
	if err != nil {
		t.Fatal(err)
	}
	sc := newScene(t, SuiteHybridX25519())
	sc.input.Context.Grade, sc.input.Context.UsesEnforcedBy = GradeProxied, UsesByBroker
	seal := func(value secret.Bytes) error {
		sc.input.Secret = value
		_, err := Seal(sc.input, sc.signer)
		return err
	}
	if err := seal(secret.NewBytes(text)); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]secret.Bytes{"the key": value, "nothing": {}, "a password": secret.NewBytes([]byte("hunter2")), "more": secret.NewBytes(append(text, ' '))} {
		if err := seal(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s was sealed: %v", name, err)
		}
	}
}
