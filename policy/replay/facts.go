package replay

import (
	"bytes"
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
			if strings.HasSuffix(name, ".rego") && !strings.HasSuffix(name, "_test.rego") &&
				!bytes.Equal(was.files[name], now.files[name]) && !slices.Contains(out, name) {
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

// countries are the codes that stand in the data, at most limit.
func (f facts) countries(limit int) []string {
	var out []string
	for _, l := range f.leaves {
		if l.path[0] == "data" {
			out = append(out, country.FindAllString(l.value, -1)...)
			out = append(out, country.FindAllString(l.path[len(l.path)-1], -1)...)
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	return out[:min(len(out), limit)]
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
	out := []string{}
	for _, z := range file.Zones {
		for _, text := range z.CIDRs[:min(1, len(z.CIDRs))] {
			if p, err := netip.ParsePrefix(text); err == nil {
				out = append(out, netip.AddrPortFrom(p.Addr(), 40000).String())
			}
		}
	}
	return append(out, "203.0.113.77:40000")
}
