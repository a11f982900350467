package envelope

import (
	"bytes"
	"fmt"

	"github.com/bulla-project/bulla/envelope/proof"
)

// The fixed text of an envelope. Between the pieces stand values that need no escaping, so that the format is read
// and written by comparing, not by a lenient JSON parser.
const (
	jwsHead = `{"alg":"ES256","kid":"`
	jwsTail = `","typ":"` + Type + `"}`

	jweProtected    = `{"protected":"`
	jweEK           = `","header":{"ek":"`
	jweEncryptedKey = `"},"encrypted_key":"`
	jweAAD          = `","aad":"`
	jweIV           = `","iv":"`
	jweCiphertext   = `","ciphertext":"`
	jweTag          = `","tag":"`
	jweEnd          = `"}`
)

const (
	cekLen  = 32 // AES-256
	ivLen   = 12
	tagLen  = 16
	randLen = 32 // r
	maxKID  = 128
)

// parts are the values of an envelope, decoded.
type parts struct {
	kid          string
	suite        Suite
	ek           []byte
	encryptedKey []byte
	aad          []byte // the context
	iv           []byte
	ciphertext   []byte
	tag          []byte
}

// signingInput returns the JWS signing input of an envelope, with room for the signature.
func (p *parts) signingInput() []byte {
	head := jwsHead + p.kid + jwsTail
	payload := p.payload()
	out := make([]byte, 0, b64.EncodedLen(len(head))+b64.EncodedLen(len(payload))+b64.EncodedLen(proof.SignatureSize)+2)
	out = b64.AppendEncode(out, []byte(head))
	out = append(out, '.')
	return b64.AppendEncode(out, payload)
}

// payload returns the JWE.
func (p *parts) payload() []byte {
	n := len(jweProtected) + len(p.suite.p.protected) + len(jweEK) + len(jweEncryptedKey) + len(jweAAD) + len(jweIV) +
		len(jweCiphertext) + len(jweTag) + len(jweEnd)
	for _, v := range [...][]byte{p.ek, p.encryptedKey, p.aad, p.iv, p.ciphertext, p.tag} {
		n += b64.EncodedLen(len(v))
	}
	b := make([]byte, 0, n)
	b = append(append(b, jweProtected...), p.suite.p.protected...)
	b = b64.AppendEncode(append(b, jweEK...), p.ek)
	b = b64.AppendEncode(append(b, jweEncryptedKey...), p.encryptedKey)
	b = b64.AppendEncode(append(b, jweAAD...), p.aad)
	b = b64.AppendEncode(append(b, jweIV...), p.iv)
	b = b64.AppendEncode(append(b, jweCiphertext...), p.ciphertext)
	b = b64.AppendEncode(append(b, jweTag...), p.tag)
	return append(b, jweEnd...)
}

// appendSignature completes a signing input to an envelope.
func appendSignature(signingInput, sig []byte) []byte {
	return b64.AppendEncode(append(signingInput, '.'), sig)
}

// parse reads an envelope and returns its values, signing input and signature. It checks form alone, and that
// there is no other spelling of the same: what it accepts, it would have written byte for byte.
func parse(jws []byte) (p *parts, signingInput, sig []byte, err error) {
	malformed := func(what string) (*parts, []byte, []byte, error) {
		return nil, nil, nil, fmt.Errorf("%w: %s", ErrMalformed, what)
	}
	if len(jws) > MaxEnvelope {
		return malformed(fmt.Sprintf("%d bytes, at most %d", len(jws), MaxEnvelope))
	}
	head64, rest, ok := bytes.Cut(jws, []byte("."))
	payload64, sig64, ok2 := bytes.Cut(rest, []byte("."))
	if !ok || !ok2 {
		return malformed("not a compact JWS of three parts")
	}
	p = &parts{}
	if p.kid, ok = parseHead(head64); !ok {
		return malformed("JWS header is not exactly alg ES256, kid, typ " + Type)
	}
	payload, ok := decode64(payload64)
	if !ok {
		return malformed("JWS payload is not base64url")
	}
	if sig, ok = decode64(sig64); !ok || len(sig) != proof.SignatureSize {
		return malformed("JWS signature is not 64 bytes of base64url")
	}
	if what := p.parsePayload(payload); what != "" {
		return malformed(what)
	}
	signingInput = jws[:len(head64)+1+len(payload64)]
	if again := appendSignature(p.signingInput(), sig); !bytes.Equal(again, jws) {
		return malformed("not in its one encoding")
	}
	return p, signingInput, sig, nil
}

func parseHead(head64 []byte) (kid string, ok bool) {
	if len(head64) > b64.EncodedLen(len(jwsHead)+maxKID+len(jwsTail)) {
		return "", false
	}
	head, ok := decode64(head64)
	if !ok {
		return "", false
	}
	head, ok = bytes.CutPrefix(head, []byte(jwsHead))
	if !ok {
		return "", false
	}
	head, ok = bytes.CutSuffix(head, []byte(jwsTail))
	return string(head), ok && validKID(string(head))
}

// validKID reports whether kid is 1 to 128 characters of base64url.
func validKID(kid string) bool {
	if kid == "" || len(kid) > maxKID {
		return false
	}
	for i := range len(kid) {
		c := kid[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// parsePayload reads the JWE and returns what is wrong with it, or "".
func (p *parts) parsePayload(b []byte) string {
	b, ok := bytes.CutPrefix(b, []byte(jweProtected))
	if !ok {
		return "JWE does not start with its protected header"
	}
	protected, b, ok := bytes.Cut(b, []byte(jweEK))
	if !ok {
		return "JWE has no ek"
	}
	for _, s := range Suites() {
		if string(protected) == s.p.protected {
			p.suite = s
		}
	}
	if p.suite.IsZero() {
		return "JWE protected header is not that of a known suite"
	}
	for _, f := range [...]struct {
		to       *[]byte
		end      string
		min, max int
	}{
		{&p.ek, jweEncryptedKey, p.suite.p.encLen, p.suite.p.encLen},
		{&p.encryptedKey, jweAAD, cekLen + tagLen, cekLen + tagLen},
		{&p.aad, jweIV, 1, MaxContext},
		{&p.iv, jweCiphertext, ivLen, ivLen},
		{&p.ciphertext, jweTag, len(labelData) + randLen, len(labelData) + randLen + maxBody},
		{&p.tag, jweEnd, tagLen, tagLen},
	} {
		text, after, ok := bytes.Cut(b, []byte(f.end))
		if !ok {
			return "JWE member missing before " + f.end
		}
		value, ok := decode64(text)
		if !ok || len(value) < f.min || len(value) > f.max {
			return "JWE member before " + f.end + " is not base64url of the right size"
		}
		*f.to, b = value, after
	}
	if len(b) != 0 {
		return "JWE has something after its end"
	}
	return ""
}
