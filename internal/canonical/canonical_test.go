package canonical

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

// word is a text that appends itself.
type word struct{ s string }

func (w word) MarshalText() ([]byte, error) { return w.AppendText(nil) }

func (w word) AppendText(b []byte) ([]byte, error) {
	if w.s == "bad" {
		return nil, errors.New("bad")
	}
	return append(b, w.s...), nil
}

func (w *word) UnmarshalText(b []byte) error {
	if w.s = string(b); w.s == "bad" {
		return errors.New("bad")
	}
	return nil
}

func (w word) IsZero() bool { return w.s == "" || w.s == "zero" }

type inner struct {
	N int8   `json:"n"`
	S string `json:"s,omitempty"`
}

type digest [4]byte

func (d digest) MarshalText() ([]byte, error)        { return d.AppendText(nil) }
func (d digest) AppendText(b []byte) ([]byte, error) { return append(b, "digest"...), nil }

func (d *digest) UnmarshalText(b []byte) error { copy(d[:], b); return nil }

// Outer is embedded, and has something embedded itself.
type Outer struct {
	Inmost
	O string `json:"o,omitempty"`
}

// Inmost is the innermost of what is embedded.
type Inmost struct {
	First []word `json:"first"`
}

// all has a field of each kind that is known here.
type all struct {
	Outer
	S      string             `json:"s"`
	T      string             `json:"t,omitempty"`
	B      bool               `json:"b"`
	C      bool               `json:"c,omitempty"`
	I      int                `json:"i"`
	J      int64              `json:"j,omitempty"`
	U      uint32             `json:"u"`
	V      uint64             `json:"v,omitzero"`
	Raw    json.RawMessage    `json:"raw"`
	Raw2   json.RawMessage    `json:"raw2,omitempty"`
	Bytes  []byte             `json:"bytes"`
	Bytes2 []byte             `json:"bytes2,omitempty"`
	List   []string           `json:"list"`
	Deep   [][]byte           `json:"deep,omitempty"`
	Ptr    *inner             `json:"ptr"`
	Ptr2   *inner             `json:"ptr2,omitempty"`
	In     inner              `json:"in"`
	In2    inner              `json:"in2,omitempty"`
	In3    inner              `json:"in3,omitzero"`
	Ins    []inner            `json:"ins"`
	W      word               `json:"w"`
	W2     word               `json:"w2,omitzero"`
	W3     word               `json:"w3,omitempty"`
	D      digest             `json:"d,omitempty"`
	Words  []word             `json:"words"`
	Map    map[string]string  `json:"map"`
	Map2   map[string][]inner `json:"map2,omitempty"`
	Skip   string             `json:"-"`
	hidden int
}

func full() all {
	return all{
		Outer: Outer{Inmost{[]word{{"f"}}}, "o"},
		S:     "text <&> \" \\ \u2028 é \x00 \x7f \xff", T: "plain", B: true, C: true, I: -7, J: 1 << 60, U: 1<<32 - 1, V: 1<<64 - 1,
		Raw: json.RawMessage(`{"a":[1,"<&>\u00e9 é"],"b":{}}`), Raw2: json.RawMessage(" [ 1 , 2 ] "), Bytes: []byte{0, 255}, Bytes2: []byte{},
		List: []string{"a", "", "\n"}, Deep: [][]byte{nil, {}, {1}}, Ptr: &inner{N: 1}, Ptr2: &inner{S: "x"}, In: inner{2, "y"}, In2: inner{},
		In3: inner{N: 3}, Ins: []inner{{}, {4, "z"}}, W: word{`quo"te`}, W2: word{"zero"}, W3: word{}, D: digest{}, Words: []word{{}, {"é"}, {"plain"}},
		Map: map[string]string{"b": "1", "a": "2", "<\xff>": "x", "": ""}, Map2: map[string][]inner{"z": nil, "y": {{1, "q"}}},
		hidden: 1,
	}
}

// same fails unless Append gives what encoding/json gives, error or not.
func same(t *testing.T, v any) {
	t.Helper()
	want, wantErr := standard(nil, v)
	got, err := Append([]byte("before"), v)
	if (err != nil) != (wantErr != nil) {
		t.Fatalf("%T: error %v, encoding/json says %v", v, err, wantErr)
	}
	if err == nil && !bytes.Equal(got, append([]byte("before"), want...)) {
		t.Errorf("%T:\n%s\nencoding/json:\n%s", v, got, want)
	}
}

