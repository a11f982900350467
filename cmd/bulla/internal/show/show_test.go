package show_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
)

func TestAbuse_A54_Text(t *testing.T) {
	for in, want := range map[string]string{
		"":                    "",
		"demo/database":       "demo/database",
		"größe 日本":            "größe 日本",
		"\x1b[31mred\x1b[0m":  `\x1b[31mred\x1b[0m`,
		"\x1b]0;title\x07":    `\x1b]0;title\x07`,
		"a\rb\nc\td\be":       `a\x0db\nc\td\x08e`,
		"csi \u009b31m":       `csi \u009b31m`,
		"\u202egnp.exe":       `\u202egnp.exe`,
		"\u2066x\u2069\u200f": `\u2066x\u2069\u200f`,
		"a\u200bb\u2028c":     `a\u200bb\u2028c`,
		"a\u00a0b\u00ad":      `a\u00a0b\u00ad`,
		"\u3164":              `\u3164`,
		"\U000e0041":          `\U000e0041`,
		"\xff\xc0\x80":        `\xff\xc0\x80`,
		`back\slash`:          `back\\slash`,
		"\x00\x7f":            `\x00\x7f`,
		"\ufffd":              "\ufffd",
	} {
		if got := show.Text(in); got != want {
			t.Errorf("Text(%q) = %q, want %q", in, got, want)
		}
	}
}

// checkHarmless fails if text holds anything that a terminal would act on.
func checkHarmless(t *testing.T, text string) {
	t.Helper()
	if !utf8.ValidString(text) {
		t.Errorf("not UTF-8: %q", text)
	}
	for _, r := range text {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r) {
			t.Errorf("%U in %q", r, text)
		}
	}
}

func FuzzAbuse_A54_Text(f *testing.F) {
	for _, s := range []string{"plain", "\x1b[2J", "\u202e", "\xff", "\\x1b", "\u009b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		checkHarmless(t, show.Text(in))
		checkHarmless(t, show.Shorten(show.Text(in), 12))
		for i, line := range strings.Split(show.Lines(in), "\n") {
			checkHarmless(t, line)
			if i > 0 && !strings.HasPrefix(line, "  ") {
				t.Errorf("line %d is not indented: %q", i, line)
			}
		}
		var out bytes.Buffer
		if err := show.JSONLine(&out, map[string]string{"k": in}); err != nil {
			t.Fatal(err)
		}
		checkHarmless(t, strings.TrimSuffix(out.String(), "\n"))
		var back map[string]string
		if err := json.Unmarshal(out.Bytes(), &back); err != nil || back["k"] != strings.ToValidUTF8(in, "\ufffd") && utf8.ValidString(in) {
			t.Errorf("%q came back as %q, %v", in, back["k"], err)
		}
	})
}

func TestTableFits(t *testing.T) {
	var out bytes.Buffer
	hostile := strings.Repeat("\x1b[31m", 40)
	err := show.Table(&out, []show.Column{{Title: "ID", Max: 36}, {Title: "STATE", Max: 11}, {Title: "WHO", Max: 13}, {Title: "SECRET", Max: 14}},
		[][]string{{"0193f2f0-0000-7000-8000-000000000000", "unconfirmed", hostile, strings.Repeat("ü", 50)}, {"", "", "", ""}})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(out.String(), "\n") {
		checkHarmless(t, line)
		if n := utf8.RuneCountInString(line); n > show.Width {
			t.Errorf("%d columns: %q", n, line)
		}
	}
	if !strings.Contains(out.String(), "0193f2f0-0000-7000-8000-000000000000  unconfirmed") || !strings.Contains(out.String(), "…") {
		t.Errorf("the id was cut, or nothing was:\n%s", out.String())
	}
}

func TestFieldsLeaveOutWhatIsEmpty(t *testing.T) {
	var out bytes.Buffer
	if err := show.Fields(&out, []show.Field{{"name", "a"}, {"reason", ""}, {"state", "x\ny"}}); err != nil {
		t.Fatal(err)
	}
	if want := "name:   a\nstate:  x\\ny\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestProgress(t *testing.T) {
	var out bytes.Buffer
	silent := show.NewProgress(&out, false, "verified")
	silent.Set(1, 2)
	silent.Clear()
	if out.Len() != 0 {
		t.Errorf("wrote %q to what is no terminal", out.String())
	}
	p := show.NewProgress(&out, true, "verified")
	p.Set(1, 3)
	p.Set(2, 3) // too soon to be drawn
	p.Set(3, 3)
	p.Clear()
	if want := "\rverified 1 of 3\rverified 3 of 3\r               \r"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestWrap(t *testing.T) {
	in := "one two\nthree four\n\nfive   sixsixsixsix\n"
	if got, want := show.Wrap(in, 9), "one two\nthree\nfour\n\nfive\nsixsixsixsix"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := show.Wrap("", 9); got != "" {
		t.Errorf("wrapped nothing into %q", got)
	}
}
