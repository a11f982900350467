package canonical

import (
	"bytes"
	"encoding/json"
	"io"
	"reflect"
	"strings"
	"testing"
)

// ascii is full without what Read leaves to encoding/json.
func ascii() all {
	v := full()
	v.S, v.List, v.W, v.Words = "text <&> \x7f", []string{"a", ""}, word{"w"}, []word{{}, {"plain"}}
	v.Map = map[string]string{"b": "1", "a": "2", "": ""}
	v.Raw2, v.hidden = nil, 0
	return v
}

// strictly is what encoding/json makes of a text, as long as there is nothing unknown in it and nothing after it.
func strictly(data []byte) (v all, ok bool) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if dec.Decode(&v) != nil {
		return all{}, false
	}
	_, err := dec.Token()
	return v, err == io.EOF //nolint:errorlint // it is that very error
}

func TestReadsWhatAppendWrites(t *testing.T) {
	for i, v := range []all{{}, ascii(), {Raw: json.RawMessage("null"), List: []string{}, Ins: []inner{}, Words: []word{}, Map: map[string]string{}}} {
		text, err := Append(nil, v)
		if err != nil {
			t.Fatal(err)
		}
		got := all{S: "left", Ptr2: &inner{N: 9}, Map2: map[string][]inner{"left": nil}}
		if !Read(text, &got) {
			t.Fatalf("%d: not read: %s", i, text)
		}
		if want, ok := strictly(text); !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%d:\n%+v\nencoding/json:\n%+v", i, got, want)
		}
		clear(text)
		if again, _ := Append(nil, got); !bytes.HasPrefix(again, []byte(`{"first":`)) {
			t.Errorf("%d: it shares memory with the text: %s", i, again)
		}
	}
}

func TestReadLeavesOtherTypes(t *testing.T) {
	var n node
	var w struct {
		F float64 `json:"f"`
	}
	for text, into := range map[string]any{`{"next":null}`: &n, `{"f":1}`: &w, `1`: 1, `2`: (*int)(nil), `3`: nil} {
		if Read([]byte(text), into) {
			t.Errorf("%T was read", into)
		}
	}
}

// FuzzRead: what Read takes, encoding/json takes as well, and makes the same of it; and it is what Append writes for it.
func FuzzRead(f *testing.F) {
	text, err := Append(nil, ascii())
	if err != nil {
		f.Fatal(err)
	}
	bare, _ := Append(nil, all{})
	for _, s := range []string{string(text), string(bare)} {
		f.Add([]byte(s))
		for _, c := range [][2]string{
			{`"b":true`, `"b":false`},
			{`"i":-7`, `"i":-0`},
			{`"i":-7`, `"i":07`},
			{`"u":0`, `"u":-1`},
			{`"u":0`, `"u":4294967296`},
			{`"n":1`, `"n":128`},
			{`"bytes":null`, `"bytes":"AB=="`},
			{`"s":""`, `"s":"\u0061"`},
			{`"s":""`, `"s":"é"`},
			{`"s":"","b"`, `"b"`},
			{`"map":null`, `"map":{"a":"1","a":"2"}`},
			{`"map":null`, `"map":{"b":"1","a":"2"}`},
			{`"s":""`, `"s":"","t":""`},
			{`"d":"digest"`, `"d":"DIGEST"`},
			{`"raw":null`, `"raw":{"a": 1}`},
			{`"list":null`, `"list":[,]`},
			{`"list":null`, `"list":["a"}`},
			{`}`, `},`},
			{`"w":""`, `"w":"bad"`},
			{`,`, `,,`},
			{`{`, `{,`},
		} {
			f.Add([]byte(strings.Replace(s, c[0], c[1], 1)))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var got all
		if !Read(data, &got) {
			if !reflect.DeepEqual(got, all{}) {
				t.Errorf("%q left %+v", data, got)
			}
			return
		}
		if want, ok := strictly(data); !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%q:\n%+v\nencoding/json: %t\n%+v", data, got, ok, want)
		}
		if again, err := Append(nil, got); err != nil || !bytes.Equal(again, data) {
			t.Errorf("%q is written as %q: %v", data, again, err)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	v := ascii()
	v.Raw = json.RawMessage(`{"a":"` + strings.Repeat("x", 1000) + `"}`)
	text, err := Append(nil, v)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("here", func(b *testing.B) {
		for b.Loop() {
			var got all
			if !Read(text, &got) {
				b.Fatal("not read")
			}
		}
	})
	b.Run("encoding-json", func(b *testing.B) {
		for b.Loop() {
			if _, ok := strictly(text); !ok {
				b.Fatal("not read")
			}
		}
	})
}