func TestSameBytesAsEncodingJSON(t *testing.T) {
	for _, v := range []any{
		nil,
		all{},
		full(),
		[]all{full(), {}},
		&all{}, (*all)(nil),
		all{Raw: json.RawMessage("{")},
		all{Raw: json.RawMessage{}},
		all{W: word{"bad"}},
		json.RawMessage(nil), json.RawMessage("1 2"), "text", 1, true, []string(nil),
		[]string{},
		struct{}{},
	} {
		same(t, v)
	}
	if encoderOf(reflect.TypeFor[all]()) == nil {
		t.Error("a type of known kinds only is left to encoding/json")
	}
}

type node struct {
	Next *node `json:"next"`
}

type pointerText struct{ N int }

func (p *pointerText) MarshalText() ([]byte, error) { return []byte("pointer"), nil }

type zeroPointer struct{ N int }

func (z *zeroPointer) IsZero() bool { return true }

type octet byte

func TestOtherKindsAreLeftToEncodingJSON(t *testing.T) {
	for _, v := range []any{
		map[int]int{2: 1, 1: 2}, map[string]float64{"b": 1}, map[word]int{{"a"}: 1}, 1.5, struct {
			F float64 `json:"f"`
		}{1e30}, struct {
			inner
			A any `json:"a"`
		}{A: "x"}, struct {
			Outer
			O string `json:"o"`
		}{O: "the outer one"}, struct {
			*Outer
		}{&Outer{O: "x"}}, struct {
			Outer `json:"outer"`
		}{Outer{O: "x"}}, struct{ Untagged int }{1}, struct {
			N int `json:"n,string"`
		}{1}, struct {
			N int `json:"<n>"`
		}{1}, node{&node{}}, &pointerText{}, []pointerText{{1}}, struct {
			T time.Time `json:"t"`
		}{time.Unix(0, 0)}, struct {
			Z zeroPointer `json:"z,omitzero"`
		}{zeroPointer{1}}, &struct {
			Z *zeroPointer `json:"z,omitzero"`
		}{nil}, [2]int{1, 2}, []octet{1, 2}, struct {
			P **int `json:"p"`
		}{},
	} {
		if encoderOf(reflect.TypeOf(v)) != nil && reflect.TypeOf(v).Kind() != reflect.String {
			t.Errorf("%T is encoded here", v)
		}
		same(t, v)
	}
}

func FuzzStrings(f *testing.F) {
	f.Add("plain", []byte(`{"a":1}`))
	f.Add("<&>\u2028\xff", []byte(`[1, 2]`))
	f.Fuzz(func(t *testing.T, s string, b []byte) {
		same(t, all{S: s, List: []string{s}, Bytes: b, W: word{s}, Ptr: &inner{S: s}})
	})
}

// FuzzCompact: what compact accepts, encoding/json copies as it is.
func FuzzCompact(f *testing.F) {
	for _, s := range []string{
		`{}`, `[]`, `""`, `"a\n\u00e9\"\\"`, `0`, `-0`, `10`, `-1.5e+7`, `1E9`, `true`, `false`, `null`, `{"a":[1,{"b":null}],"c":"<&>"}`,
		``, ` `, `01`, `1.`, `.5`, `1e`, `+1`, `-`, `tru`, `nul`, `{`, `[1,]`, `{"a"}`, `{"a":1,}`, `{a:1}`, `"\x"`, `"\u12"`, `"` + "\n" + `"`, `[1 ]`, `1 `, `1 2`, `"é` + "\xff" + `"`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var out bytes.Buffer
		err := json.Compact(&out, b)
		copied := err == nil && bytes.Equal(out.Bytes(), b)
		if got := compact(b); got && !copied {
			t.Errorf("%q is compact, encoding/json says %v, %q", b, err, out.Bytes())
		} else if !got && copied && !bytes.Contains(b, []byte(strings.Repeat("[", 8))) && bytes.Count(b, []byte("{"))+bytes.Count(b, []byte("[")) < maxDepth {
			t.Errorf("%q is not compact, and encoding/json leaves it as it is", b)
		}
		same(t, all{Raw: b})
	})
}

func BenchmarkAppend(b *testing.B) {
	v := full()
	v.S, v.Raw2 = "text", json.RawMessage(`{"a":"`+strings.Repeat("x", 1000)+`"}`)
	b.Run("here", func(b *testing.B) {
		out := make([]byte, 0, 4096)
		for b.Loop() {
			_, _ = Append(out, v)
		}
	})
	b.Run("encoding-json", func(b *testing.B) {
		for b.Loop() {
			_, _ = standard(nil, v)
		}
	})
}
