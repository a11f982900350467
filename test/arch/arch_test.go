// Package arch_test holds the rules about the source that no compiler checks: who may import whom and why,
// what a workload's process must not link, and a few habits of the house. It reads the source; it runs none.
package arch_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/test/xtest"
)

const module = "github.com/bulla-project/bulla"

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath, Dir, Name, Doc string
	Imports                    []string
	TestImports, XTestImports  []string
	GoFiles, CgoFiles          []string
	TestGoFiles, XTestGoFiles  []string
	Error                      *struct{ Err string }
}

// graph is every package that the module's programs and libraries are built from, by import path.
type graph map[string]*pkg

// own gives the module's packages in the order of their paths, with paths relative to the module.
func (g graph) own() []string {
	var paths []string
	for path := range g {
		if rel, ok := strings.CutPrefix(path, module+"/"); ok {
			paths = append(paths, rel)
		}
	}
	slices.Sort(paths)
	return paths
}

func load(t *testing.T) graph {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-deps",
		"-json=ImportPath,Dir,Name,Doc,Imports,TestImports,XTestImports,GoFiles,CgoFiles,TestGoFiles,XTestGoFiles,Error", "./...")
	cmd.Dir = xtest.Root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	g, err := decode(out)
	if err != nil {
		t.Fatalf("read what go list says: %v", err)
	}
	return g
}

func decode(out []byte) (graph, error) {
	g := graph{}
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return g, nil
		} else if err != nil {
			return nil, err
		}
		if p.Error != nil && strings.HasPrefix(p.ImportPath, module) {
			return nil, fmt.Errorf("%s: %s", p.ImportPath, p.Error.Err)
		}
		g[p.ImportPath] = &p
	}
}

// TestPicture compares the imports within the module with the table, in both directions.
func TestPicture(t *testing.T) {
	g := load(t)
	for _, fault := range pictureFaults(g, picture) {
		t.Error(fault)
	}
}

func pictureFaults(g graph, rows []row) []string {
	var faults []string
	rank := map[string]int{}
	for i, r := range rows {
		if _, twice := rank[r.path]; twice {
			faults = append(faults, fmt.Sprintf("%s stands in the picture twice", r.path))
		}
		rank[r.path] = i
	}
	for _, path := range g.own() {
		if _, listed := rank[path]; !listed {
			faults = append(faults, fmt.Sprintf("%s is not in the picture: give it a row, with a reason for each import", path))
		}
	}
	for i, r := range rows {
		p := g[module+"/"+r.path]
		if p == nil {
			faults = append(faults, fmt.Sprintf("%s is in the picture but not in the module", r.path))
			continue
		}
		faults = append(faults, rowFaults(p, r, i, rank)...)
	}
	return faults
}

func rowFaults(p *pkg, r row, i int, rank map[string]int) []string {
	var faults []string
	used := map[string]bool{}
	for _, imported := range p.Imports {
		rel, own := strings.CutPrefix(imported, module+"/")
		if !own {
			continue
		}
		used[rel] = true
		if r.imports[rel] == "" && r.imports[everything] == "" {
			faults = append(faults, fmt.Sprintf("%s imports %s, and the picture gives no reason for it", r.path, rel))
		}
		if at, listed := rank[rel]; listed && at >= i {
			faults = append(faults, fmt.Sprintf("%s imports %s, which stands higher: imports go down only", r.path, rel))
		}
	}
	for rel := range r.imports {
		if !used[rel] && rel != everything {
			faults = append(faults, fmt.Sprintf("%s no longer imports %s: take the reason out of the picture", r.path, rel))
		}
	}
	return faults
}

// TestReach checks what must not be linked, through however many packages.
func TestReach(t *testing.T) {
	g := load(t)
	for _, fault := range reachFaults(g, bans()) {
		t.Error(fault)
	}
}

func reachFaults(g graph, all []ban) []string {
	var faults []string
	gone := map[string]bool{}
	for _, b := range all {
		if g[module+"/"+b.from] == nil {
			if !gone[b.from] {
				faults = append(faults, fmt.Sprintf("%s has a ban but is not in the module", b.from))
			}
			gone[b.from] = true
			continue
		}
		if way := g.way(module+"/"+b.from, b.matches); way != nil {
			faults = append(faults, fmt.Sprintf("%s reaches %s (%s): %s", b.from, b.reach, strings.Join(way, " > "), b.reason))
		}
	}
	return faults
}

// matches reports whether path is the banned one. A third party is banned with all that lies below it; a
// package of the module or of the standard library alone.
func (b ban) matches(path string) bool {
	if path == b.reach {
		return true
	}
	first, _, _ := strings.Cut(b.reach, "/")
	thirdParty := strings.Contains(first, ".") && !strings.HasPrefix(b.reach, module)
	return thirdParty && strings.HasPrefix(path, b.reach+"/")
}

