package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

var at = time.Date(2026, 11, 1, 12, 0, 0, 123456789, time.UTC)

// filled returns a body of the type of b in which every field differs from its zero value, as far as
// reflection can tell.
func filled(t testing.TB, b Body) Body {
	t.Helper()
	v := reflect.New(reflect.TypeOf(b)).Elem()
	fill(t, v)
	return v.Interface().(Body)
}

func fill(t testing.TB, v reflect.Value) {
	t.Helper()
	switch x := v.Addr().Interface().(type) {
	case *ID:
		*x = NewID(at)
		return
	case *Time:
		*x = NewTime(at)
		return
	case *Digest:
		*x = Digest{1, 2, 3}
		return
	case *json.RawMessage:
		*x = json.RawMessage(`{"a":[1,"<&>"]}`)
		return
	case *[]byte:
		*x = []byte{0, 255}
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("text <&> \u2028 é")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int64:
		v.SetInt(-7)
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(t, v.Index(0))
		fill(t, v.Index(1))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i))
		}
	default:
		t.Fatalf("no filler for %s", v.Type())
	}
}

func TestEveryTypeRoundTrips(t *testing.T) {
	for _, zero := range bodies {
		for _, body := range []Body{zero, filled(t, zero)} {
			e := New(at, "spiffe://example.org/a", body)
			enc, err := e.Encode()
			if err != nil {
				t.Fatalf("%s: %v", body.EventType(), err)
			}
			if raw, ok := body.(DecisionDenied); ok && raw.Decision.Signals == nil {
				continue // null signals are never written: a decision always has them
			}
			got, err := Decode(enc)
			if err != nil {
				t.Fatalf("%s: %v\n%s", body.EventType(), err, enc)
			}
			again, err := got.Encode()
			if err != nil || !bytes.Equal(again, enc) {
				t.Errorf("%s: %v\n%s\n%s", body.EventType(), err, enc, again)
			}
			if got.ID != e.ID || got.Time != e.Time || got.Subject != e.Subject {
				t.Errorf("%s: header %v", body.EventType(), got)
			}
		}
	}
}

// TestEncodingIsThatOfEncodingJSON: what was recorded before package canonical encoded it is what would be recorded now.
func TestEncodingIsThatOfEncodingJSON(t *testing.T) {
	for _, zero := range bodies {
		for _, body := range []Body{zero, filled(t, zero)} {
			e := New(at, "spiffe://example.org/a", body)
			var want bytes.Buffer
			enc := json.NewEncoder(&want)
			enc.SetEscapeHTML(false)
			if err := enc.Encode(struct {
				head
				Body Body `json:"body"`
			}{head{Version, e.ID, e.Time, body.EventType(), e.Subject}, body}); err != nil {
				t.Fatal(err)
			}
			if got, err := e.Encode(); err != nil || string(got)+"\n" != want.String() {
				t.Errorf("%s: %v\n%s\nencoding/json:\n%s", body.EventType(), err, got, &want)
			}
		}
	}
}

// BenchmarkEncode encodes a gated use of the size of real ones.
func BenchmarkEncode(b *testing.B) {
	raw := json.RawMessage(`{"filler":"` + strings.Repeat("x", 1000) + `"}`)
	e := New(at, "spiffe://example.org/a", SessionUsed{
		Session: NewID(at), Number: 7, Nonce: make([]byte, 32), Exporter: make([]byte, 32), PayloadSHA256: Digest{1}, Signature: make([]byte, 64),
		Decision: Decision{RequestID: NewID(at).String(), Action: "deliver", Effect: "PERMIT", Revision: Digest{1}, Sequence: 1, Signals: raw, Result: raw},
	})
	for b.Loop() {
		if _, err := e.Encode(); err != nil {
			b.Fatal(err)
		}
	}
}

func TestTypesAreDistinctAndRegistered(t *testing.T) {
	if len(registry) != len(bodies) || len(Types()) != len(bodies) {
		t.Fatalf("%d bodies, %d in the registry: two share a type", len(bodies), len(registry))
	}
}

