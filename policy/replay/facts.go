package replay

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bulla-project/bulla/policy"
)

// leaf is a value in a file of a bundle, and where it stands.
type leaf struct {
	path  []string // data, the file's name, and the keys down to the value; for other files the file's name comes first
	value string
	file  string
	line  int
}

// facts are what the files of a revision say besides Rego.
type facts struct {
	files  map[string][]byte
	leaves map[string]leaf // by path
}

func readFacts(archive []byte) (facts, error) {
	files, err := policy.Unpack(archive)
	if err != nil {
		return facts{}, err
	}
	f := facts{files: files, leaves: map[string]leaf{}}
	for name, text := range files {
		if !strings.HasSuffix(name, ".yaml") || name == "canaries.yaml" || name == "manifest.yaml" {
			continue
		}
		var doc yaml.Node
		if err := yaml.Unmarshal(text, &doc); err != nil {
			return facts{}, fmt.Errorf("%s: %w", name, err)
		}
		path := []string{name}
		if root, ok := strings.CutPrefix(name, "data/"); ok {
			path = []string{"data", strings.TrimSuffix(root, ".yaml")}
		}
		for _, n := range doc.Content {
			f.add(n, path, name, n.Line)
		}
	}
	return f, nil
}

// add notes the values below a node. A list is one value, and so is an empty map.
func (f *facts) add(n *yaml.Node, path []string, file string, line int) {
	if n.Kind != yaml.MappingNode || len(n.Content) == 0 {
		var plain any
		_ = n.Decode(&plain) // the revision was loaded: it decodes
		f.leaves[strings.Join(path, "\x00")] = leaf{path: path, value: fmt.Sprint(plain), file: file, line: line}
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		f.add(n.Content[i+1], append(slices.Clip(path), n.Content[i].Value), file, n.Content[i].Line)
	}
}

// Change is a value that two bundles have differently, or a file of Rego.
type Change struct {
	File string `json:"file"`
	Line int    `json:"line"` // in the candidate; of what it has no more, in the revision
	Path string `json:"path"`
	Was  string `json:"was"` // "" where there was none
	Now  string `json:"now"`

	path []string
}

// changes are the differences between the values of two bundles, in the order of their paths.
func changes(was, now facts) []Change {
	keys := map[string]bool{}
	for k := range was.leaves {
		keys[k] = true
	}
	for k := range now.leaves {
		keys[k] = true
	}
	var out []Change
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		a, b := was.leaves[k], now.leaves[k]
		if a.value == b.value && (a.path == nil) == (b.path == nil) {
			continue
		}
		at := b
		if b.path == nil {
			at = a
		}
		out = append(out, Change{File: at.file, Line: at.line, Path: strings.Join(at.path, " "), Was: a.value, Now: b.value, path: at.path})
	}
	return out
}

// rewritten are the files of Rego that differ, tests not counted.
func rewritten(was, now facts) []string {
	var out []string
	for _, f := range []facts{was, now} {
		for name := range f.files {
			if isRule(name) && !bytes.Equal(was.files[name], now.files[name]) && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out
}

// below are the names right below a path.
func (f facts) below(path ...string) []string {
	seen := map[string]bool{}
	for _, l := range f.leaves {
		if len(l.path) > len(path) && slices.Equal(l.path[:len(path)], path) {
			seen[l.path[len(path)]] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// texts are the strings that a list at the end of a path holds, for all paths that end so.
func (f facts) texts(last string) []string {
	var out []string
	for _, l := range f.leaves {
		if l.path[len(l.path)-1] == last {
			out = append(out, strings.Fields(strings.Trim(l.value, "[]"))...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

var country = regexp.MustCompile(`\b[A-Z]{2}\b`)

// countries are the codes that stand in the data.
func (f facts) countries() []string {
	var out []string
	for _, l := range f.leaves {
		if l.path[0] == "data" {
			out = append(out, country.FindAllString(l.value, -1)...)
			out = append(out, country.FindAllString(l.path[len(l.path)-1], -1)...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

var idInRules = regexp.MustCompile(`spiffe://[a-z0-9._-]+/[a-zA-Z0-9._/-]*[a-zA-Z0-9._-]`)

// named are the principals that stand in the rules, tests not counted.
func (f facts) named() []string {
	var out []string
	for name, text := range f.files {
		if isRule(name) {
			out = append(out, idInRules.FindAllString(string(text), -1)...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func isRule(name string) bool {
	return strings.HasSuffix(name, ".rego") && !strings.HasSuffix(name, "_test.rego")
}

// peers is one address in each zone, and one in none.
func (f facts) peers() []string {
	var file struct {
		Zones []struct {
			Name  string
			CIDRs []string `yaml:"cidrs"`
		}
	}
	_ = yaml.Unmarshal(f.files["zones.yaml"], &file) // the revision was loaded: it decodes
	owner, prefixes := map[netip.Prefix]string{}, []netip.Prefix{}
	for _, z := range file.Zones {
		for _, text := range z.CIDRs {
			if p, err := netip.ParsePrefix(text); err == nil {
				owner[p] = z.Name
				prefixes = append(prefixes, p)
			}
		}
	}
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int { return cmp.Compare(b.Bits(), a.Bits()) }) // the longest first
	zoneOf := func(a netip.Addr) string {
		for _, p := range prefixes {
			if p.Contains(a) {
				return owner[p]
			}
		}
		return ""
	}
	out := []string{}
	for _, z := range file.Zones {
		for _, text := range z.CIDRs {
			if a := inside(text, prefixes, func(a netip.Addr) bool { return zoneOf(a) == z.Name }); a.IsValid() {
				out = append(out, netip.AddrPortFrom(a, 40000).String())
				break
			}
		}
	}
	nowhere := netip.MustParseAddr("203.0.113.77")
	if a := inside("0.0.0.0/0", prefixes, func(a netip.Addr) bool { return zoneOf(a) == "" }); zoneOf(nowhere) != "" && a.IsValid() {
		nowhere = a
	}
	return append(out, netip.AddrPortFrom(nowhere, 40000).String())
}

// inside is an address of a range that fits: its first one, or the first one behind a narrower range.
func inside(text string, prefixes []netip.Prefix, fits func(netip.Addr) bool) netip.Addr {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Addr{}
	}
	if fits(p.Addr()) {
		return p.Addr()
	}
	for _, narrow := range prefixes {
		if a := last(narrow).Next(); p.Contains(a) && fits(a) {
			return a
		}
	}
	return netip.Addr{}
}

// last is the last address of a range.
func last(p netip.Prefix) netip.Addr {
	raw := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(raw)*8; bit++ {
		raw[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(raw) // 4 or 16 bytes
	return a
}
