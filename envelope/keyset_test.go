package envelope

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/envelope/proof"
)

func testKey(t testing.TB, id string) Key {
	t.Helper()
	return Key{ID: id, Public: &must(proof.GenerateInstanceKey())(t).PublicKey}
}

func TestKeySet(t *testing.T) {
	for n := range 4 {
		var keys []Key
		for i := range n {
			keys = append(keys, testKey(t, fmt.Sprintf("key-%d", i)))
		}
		set := must(NewKeySet(keys...))(t)
		b := must(json.Marshal(set))(t)
		again := must(ParseKeySet(b))(t)
		if len(again.Keys()) != n {
			t.Fatalf("%d keys of %d came back", len(again.Keys()), n)
		}
		for _, k := range keys {
			if pub := again.Lookup(k.ID); pub == nil || !pub.Equal(k.Public) {
				t.Errorf("key %s did not come back", k.ID)
			}
		}
		if again.Lookup("other") != nil || again.Lookup("") != nil {
			t.Error("an unknown id has a key")
		}
	}
}

func TestKeySetRefuses(t *testing.T) {
	k := testKey(t, "a")
	p384 := &must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t).PublicKey
	tooMany := make([]Key, MaxKeySetKeys+1)
	for i := range tooMany {
		tooMany[i] = Key{fmt.Sprint("k", i), k.Public}
	}
	for name, keys := range map[string][]Key{
		"doubled id": {k, k}, "no id": {{"", k.Public}}, "odd id": {{"a b", k.Public}},
		"no key": {{"a", nil}}, "P-384": {{"a", p384}}, "too many": tooMany,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewKeySet(keys...)
			wantErr(t, err, ErrInvalid)
		})
	}

	good := string(must(json.Marshal(must(NewKeySet(k))(t)))(t))
	must(ParseKeySet([]byte(good)))(t)
	for name, bad := range map[string]string{
		"nothing":          "",
		"trailing newline": good + "\n",
		"space":            strings.Replace(good, ":", ": ", 1),
		"unknown member":   strings.Replace(good, `"keys"`, `"x":1,"keys"`, 1),
		"doubled keys":     strings.Replace(good, `{"keys":[`, `{"keys":[],"keys":[`, 1),
		"doubled kid":      strings.Replace(good, `"kid":"a"`, `"kid":"b","kid":"a"`, 1),
		"doubled key":      strings.Replace(good, `}]}`, `},`+strings.TrimSuffix(strings.TrimPrefix(good, `{"keys":[`), `]}`)+`]}`, 1),
		"use enc":          strings.Replace(good, `"use":"sig"`, `"use":"enc"`, 1),
		"alg ES384":        strings.Replace(good, `ES256`, `ES384`, 1),
		"alg none":         strings.Replace(good, `ES256`, `none`, 1),
		"no use":           strings.Replace(good, `"use":"sig",`, ``, 1),
		"key_ops":          strings.Replace(good, `"use":"sig",`, `"use":"sig","key_ops":["verify"],`, 1),
		"private":          strings.Replace(good, `"x":`, `"d":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE","x":`, 1),
		"symmetric":        `{"keys":[{"use":"sig","kty":"oct","kid":"a","alg":"ES256","k":"AAAA"}]}`,
		"null":             `{"keys":null}`,
	} {
		t.Run(name, func(t *testing.T) {
			if bad == good {
				t.Fatal("the test changes nothing")
			}
			_, err := ParseKeySet([]byte(bad))
			wantErr(t, err, ErrMalformed)
		})
	}
}
