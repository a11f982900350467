package xtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/bulla-project/bulla/attest"
)

// NitroDocument is a document before it is encoded, with all that a forger may want to change.
type NitroDocument struct {
	Module    string            `cbor:"module_id"`
	Digest    string            `cbor:"digest"`
	Timestamp uint64            `cbor:"timestamp"`
	PCRs      map[uint64][]byte `cbor:"pcrs"`
	Leaf      []byte            `cbor:"certificate"`
	Bundle    [][]byte          `cbor:"cabundle"`
	PublicKey []byte            `cbor:"public_key"`
	UserData  []byte            `cbor:"user_data"`
	Nonce     []byte            `cbor:"nonce"`
}

// measuredBytes is a recognisable measurement.
func measuredBytes(n byte, size int) []byte { return bytes.Repeat([]byte{0xa0 + n}, size) }

// nitroMachine makes documents below a root of its own.
func nitroMachine(t testing.TB) *Machine {
	ca, stranger := NewCA(t, elliptic.P384(), "nitro"), NewCA(t, elliptic.P384(), "nitro")
	pcrs := map[uint64][]byte{}
	for n := range uint64(16) {
		pcrs[n] = make([]byte, 48)
	}
	for n := range uint64(5) {
		pcrs[n] = measuredBytes(byte(n), 48)
	}
	document := func(b attest.Binding) NitroDocument {
		data := b.ReportData()
		return NitroDocument{
			Module: "i-0123456789abcdef0-enc0123456789abcdef", Digest: "SHA384", Timestamp: uint64(time.Now().UnixMilli()),
			PCRs: copyPCRs(pcrs), PublicKey: b.InstanceKey, UserData: data[:], Nonce: b.Nonce[:],
		}
	}
	with := func(change func(*NitroDocument)) func(testing.TB, attest.Binding) []byte {
		return func(t testing.TB, b attest.Binding) []byte {
			d := document(b)
			change(&d)
			return signNitro(t, ca, nil, d)
		}
	}
	raw := func(change func(payload []byte) []byte) func(testing.TB, attest.Binding) []byte {
		return func(t testing.TB, b attest.Binding) []byte {
			d := document(b)
			key := certifyNitro(t, ca, nil, &d)
			payload := encodeCBOR(t, d)
			return sealNitro(t, key, change(payload))
		}
	}
	m := &Machine{Kind: attest.KindNitro, Root: ca.Root, Evidence: with(func(*NitroDocument) {})}
	m.Values = map[string][]byte{"pcr0": pcrs[0], "pcr1": pcrs[1], "pcr2": pcrs[2]}
	m.Forgeries = append(commonForgeries(m),
		MachineForgery{"wrong root", "no chain to a root", func(t testing.TB, b attest.Binding) []byte { return signNitro(t, stranger, nil, document(b)) }},
		MachineForgery{"expired chain", "no chain to a root", func(t testing.TB, b attest.Binding) []byte { return signNitro(t, ca, expired, document(b)) }},
		MachineForgery{"leaf is an authority", "one of an authority", func(t testing.TB, b attest.Binding) []byte {
			return signNitro(t, ca, func(c *x509.Certificate) { c.IsCA = true }, document(b))
		}},
		MachineForgery{"debug mode", "started for debugging", with(func(d *NitroDocument) {
			for n := range uint64(3) {
				d.PCRs[n] = make([]byte, 48)
			}
		})},
		MachineForgery{"other image", "another image", with(func(d *NitroDocument) { d.PCRs[2] = measuredBytes(9, 48) })},
		MachineForgery{"PCR left out", "started for debugging", with(func(d *NitroDocument) { delete(d.PCRs, 1) })},
		MachineForgery{"another nonce", "nonce is not that", with(func(d *NitroDocument) { d.Nonce = make([]byte, 32) })},
		MachineForgery{"no user data", "user_data is not that", with(func(d *NitroDocument) { d.UserData = nil })},
		MachineForgery{"another key", "public_key is not that", with(func(d *NitroDocument) { d.PublicKey = []byte("key") })},
		MachineForgery{"an hour old", "too far from now", with(func(d *NitroDocument) { d.Timestamp -= 3_600_000 })},
		MachineForgery{"from the future", "too far from now", with(func(d *NitroDocument) { d.Timestamp = 1 << 63 })},
		MachineForgery{"weaker digest", "want SHA384", with(func(d *NitroDocument) { d.Digest = "SHA256" })},
		MachineForgery{"no certificates", "cabundle of 0", with(func(d *NitroDocument) { d.Bundle = [][]byte{} })},
		MachineForgery{"100 certificates", "exceeded max number of elements", with(func(d *NitroDocument) {
			for range 100 {
				d.Bundle = append(d.Bundle, []byte{0})
			}
		})},
		MachineForgery{"duplicate key", "duplicate", raw(func(p []byte) []byte {
			p[0]++ // one more pair
			return append(append(p, encodeCBOR(t, "module_id")...), encodeCBOR(t, "i-1")...)
		})},
		MachineForgery{"duplicate PCR", "duplicate", raw(func(p []byte) []byte {
			return bytes.Replace(p, append([]byte{0x0f, 0x58, 48}, make([]byte, 48)...), append([]byte{0x0e, 0x58, 48}, make([]byte, 48)...), 1)
		})},
		MachineForgery{"unknown key", "unknown field", raw(func(p []byte) []byte {
			p[0]++
			return append(append(p, encodeCBOR(t, "extra")...), 0x01)
		})},
		MachineForgery{"indefinite length inside", "indefinite-length", raw(func(p []byte) []byte {
			return bytes.Replace(p, append(encodeCBOR(t, "module_id"), encodeCBOR(t, "i-0123456789abcdef0-enc0123456789abcdef")...),
				append(append(encodeCBOR(t, "module_id"), 0x7f), append(encodeCBOR(t, "i"), 0xff)...), 1)
		})},
		MachineForgery{"nested", "exceeded max nested level", raw(func(p []byte) []byte {
			return bytes.Replace(p, append(encodeCBOR(t, "digest"), encodeCBOR(t, "SHA384")...), append(encodeCBOR(t, "digest"), bytes.Repeat([]byte{0x81}, 1000)...), 1)
		})},
		MachineForgery{"a tag", "tag", func(t testing.TB, b attest.Binding) []byte {
			return append([]byte{0xd2}, signNitro(t, ca, nil, document(b))...)
		}},
		MachineForgery{"another algorithm", "want ES384", func(t testing.TB, b attest.Binding) []byte {
			return bytes.Replace(signNitro(t, ca, nil, document(b)), []byte{0xa1, 0x01, 0x38, 0x22}, []byte{0xa1, 0x01, 0x38, 0x23}, 1)
		}},
		MachineForgery{"unprotected header", "want an empty one", func(t testing.TB, b attest.Binding) []byte {
			return bytes.Replace(signNitro(t, ca, nil, document(b)), []byte{0x38, 0x22, 0xa0}, []byte{0x38, 0x22, 0xa1, 0x01, 0x01}, 1)
		}},
	)
	m.Open = raw(func(p []byte) []byte { return append(append([]byte{0xbf}, p[1:]...), 0xff) })
	m.OtherImage = with(func(d *NitroDocument) { d.PCRs[4] = measuredBytes(9, 48) })
	m.finish(t)
	return m
}

