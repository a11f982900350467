package certs

import (
	"bytes"
	"encoding/pem"
	"testing"
)

func FuzzParsePEM(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("# comment\n-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"))
	f.Add([]byte(testCertificate))
	f.Add([]byte(testCertificate + testCertificate))
	f.Fuzz(func(t *testing.T, data []byte) {
		if key, err := parsePrivateKey(data); (key == nil) == (err == nil) {
			t.Fatalf("key %v, error %v", key, err)
		}
		list, err := parseCertificates(data)
		if err != nil {
			if list != nil {
				t.Fatal("half a result")
			}
			return
		}
		if len(list) != bytes.Count(data, []byte("-----BEGIN")) {
			t.Fatalf("%d certificates from %q: a block was lost", len(list), data)
		}
		var encoded []byte
		for _, c := range list {
			encoded = append(encoded, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
			_, _ = leafID(list) // must not panic, whatever the certificate says
		}
		again, err := parseCertificates(encoded)
		if err != nil || len(again) != len(list) {
			t.Fatalf("its own encoding gives %d certificates, %v", len(again), err)
		}
		for i := range again {
			if !again[i].Equal(list[i]) {
				t.Fatalf("certificate %d differs after encoding", i)
			}
		}
	})
}

func FuzzCheckJWTForm(f *testing.F) {
	for _, s := range []string{
		"", "a.b.c", "..", "eyJhbGciOiJFUzI1NiJ9.e30.AA", "eyJhbGciOiJub25lIn0.e30.AA", "eyJhbGciOiJFUzI1NiIsImFsZyI6IkVTMjU2In0.e30.AA",
		"eyJhbGciOiJFUzI1NiJ9.e30.AA\n", "eyJhbGciOiJFUzI1NiJ9.e30.AB",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, token string) {
		if checkJWTForm(token) != nil {
			return
		}
		for _, r := range token {
			if r != '.' && r != '-' && r != '_' && !(r >= '0' && r <= '9') && !(r >= 'A' && r <= 'Z') && !(r >= 'a' && r <= 'z') {
				t.Fatalf("%q holds %q", token, r)
			}
		}
	})
}

// testCertificate seeds the fuzzer; nobody has its key.
const testCertificate = `-----BEGIN CERTIFICATE-----
MIIBnDCCAUGgAwIBAgIUSF3DsY/FeiTi27f3PBCND1lwb0YwCgYIKoZIzj0EAwIw
DzENMAsGA1UECgwEdGVzdDAgFw0yNjExMjIyMzEwMDlaGA8yMTI2MTAyOTIzMTAw
OVowDzENMAsGA1UECgwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABO/o
00AxVD5nzNBfyhUhAy4XCVIEHaZQJ0Oe4tyfpijV0Fmi4NGxpjidGRQIhz16F3mB
cwVN/X9CecIxZ9toUjejeTB3MB0GA1UdDgQWBBQH/tsT32OCs5wXaKYWdCkNovqs
0DAfBgNVHSMEGDAWgBQH/tsT32OCs5wXaKYWdCkNovqs0DAPBgNVHRMBAf8EBTAD
AQH/MCQGA1UdEQQdMBuGGXNwaWZmZTovL3RkLnRlc3Qvd29ya2xvYWQwCgYIKoZI
zj0EAwIDSQAwRgIhAOz83d6UT6zLBL4K+SyS5OkWKIwIzqtzZZFungrX0q0DAiEA
7ymzq9msb9BEOgSY1dHl44Ipc7TXxNmBa0jmVPZduJo=
-----END CERTIFICATE-----
`
