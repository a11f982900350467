package envelope

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPublishedVectors opens the JOSE-HPKE vectors of the suites that this package has (testdata/vectors/README.md).
func TestPublishedVectors(t *testing.T) {
	forSuites(t, func(t *testing.T, s Suite) {
		raw := must(os.ReadFile(filepath.Join("testdata", "vectors", s.String()+".json")))(t)
		var v struct {
			Protected    string `json:"protected"`
			AAD          string `json:"aad"`
			IV           string `json:"iv"`
			Ciphertext   string `json:"ciphertext"`
			Tag          string `json:"tag"`
			EncryptedKey string `json:"encrypted_key"`
			Priv         string `json:"priv"`
		}
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatal(err)
		}
		var header struct{ Alg, Enc, EK string }
		if err := json.Unmarshal(bin(t, v.Protected), &header); err != nil {
			t.Fatal(err)
		}
		if header.Alg != s.String() || header.Enc != "A256GCM" {
			t.Fatalf("the vector is for %s with %s", header.Alg, header.Enc)
		}
		p := &parts{
			suite: s, ek: bin(t, header.EK), encryptedKey: bin(t, v.EncryptedKey), aad: bin(t, v.AAD),
			iv: bin(t, v.IV), ciphertext: bin(t, v.Ciphertext), tag: bin(t, v.Tag),
		}
		if string(p.aad) != "The Fellowship of the Ring" {
			t.Fatalf("aad %q", p.aad)
		}
		key := must(s.p.kem.NewPrivateKey(bin(t, v.Priv)))(t)
		plain := must(p.decrypt(key, v.Protected, nil))(t)
		if !strings.HasPrefix(string(plain), "You can trust us to stick with you through thick and thin") || !strings.HasSuffix(string(plain), "Frodo.") {
			t.Errorf("plaintext %q", plain)
		}
		p.aad[0] ^= 1
		_, err := p.decrypt(key, v.Protected, nil)
		wantErr(t, err, ErrCrypto)
	})
}

func bin(t *testing.T, s string) []byte {
	t.Helper()
	raw, ok := decode64([]byte(s))
	if !ok {
		t.Fatalf("%.20q… is not base64url", s)
	}
	return raw
}