func TestDecodeRefusesEveryOtherSpelling(t *testing.T) {
	e := New(at, "spiffe://example.org/a", SessionRevoked{Session: NewID(at), Reason: "why"})
	enc, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	s := string(enc)
	for name, bad := range map[string]string{
		"trailing newline": s + "\n", "leading space": " " + s, "inner space": strings.Replace(s, `:`, `: `, 1),
		"unknown field": strings.Replace(s, `{"v":1`, `{"x":0,"v":1`, 1), "repeated field": strings.Replace(s, `{"v":1`, `{"v":1,"v":1`, 1),
		"unknown body field": strings.Replace(s, `"reason"`, `"raison"`, 1), "other version": strings.Replace(s, `{"v":1`, `{"v":2`, 1),
		"unknown type": strings.Replace(s, "session.revoked", "session.rev0ked", 1), "escaped letter": strings.Replace(s, "why", `\u0077hy`, 1),
		"upper-case id": strings.Replace(s, e.ID.String(), strings.ToUpper(e.ID.String()), 1), "null body": s[:strings.Index(s, `"body":`)] + `"body":null}`,
		"case of a key": strings.Replace(s, `"reason"`, `"Reason"`, 1), "time zone": strings.Replace(s, "Z\"", "+00:00\"", 1), "cut": s[:len(s)-1], "empty": "",
	} {
		if bad == s {
			t.Fatalf("%s: nothing was changed", name)
		}
		if _, err := Decode([]byte(bad)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Decode(make([]byte, MaxSize+1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("oversized: %v", err)
	}
}

func TestIDsAreOrderedAndCanonical(t *testing.T) {
	last := NewID(at)
	for range 10_000 {
		next := NewID(at) // the same millisecond, more ids than its counter holds
		if bytes.Compare(next[:], last[:]) <= 0 {
			t.Fatalf("%s after %s", next, last)
		}
		last = next
	}
	back := NewID(at.Add(-time.Hour))
	if bytes.Compare(back[:], last[:]) <= 0 {
		t.Error("a clock that went back gave a smaller id")
	}
	if got, err := ParseID(last.String()); err != nil || got != last {
		t.Errorf("%v, %v", got, err)
	}
	v4 := []byte(last.String())
	v4[14] = '4'
	for _, bad := range []string{"", last.String() + " ", strings.ToUpper(last.String()), string(v4), "{" + last.String() + "}", strings.ReplaceAll(last.String(), "-", "")} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}

func TestLeafCommitsToEverything(t *testing.T) {
	s1, s2 := NewSalt(), NewSalt()
	base := NewLeaf([]byte("event"), s1, Digest{1}, s2)
	for name, other := range map[string]Leaf{
		"event": NewLeaf([]byte("Event"), s1, Digest{1}, s2), "event salt": NewLeaf([]byte("event"), s2, Digest{1}, s2),
		"reply": NewLeaf([]byte("event"), s1, Digest{2}, s2), "reply salt": NewLeaf([]byte("event"), s1, Digest{1}, s1),
	} {
		if other == base {
			t.Errorf("another %s gives the same leaf", name)
		}
	}
	if CommitEvent(make([]byte, 32), s1) == CommitReply(Digest{}, s1) {
		t.Error("the two commitments are not told apart")
	}
	got, err := ParseLeaf(base.Bytes())
	if err != nil || got != base || len(base.Bytes()) != LeafSize {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range [][]byte{nil, base.Bytes()[1:], append(base.Bytes(), 0), append([]byte{2}, base.Bytes()[1:]...)} {
		if _, err := ParseLeaf(bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("accepted % x", bad)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, b := range bodies {
		enc, err := New(at, "spiffe://example.org/a", filled(f, b)).Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(enc)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := Decode(data)
		if err != nil {
			return
		}
		again, err := e.Encode()
		if err != nil || !bytes.Equal(again, data) {
			t.Errorf("%v: %q is %q again", err, data, again)
		}
	})
}

func FuzzParseID(f *testing.F) {
	f.Add(NewID(at).String())
	f.Add("00000000-0000-7000-8000-000000000000")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := ParseID(s); err == nil && id.String() != s {
			t.Errorf("%q is %q", s, id)
		}
	})
}

func TestCountersGrow(t *testing.T) {
	seen := DeviceCounters{ResetCount: 5, RestartCount: 1, Clock: 100}
	for _, c := range []struct{ next, want DeviceCounters }{
		{DeviceCounters{ResetCount: 5, RestartCount: 1, Clock: 99}, seen},
		{DeviceCounters{ResetCount: 4, RestartCount: 9, Clock: 900}, seen},
		{DeviceCounters{ResetCount: 5, RestartCount: 1, Clock: 101}, DeviceCounters{ResetCount: 5, RestartCount: 1, Clock: 101}},
		{DeviceCounters{ResetCount: 6}, DeviceCounters{ResetCount: 6}},
	} {
		if got := seen.Later(c.next); got != c.want {
			t.Errorf("after %v: %v, want %v", c.next, got, c.want)
		}
	}
}

// An id says when it was made, and the two kinds of new ones are well-formed; that of a request keeps to the clock.
func TestIDsHaveATime(t *testing.T) {
	ahead := NewID(at.Add(time.Hour)) // and every later one of NewID stays above it
	for _, id := range []ID{NewRequestID(at), NewRequestID(at)} {
		parsed, err := ParseID(id.String())
		if err != nil || parsed != id || !id.Time().Equal(at.Truncate(time.Millisecond)) {
			t.Errorf("%s: %v, of %s", id, err, id.Time())
		}
		if id.String() < IDsFrom(at) || id.String() >= IDsFrom(at.Add(time.Millisecond)) || ahead.String() < IDsFrom(at.Add(time.Hour)) {
			t.Errorf("%s is not where ids of its time are", id)
		}
	}
	if !NewID(at).Time().After(at) {
		t.Error("NewID went back")
	}
}
