package certs

import (
	"errors"
	"strings"
	"testing"
)

func TestParseIDTakesOnlyTheOneForm(t *testing.T) {
	for _, s := range []string{
		"spiffe://dev.bulla.test/workload",
		"spiffe://td/a/b.c/d_e-F9",
		"spiffe://td/...",
		"spiffe://a_b-c.d/x",
		"spiffe://td/" + strings.Repeat("a", maxIDLength-len("spiffe://td/")),
	} {
		id, err := ParseID(s)
		if err != nil || id.String() != s {
			t.Errorf("ParseID(%q) = %q, %v", s, id, err)
		}
	}
	for name, s := range map[string]string{
		"empty":                    "",
		"no scheme":                "td/workload",
		"other scheme":             "https://td/workload",
		"upper-case scheme":        "SPIFFE://td/workload",
		"upper-case trust domain":  "spiffe://Dev.bulla.test/workload",
		"no trust domain":          "spiffe:///workload",
		"dots as a trust domain":   "spiffe://../workload",
		"dot as a trust domain":    "spiffe://./workload",
		"empty label":              "spiffe://dev..test/workload",
		"trailing dot":             "spiffe://dev.test./workload",
		"leading dot":              "spiffe://.dev.test/workload",
		"port":                     "spiffe://td:8443/workload",
		"user":                     "spiffe://me@td/workload",
		"no path":                  "spiffe://td",
		"root path":                "spiffe://td/",
		"trailing slash":           "spiffe://td/workload/",
		"empty segment":            "spiffe://td//workload",
		"dot segment":              "spiffe://td/./workload",
		"dot-dot segment":          "spiffe://td/a/../workload",
		"dot-dot at the end":       "spiffe://td/workload/..",
		"encoded dot":              "spiffe://td/%2e/workload",
		"encoded dots, mixed case": "spiffe://td/%2E%2e/workload",
		"encoded slash":            "spiffe://td/a%2Fworkload",
		"encoded letter":           "spiffe://td/%77orkload",
		"query":                    "spiffe://td/workload?x=1",
		"empty query":              "spiffe://td/workload?",
		"fragment":                 "spiffe://td/workload#x",
		"empty fragment":           "spiffe://td/workload#",
		"space":                    "spiffe://td/work load",
		"leading space":            " spiffe://td/workload",
		"trailing newline":         "spiffe://td/workload\n",
		"NUL":                      "spiffe://td/workload\x00",
		"look-alike":               "spiffe://td/wоrkload", // a Cyrillic o
		"look-alike trust domain":  "spiffe://tԁ/workload", // a Cyrillic d
		"back slash":               `spiffe://td/a\b`,
		"tilde":                    "spiffe://td/~a",
		"one byte too long":        "spiffe://td/" + strings.Repeat("a", maxIDLength-len("spiffe://td/")+1),
		"trust domain too long":    "spiffe://" + strings.Repeat("a", maxTrustDomainLength+1) + "/a",
	} {
		if id, err := ParseID(s); !errors.Is(err, ErrInvalidID) || !id.IsZero() {
			t.Errorf("%s: ParseID(%.60q) = %q, %v; want ErrInvalidID", name, s, id, err)
		}
	}
}

func TestParseTrustDomainTakesNamesOnly(t *testing.T) {
	for _, s := range []string{"", "spiffe://td", "td/", "TD", "a..b", ".", "..", "a:1", "td\n", strings.Repeat("a", 256)} {
		if td, err := ParseTrustDomain(s); !errors.Is(err, ErrInvalidID) {
			t.Errorf("ParseTrustDomain(%.40q) = %q, %v; want ErrInvalidID", s, td, err)
		}
	}
	if td, err := ParseTrustDomain("dev.bulla.test"); err != nil || td.Name() != "dev.bulla.test" {
		t.Errorf("ParseTrustDomain(dev.bulla.test) = %q, %v", td, err)
	}
}

func FuzzParseID(f *testing.F) {
	for _, s := range []string{"spiffe://td/a", "spiffe://td/../a", "spiffe://TD/a", "spiffe://td/%2e", "spiffe://../a", "spiffe://td/a#"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			if !errors.Is(err, ErrInvalidID) || !id.IsZero() {
				t.Fatalf("ParseID(%q) = %q, %v", s, id, err)
			}
			return
		}
		if id.String() != s || id.Path() == "" || strings.ContainsAny(s, "%?#@:\\ \x00") && strings.Count(s, ":") != 1 {
			t.Fatalf("ParseID(%q) = %q", s, id)
		}
		for segment := range strings.SplitSeq(id.Path()[1:], "/") {
			if segment == "" || segment == "." || segment == ".." {
				t.Fatalf("ParseID(%q) let the segment %q through", s, segment)
			}
		}
	})
}
