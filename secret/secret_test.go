package secret

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestParseName(t *testing.T) {
	for _, ok := range []string{"a", "demo/db", "a.b_c-d/0", strings.Repeat("a", 255)} {
		n, err := ParseName(ok)
		if err != nil || n.String() != ok {
			t.Errorf("ParseName(%q) = %v, %v", ok, n, err)
		}
	}
	bad := []string{
		"", " root", "root ", "ROOT", "a/", "/a", "a//b", "..", "a/../b", "a/./b", "*", "a/*", "a\x00b", "a%2eb", "ro\u03bft",
		"a\nb", "\u212a", ".a", "-a", "_a", strings.Repeat("a", 256), strings.Repeat("a/", 16) + "a", "a\\b", "a b",
	}
	for _, s := range bad {
		if _, err := ParseName(s); !errors.Is(err, ErrName) {
			t.Errorf("ParseName(%q) = %v, want ErrName", s, err)
		}
	}
}

// What is wrong with a name is shown as it stands there: half a character is a number.
func TestNameErrorsShowTheByte(t *testing.T) {
	for s, want := range map[string]string{"demo/\u00e4": "byte 5 is 0xc3,", "ROOT": "byte 0 is 'R',", "a\nb": `byte 1 is '\n',`} {
		if _, err := ParseName(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseName(%q) = %v, want %q in it", s, err, want)
		}
	}
}

func TestParseClassAndVersion(t *testing.T) {
	for _, s := range []string{"", "High", "1a", "a b", strings.Repeat("a", 33), "a_"} {
		if _, err := ParseClass(s); !errors.Is(err, ErrClass) {
			t.Errorf("ParseClass(%q) = %v, want ErrClass", s, err)
		}
	}
	for _, s := range []string{"", "0", "01", "+1", "-1", "4294967296", "1 "} {
		if _, err := ParseVersion(s); !errors.Is(err, ErrVersion) {
			t.Errorf("ParseVersion(%q) = %v, want ErrVersion", s, err)
		}
	}
	if v, err := ParseVersion("4294967295"); err != nil || v != 4294967295 {
		t.Errorf("largest version: %v, %v", v, err)
	}
}

func TestParseType(t *testing.T) {
	for _, want := range []Type{TypeOpaque, TypeECDSAP256, TypeEd25519, TypeHMACSHA256, TypeAES256GCM} {
		got, err := ParseType(string(want))
		again, errRecorded := ParseRecordedType(want.Recorded())
		if err != nil || errRecorded != nil || got != want || again != want || want.IsKey() != (want != TypeOpaque) {
			t.Errorf("%s: %s, %s, %v, %v", want, got, again, err, errRecorded)
		}
	}
	for _, s := range []string{"", "Opaque", "rsa", "ed25519 ", strings.Repeat("a", 99)} {
		if _, err := ParseType(s); !errors.Is(err, ErrType) {
			t.Errorf("ParseType(%q) = %v", s, err)
		}
	}
	for _, s := range []string{"opaque", "rsa"} { // one spelling each
		if _, err := ParseRecordedType(s); !errors.Is(err, ErrType) {
			t.Errorf("ParseRecordedType(%q) = %v", s, err)
		}
	}
	if Type("").IsKey() {
		t.Error("no type is a key")
	}
}

func TestBytesPrintNowhere(t *testing.T) {
	const canary = "canary-4711"
	b := NewBytes([]byte(canary))
	holder := struct {
		V Bytes
		v Bytes
	}{b, b}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c", "%U", "%b", "%o", "%t", "%e", "%p", "%T"} {
		fmt.Fprintf(&out, verb+verb+verb, b, holder, &holder)
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "b", b, "h", holder)
	slog.New(slog.NewTextHandler(&out, nil)).Info("m", "b", b, "h", holder)
	j, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(j)
	fmt.Fprint(&out, fmt.Errorf("wrap %v", b))
	for _, trace := range []string{canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%v", []byte(canary)), "Y2FuYXJ5"} {
		if strings.Contains(strings.ToLower(out.String()), strings.ToLower(trace)) {
			t.Errorf("output holds %q:\n%s", trace, out.String())
		}
	}
	b.Zero()
	if !bytes.Equal(b.Expose(), make([]byte, len(canary))) {
		t.Error("Zero left bytes")
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"demo/db", "a//b", "..", "A", "a\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseName(s)
		if err != nil {
			return
		}
		if n.String() != s || strings.Contains(s, "..") && strings.HasPrefix(s, ".") {
			t.Errorf("accepted %q as %q", s, n)
		}
		for _, seg := range strings.Split(s, "/") {
			if seg == "" || seg[0] == '.' {
				t.Errorf("accepted segment %q of %q", seg, s)
			}
		}
	})
}