// way gives the shortest chain of imports from a package to one that matches, nil if there is none.
func (g graph) way(from string, matches func(string) bool) []string {
	came := map[string]string{from: ""}
	queue := []string{from}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		if at != from && matches(at) {
			var chain []string
			for ; at != ""; at = came[at] {
				chain = append([]string{strings.TrimPrefix(at, module+"/")}, chain...)
			}
			return chain
		}
		if g[at] == nil {
			continue
		}
		for _, next := range g[at].Imports {
			if _, seen := came[next]; !seen {
				came[next] = at
				queue = append(queue, next)
			}
		}
	}
	return nil
}

// TestOnlyTestsImportTestPackages keeps fakes and fixtures out of the program.
func TestOnlyTestsImportTestPackages(t *testing.T) {
	g := load(t)
	for _, path := range g.own() {
		if forTests(path) {
			continue
		}
		for _, imported := range g[module+"/"+path].Imports {
			if rel, own := strings.CutPrefix(imported, module+"/"); own && forTests(rel) {
				t.Errorf("%s imports %s, which is for tests only", path, rel)
			}
		}
	}
}

func forTests(path string) bool {
	return strings.HasPrefix(path, "test/") || slices.Contains(strings.Split(path, "/"), "xtest") ||
		strings.HasSuffix(path, "/storetest")
}

// TestNoCgo looks at the tests as well: `go test ./...` has to work without a C compiler.
func TestNoCgo(t *testing.T) {
	g := load(t)
	for _, path := range g.own() {
		p := g[module+"/"+path]
		if len(p.CgoFiles) > 0 {
			t.Errorf("%s uses cgo in %v", path, p.CgoFiles)
		}
		for _, imports := range [][]string{p.Imports, p.TestImports, p.XTestImports} {
			if slices.Contains(imports, "C") {
				t.Errorf(`%s imports "C"`, path)
			}
		}
	}
}

// TestPackageComments wants of every package a comment that says what it does.
func TestPackageComments(t *testing.T) {
	g := load(t)
	for _, path := range g.own() {
		p := g[module+"/"+path]
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment", path)
		}
		if len(p.GoFiles) == 0 && !slices.ContainsFunc(parse(t, p, testFiles(p)), hasDoc) {
			t.Errorf("%s has no package comment in its tests", path)
		}
	}
}

// TestExitsOnlyInCommands: a library returns its errors, and only a program decides to end.
func TestExitsOnlyInCommands(t *testing.T) {
	g := load(t)
	for _, path := range g.own() {
		if g[module+"/"+path].Name == "main" {
			continue
		}
		p := g[module+"/"+path]
		for _, f := range parse(t, p, p.GoFiles) {
			for _, call := range exits(f.File) {
				t.Errorf("%s: %s outside cmd/", f.name, call)
			}
		}
	}
}

// TestNoInit: nothing happens because a package is linked.
func TestNoInit(t *testing.T) {
	g := load(t)
	for _, path := range g.own() {
		p := g[module+"/"+path]
		for _, f := range parse(t, p, p.GoFiles) {
			if !ast.IsGenerated(f.File) && slices.ContainsFunc(f.Decls, isInit) {
				t.Errorf("%s: func init", f.name)
			}
		}
	}
}

// source is one parsed file and its name below the module.
type source struct {
	*ast.File
	name string
}

func parse(t *testing.T, p *pkg, names []string) []source {
	t.Helper()
	var files []source
	for _, name := range names {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ParseComments)
		if err != nil {
			t.Fatalf("parse: %v", err)
		}
		files = append(files, source{f, strings.TrimPrefix(p.ImportPath, module+"/") + "/" + name})
	}
	return files
}

func testFiles(p *pkg) []string { return slices.Concat(p.TestGoFiles, p.XTestGoFiles) }

func hasDoc(f source) bool { return f.Doc != nil }

func isInit(d ast.Decl) bool {
	fn, ok := d.(*ast.FuncDecl)
	return ok && fn.Recv == nil && fn.Name.Name == "init"
}

// exits finds the calls that end the process: os.Exit, log.Fatal*, log.Panic* and syscall.Exit.
func exits(f *ast.File) []string {
	var found []string
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		id, ok := sel.X.(*ast.Ident)
		if !ok {
			return true
		}
		name := id.Name + "." + sel.Sel.Name
		if name == "os.Exit" || name == "syscall.Exit" ||
			strings.HasPrefix(name, "log.Fatal") || strings.HasPrefix(name, "log.Panic") {
			found = append(found, name)
		}
		return true
	})
	return found
}