func copyPCRs(pcrs map[uint64][]byte) map[uint64][]byte {
	out := map[uint64][]byte{}
	for n, v := range pcrs {
		out[n] = v
	}
	return out
}

func encodeCBOR(t testing.TB, v any) []byte {
	t.Helper()
	b, err := cbor.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// certifyNitro puts certificates into a document that has none yet.
func certifyNitro(t testing.TB, ca *CA, change func(*x509.Certificate), d *NitroDocument) *ecdsa.PrivateKey {
	leaf, key := ca.Leaf(t, "enclave", change)
	d.Leaf = leaf.Raw
	if d.Bundle == nil {
		d.Bundle = [][]byte{ca.Root.Raw, ca.Between.Raw}
	}
	return key
}

func signNitro(t testing.TB, ca *CA, change func(*x509.Certificate), d NitroDocument) []byte {
	t.Helper()
	key := certifyNitro(t, ca, change, &d)
	return sealNitro(t, key, encodeCBOR(t, d))
}

// sealNitro makes a COSE_Sign1 of a payload.
func sealNitro(t testing.TB, key *ecdsa.PrivateKey, payload []byte) []byte {
	t.Helper()
	protected := []byte{0xa1, 0x01, 0x38, 0x22}
	digest := sha512.Sum384(encodeCBOR(t, []any{"Signature1", protected, []byte{}, payload}))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := append(r.FillBytes(make([]byte, 48)), s.FillBytes(make([]byte, 48))...)
	return encodeCBOR(t, []any{protected, map[int]int{}, payload, signature})
}
