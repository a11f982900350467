package policy

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"

	shipped "github.com/bulla-project/bulla/rego"
)

func FuzzUnpack(f *testing.F) {
	good := changed(f, nil)
	f.Add(good)
	f.Add([]byte(archiveLabel))
	f.Add([]byte(archiveLabel + "risk.yaml 0\n\n"))
	f.Add(append(bytes.Clone(good), '\n'))
	f.Fuzz(func(t *testing.T, archive []byte) {
		files, err := Unpack(archive)
		if err != nil {
			return
		}
		if !bytes.Equal(encodeArchive(files), archive) {
			t.Fatal("an archive that is not canonical was accepted")
		}
		readBundle(files)
	})
}

func TestUnpackRefusesEveryOtherForm(t *testing.T) {
	t.Parallel()
	good := changed(t, nil)
	if _, err := Unpack(good); err != nil {
		t.Fatal(err)
	}
	tiny := string(encodeArchive(map[string][]byte{
		fileCanaries: nil, fileManifest: []byte("x"), fileReferences: nil, fileRisk: nil, fileZones: nil,
	}))
	if _, err := Unpack([]byte(tiny)); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"empty":           "",
		"label":           strings.Replace(tiny, "/v1", "/v2", 1),
		"order":           archiveLabel + "risk.yaml 0\n\ncanaries.yaml 0\n\nmanifest.yaml 1\nx\nreferences.yaml 0\n\nzones.yaml 0\n\n",
		"twice":           strings.Replace(tiny, "risk.yaml 0\n\n", "risk.yaml 0\n\nrisk.yaml 0\n\n", 1),
		"leading zero":    strings.Replace(tiny, "manifest.yaml 1", "manifest.yaml 01", 1),
		"plus":            strings.Replace(tiny, "manifest.yaml 1", "manifest.yaml +1", 1),
		"too short":       strings.Replace(tiny, "manifest.yaml 1", "manifest.yaml 9999999", 1),
		"too large":       strings.Replace(tiny, "manifest.yaml 1", "manifest.yaml 99999999999999999999", 1),
		"name":            strings.Replace(tiny, "manifest.yaml", "../etc.yaml", 1),
		"cut off":         tiny[:len(tiny)-1],
		"trailing":        tiny + "x",
		"missing":         strings.Replace(tiny, "zones.yaml 0\n\n", "", 1),
		"no space":        strings.Replace(tiny, "risk.yaml 0", "risk.yaml", 1),
		"endless header":  archiveLabel + strings.Repeat("a", 200),
		"carriage return": strings.Replace(tiny, "risk.yaml 0\n", "risk.yaml 0\r\n", 1),
	} {
		if _, err := Unpack([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParseSignals(f *testing.F) {
	for _, s := range []Signals{{}, request("x", ActionDoctor), placed("DE"), attested(delivery("workload", "demo/key", "high"), "tpm2", "affirming", 90)} {
		text, err := s.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseSignals(text)
		if err != nil {
			return
		}
		if again, err := s.Encode(); err != nil || !bytes.Equal(again, text) {
			t.Fatal("signals that are not canonical were accepted")
		}
	})
}

func TestSignalsHaveOneForm(t *testing.T) {
	t.Parallel()
	s := attested(delivery("workload", "demo/key", "high"), "tpm2", "affirming", 90)
	s.Attestation.Reasons = []string{"<a> & b"}
	text, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseSignals(text); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"space":     append([]byte(" "), text...),
		"newline":   append(bytes.Clone(text), '\n'),
		"unknown":   bytes.Replace(text, []byte(`"v":1`), []byte(`"v":1,"x":1`), 1),
		"version":   bytes.Replace(text, []byte(`"v":1`), []byte(`"v":2`), 1),
		"case":      bytes.Replace(text, []byte(`"now"`), []byte(`"Now"`), 1),
		"twice":     bytes.Replace(text, []byte(`"v":1`), []byte(`"v":1,"v":1`), 1),
		"escaped":   bytes.Replace(text, []byte(`deliver`), []byte(`\u0064eliver`), 1),
		"fraction":  bytes.Replace(text, []byte(`"score":90`), []byte(`"score":90.0`), 1),
		"missing":   bytes.Replace(text, []byte(`"instance":"thumb",`), nil, 1),
		"two":       append(bytes.Clone(text), text...),
		"too large": bytes.Repeat([]byte(" "), MaxSignalsSize+1),
	} {
		if _, err := ParseSignals(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, text := range []string{"\xff", "a\xc3", string([]rune{0xfffd})} {
		s.Network.TLSGroup = text
		if _, err := s.Encode(); err == nil {
			t.Errorf("%q was encoded", text)
		}
	}
	s.Network.TLSGroup = strings.Repeat("x", MaxSignalsSize)
	if _, err := s.Encode(); err == nil {
		t.Error("signals above the limit were encoded")
	}
	// What can't be recorded can't be permitted.
	if d := newEngine(t, Config{}).Decide(t.Context(), open(t, answer(whole("PERMIT", "{}", "{}"))), s); d.Effect != Deny || d.Fault == "" {
		t.Error(describe(d))
	}
}

func FuzzData(f *testing.F) {
	for _, text := range bundleFiles(f, shipped.Development(), nil) {
		f.Add(text)
	}
	f.Add([]byte("a: &x [1]\nb: *x\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if v, err := dataValue(text); err == nil && !v.IsGround() {
			t.Fatal("data with a variable in it")
		}
		_, _ = parseZones(text)
		_, _ = parseCanaries(text)
	})
}

func TestZones(t *testing.T) {
	t.Parallel()
	z, err := parseZones([]byte("version: 1\nzones:\n- {name: outer, cidrs: [10.0.0.0/8, 'fd00::/8']}\n- {name: inner, cidrs: [10.1.0.0/16]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	for peer, want := range map[string]string{
		"10.2.0.1:1": "10.2.0.1 outer", "10.1.0.1:1": "10.1.0.1 inner", "[::ffff:10.1.0.1]:1": "10.1.0.1 inner",
		"[fd00::1]:1": "fd00::1 outer", "[fd00::1%eth0]:1": "fd00::1 outer", "11.0.0.1:1": "11.0.0.1 unknown",
		"10.1.0.1": " unknown", "": " unknown", "@": " unknown", "example.org:1": " unknown",
	} {
		addr, zone := z.find(peer)
		if got := addr + " " + zone; got != want {
			t.Errorf("%s: %q, want %q", peer, got, want)
		}
	}
}

// TestInputFitsTheSchema compares the fullest and the emptiest input with the schema that policies are
// compiled against: no field is missing from either, and each has its type.
func TestInputFitsTheSchema(t *testing.T) {
	t.Parallel()
	var schema map[string]any
	if err := json.Unmarshal(shipped.InputSchema(), &schema); err != nil {
		t.Fatal(err)
	}
	rev := open(t, map[string]string{filePersons: aliceSpeaks})
	full := attested(delivery("workload", "demo/key", "high"), "tpm2", "affirming", 90)
	full.Place, full.History.Travel = placed("DE").Place, &Travel{}
	full.Factors = []Factor{{
		Kind: FactorOIDC, Issuer: "https://idp.test", Subject: "alice", Type: TypeUser, IssuedAt: now - second, ExpiresAt: now + 60*second,
		Claims: map[string][]string{"groups": {"a", "b"}},
	}}
	full.External = []ExternalSignal{{Transmitter: "idp", Type: "risk-level-change", Level: ExternalRaised, Received: now - second, Expires: now + second}}
	full.Resource.Session = &Session{}
	full.Resource.Device = &Device{}
	full.Resource.Revision = &NewRules{}
	full.Resource.Round = &Round{Holders: []string{"spiffe://test/a"}}
	full.Approvals = []Approval{{Principal: "spiffe://test/a", At: full.Now - 1}}
	for name, s := range map[string]Signals{"full": full, "empty": {}, "early": {Now: -1}} {
		v, _ := rev.Input(s)
		plain, err := ast.JSON(v)
		if err != nil {
			t.Fatal(err)
		}
		fit(t, name+": input", schema, plain, name == "full")
	}
}

func fit(t *testing.T, path string, schema map[string]any, v any, full bool) {
	t.Helper()
	switch schema["type"] {
	case "object":
		obj, ok := v.(map[string]any)
		if !ok {
			t.Errorf("%s is no object", path)
			return
		}
		properties, ok := schema["properties"].(map[string]any)
		if !ok { // any names, of one type
			for key, x := range obj {
				fit(t, path+"."+key, schema["additionalProperties"].(map[string]any), x, full)
			}
			return
		}
		for key, x := range obj {
			p, ok := properties[key].(map[string]any)
			if !ok {
				t.Errorf("%s.%s is not in the schema", path, key)
				continue
			}
			fit(t, path+"."+key, p, x, full)
		}
		for key := range properties {
			if _, ok := obj[key]; !ok && full {
				t.Errorf("%s.%s is in the schema only", path, key)
			}
		}
		for _, key := range schema["required"].([]any) {
			if _, ok := obj[key.(string)]; !ok {
				t.Errorf("%s.%s is required and missing", path, key)
			}
		}
	case "array":
		for _, x := range v.([]any) {
			fit(t, path+"[]", schema["items"].(map[string]any), x, full)
		}
	case "string":
		if _, ok := v.(string); !ok {
			t.Errorf("%s is no text", path)
		}
	case "integer":
		if n, ok := v.(json.Number); !ok || strings.ContainsAny(n.String(), ".eE") {
			t.Errorf("%s is no integer", path)
		}
	case "boolean":
		if _, ok := v.(bool); !ok {
			t.Errorf("%s is not true or false", path)
		}
	default:
		t.Errorf("%s has no type in the schema", path)
	}
}
