package policy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"strings"
	"testing"

	opabundle "github.com/open-policy-agent/opa/v1/bundle"

	shipped "github.com/bulla-project/bulla/rego"
)

// pair makes a key pair in PEM form and as a BundleKey.
func pair(t testing.TB, private any) ([]byte, BundleKey) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	pkix, err := x509.MarshalPKIXPublicKey(private.(crypto.Signer).Public())
	if err != nil {
		t.Fatal(err)
	}
	public, err := ParseBundleKey(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkix}))
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), public
}

func p256(t testing.TB) ([]byte, BundleKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return pair(t, key)
}

func baseArchive(t testing.TB) []byte {
	t.Helper()
	archive, err := Pack(shipped.Base())
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

// tarball is a bundle as `tar -czf` makes it.
func tarball(t testing.TB, prefix string, files map[string][]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	zipped := gzip.NewWriter(&out)
	w := tar.NewWriter(zipped)
	for _, name := range sortedNames(files) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: prefix + name, Size: int64(len(files[name])), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), zipped.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// What we sign, OPA's bundle reader takes, with each kind of key; and what was signed is what FromTarball reads.
func TestSignatureIsOPAs(t *testing.T) {
	t.Parallel()
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	es, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	archive := baseArchive(t)
	for alg, key := range map[string]any{"ES256": es, "ES384": p384, "EdDSA": ed, "RS256": rs} {
		private, public := pair(t, key)
		signature, id, err := SignArchive(archive, private)
		if err != nil || id != public.ID {
			t.Fatalf("%s: key %s, %v", alg, id, err)
		}
		files, err := Unpack(archive)
		if err != nil {
			t.Fatal(err)
		}
		files[SignatureFile] = signature
		for _, prefix := range []string{"", "/", "./"} {
			packed := tarball(t, prefix, files)
			config := opabundle.NewVerificationConfig(map[string]*opabundle.KeyConfig{"k": {Key: public.pem, Algorithm: alg}}, "k", "", nil)
			if prefix != "./" { // OPA's reader keeps the dot
				if _, err := opabundle.NewReader(bytes.NewReader(packed)).WithBundleVerificationConfig(config).Read(); err != nil {
					t.Errorf("%s: OPA's reader: %v", alg, err)
				}
			}
			again, sig, err := FromTarball(packed)
			if err != nil || !bytes.Equal(again, archive) {
				t.Fatalf("%s %q: %v, the same archive: %t", alg, prefix, err, bytes.Equal(again, archive))
			}
			if got, err := VerifySignature(again, sig, []BundleKey{public}); err != nil || got != public.ID {
				t.Errorf("%s: %q, %v", alg, got, err)
			}
		}
	}
}

// resign signs any list of files, as somebody with the key could.
func resign(t *testing.T, private []byte, alg string, infos []opabundle.FileInfo, claims string) []byte {
	t.Helper()
	token, err := opabundle.GenerateSignedToken(infos, opabundle.NewSigningConfig(string(private), alg, claims), "")
	if err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(map[string][]string{"signatures": {token}})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAbuse_A31_signatures_that_do_not_count(t *testing.T) {
	t.Parallel()
	archive := baseArchive(t)
	private, public := p256(t)
	_, other := p256(t)
	signature, _, err := SignArchive(archive, private)
	if err != nil {
		t.Fatal(err)
	}
	files, err := Unpack(archive)
	if err != nil {
		t.Fatal(err)
	}
	hash := func(alg opabundle.HashingAlgorithm, skip string, more ...opabundle.FileInfo) []opabundle.FileInfo {
		hasher, err := opabundle.NewSignatureHasher(alg)
		if err != nil {
			t.Fatal(err)
		}
		var out []opabundle.FileInfo
		for _, name := range sortedNames(files) {
			sum, err := hasher.HashFile(files[name])
			if err != nil {
				t.Fatal(err)
			}
			if name != skip {
				out = append(out, opabundle.NewFile(name, strings.ToLower(strings.TrimSpace(hexOf(sum))), alg.String()))
			}
		}
		return append(out, more...)
	}
	changed := bytes.Replace(archive, []byte("max_risk: 90"), []byte("max_risk: 99"), 1)
	var doc struct{ Signatures []string }
	if err := json.Unmarshal(signature, &doc); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(doc.Signatures[0], ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + parts[1] + "."
	hmac, err := opabundle.GenerateSignedToken(hash(opabundle.SHA256, ""), opabundle.NewSigningConfig(public.pem+"\n", "HS256", ""), "")
	if err != nil {
		t.Log("HMAC with the public key as its secret:", err)
	}
	wrap := func(tokens ...string) []byte {
		out, err := json.Marshal(map[string][]string{"signatures": tokens})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for name, c := range map[string]struct {
		archive, signature []byte
		keys               []BundleKey
	}{
		"no signature":        {archive, nil, []BundleKey{public}},
		"no keys":             {archive, signature, nil},
		"another key":         {archive, signature, []BundleKey{other}},
		"another bundle":      {changed, signature, []BundleKey{public}},
		"a file not signed":   {archive, resign(t, private, "ES256", hash(opabundle.SHA256, "risk.yaml"), ""), []BundleKey{public}},
		"a file too much":     {archive, resign(t, private, "ES256", hash(opabundle.SHA256, "", opabundle.NewFile("data/more.yaml", strings.Repeat("00", 32), "SHA-256")), ""), []BundleKey{public}},
		"weak digests":        {archive, resign(t, private, "ES256", hash(opabundle.SHA1, ""), ""), []BundleKey{public}},
		"alg none":            {archive, wrap(none), []BundleKey{public}},
		"HMAC of public key":  {archive, wrap(hmac), []BundleKey{public}},
		"two tokens":          {archive, wrap(doc.Signatures[0], doc.Signatures[0]), []BundleKey{public}},
		"no token":            {archive, wrap(), []BundleKey{public}},
		"a plugin":            {archive, []byte(`{"signatures": ["` + doc.Signatures[0] + `"], "plugin": "_default"}`), []BundleKey{public}},
		"something behind it": {archive, []byte(`{"signatures": ["` + doc.Signatures[0] + `"]}}`), []BundleKey{public}},
		"unknown field":       {archive, []byte(`{"signatures": ["` + doc.Signatures[0] + `"], "x": 1}`), []BundleKey{public}},
		"text behind":         {archive, append(bytes.Clone(signature), []byte("{}")...), []BundleKey{public}},
		"no JSON":             {archive, []byte("x"), []BundleKey{public}},
		"too large":           {archive, append(bytes.Clone(signature), bytes.Repeat([]byte(" "), maxSignature)...), []BundleKey{public}},
	} {
		if id, err := VerifySignature(c.archive, c.signature, c.keys); !errors.Is(err, ErrSignature) || id != "" {
			t.Errorf("%s: key %q, %v; want ErrSignature", name, id, err)
		}
	}
	if _, err := VerifySignature(archive, signature, []BundleKey{other, public}); err != nil {
		t.Error(err)
	}
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var out strings.Builder
	for _, c := range b {
		out.WriteByte(digits[c>>4])
		out.WriteByte(digits[c&15])
	}
	return out.String()
}

// A file that OPA hashes by meaning could mean something else to us.
func TestSignatureRefusesStructuredNames(t *testing.T) {
	t.Parallel()
	files, err := Unpack(baseArchive(t))
	if err != nil {
		t.Fatal(err)
	}
	files["data/data.yaml"] = []byte("{a: 1, b: 2}\n")
	archive, err := packFiles(files)
	if err != nil {
		t.Fatal(err)
	}
	private, _ := p256(t)
	if _, _, err := SignArchive(archive, private); err == nil || !strings.Contains(err.Error(), "data/data.yaml") {
		t.Errorf("signing data/data.yaml: %v", err)
	}
}

func TestKeysThatAreNotTaken(t *testing.T) {
	t.Parallel()
	small, err := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // that is the point
	if err != nil {
		t.Log("this runtime makes no such key:", err)
	} else {
		pkix, err := x509.MarshalPKIXPublicKey(&small.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewBundleKey(pkix); err == nil {
			t.Error("RSA of 1024 bits is taken")
		}
	}
	private, public := p256(t)
	for name, text := range map[string][]byte{
		"nothing": nil, "text": []byte("hunter2"), "private": private, "two": []byte(public.pem + public.pem), "secret": []byte("-----BEGIN"),
	} {
		if _, err := ParseBundleKey(text); err == nil {
			t.Errorf("%s is taken as a public key", name)
		}
	}
	archive := baseArchive(t)
	for name, text := range map[string][]byte{
		"nothing": nil, "path": []byte("/etc/passwd"), "text": []byte("hunter2"), "public": []byte(public.pem), "two": append(bytes.Clone(private), private...),
		"garbage": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("hunter2")}),
	} {
		if _, _, err := SignArchive(archive, text); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s as a private key: %v", name, err)
		}
	}
}

func TestTarballsThatAreRefused(t *testing.T) {
	t.Parallel()
	files, err := Unpack(baseArchive(t))
	if err != nil {
		t.Fatal(err)
	}
	with := func(edit func(map[string][]byte)) []byte {
		again := map[string][]byte{}
		for k, v := range files {
			again[k] = v
		}
		edit(again)
		return tarball(t, "", again)
	}
	var link bytes.Buffer
	zipped := gzip.NewWriter(&link)
	w := tar.NewWriter(zipped)
	if err := errors.Join(w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "risk.yaml", Linkname: "/etc/passwd"}), w.Close(), zipped.Close()); err != nil {
		t.Fatal(err)
	}
	good := tarball(t, "", files)
	var bomb bytes.Buffer
	zipped = gzip.NewWriter(&bomb)
	if _, err := zipped.Write(make([]byte, 64<<20)); err != nil {
		t.Fatal(err)
	}
	if err := zipped.Close(); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"nothing": nil, "no gzip": []byte("x"), "cut": good[:len(good)/2], "cut at the end": good[:len(good)-4], "a link": link.Bytes(), "a bomb": bomb.Bytes(),
		"up":         with(func(m map[string][]byte) { m["../x"] = nil }),
		"absolute":   with(func(m map[string][]byte) { m["//risk.yaml"] = nil }),
		"odd file":   with(func(m map[string][]byte) { m["x.json"] = nil }),
		"twice":      tarball(t, "", map[string][]byte{"risk.yaml": nil, "/risk.yaml": nil}),
		"missing":    with(func(m map[string][]byte) { delete(m, "risk.yaml") }),
		"too large":  with(func(m map[string][]byte) { m["data/x.yaml"] = make([]byte, MaxFileSize+1) }),
		"delta":      with(func(m map[string][]byte) { m["patch.json"] = []byte("{}") }),
		"signatures": with(func(m map[string][]byte) { m["data/.signatures.json"] = nil }),
	} {
		if _, _, err := FromTarball(data); !errors.Is(err, ErrArchive) {
			t.Errorf("%s: %v, want ErrArchive", name, err)
		}
	}
}

func FuzzFromTarball(f *testing.F) {
	files, err := Unpack(baseArchive(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(tarball(f, "", files))
	f.Add(tarball(f, "./", map[string][]byte{"risk.yaml": nil}))
	f.Fuzz(func(t *testing.T, data []byte) {
		archive, _, err := FromTarball(data)
		if err != nil {
			return
		}
		if _, err := Unpack(archive); err != nil {
			t.Errorf("an archive that does not unpack: %v", err)
		}
	})
}

func FuzzVerifySignature(f *testing.F) {
	archive := baseArchive(f)
	private, public := p256(f)
	signature, _, err := SignArchive(archive, private)
	if err != nil {
		f.Fatal(err)
	}
	var doc struct{ Signatures []string }
	if err := json.Unmarshal(signature, &doc); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"signatures": ["a.b.c"]}`))
	f.Add([]byte(`{"signatures": ["eyJhbGciOiJub25lIn0.e30."]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := VerifySignature(archive, text, []BundleKey{public}); err == nil && !strings.Contains(string(text), doc.Signatures[0]) {
			t.Errorf("%q verifies", text)
		}
	})
}
