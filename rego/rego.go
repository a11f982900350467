// Package rego holds the policy that Bulla ships, as files: a start for production (base), the same policy
// with the data of the development trust domain (development), and the schema of the input. README.md
// beside it explains how to write such a policy.
//
// It holds no logic of decisions: package policy loads, checks and evaluates the files.
package rego

import (
	"embed"
	"errors"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
)

//go:embed base development schemas/input.json
var files embed.FS

//go:embed schemas/input.json
var inputSchema string

// InputSchema returns the JSON schema of the input, against which every policy is compiled.
func InputSchema() []byte { return []byte(inputSchema) }

// Base returns the bundle to start from in production. It names example principals and grants nothing.
func Base() fs.FS { return sub("base") }

// Development returns the bundle of `bulla dev`: the files of Base, of which those in development/ are
// replaced.
func Development() fs.FS { return overlay{top: sub("development"), bottom: Base()} }

func sub(dir string) fs.FS {
	out, err := fs.Sub(files, dir)
	if err != nil {
		panic("rego: internal error: " + err.Error()) // the name is a constant
	}
	return out
}

// overlay shows the files of top, and those of bottom that top does not have.
type overlay struct{ top, bottom fs.FS }

// Open implements fs.FS.
func (o overlay) Open(name string) (fs.File, error) {
	f, err := o.top.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return o.bottom.Open(name)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil || !info.IsDir() {
		return f, err
	}
	entries, err := o.ReadDir(name)
	return &folder{File: f, entries: entries}, err
}

// ReadDir implements fs.ReadDirFS.
func (o overlay) ReadDir(name string) ([]fs.DirEntry, error) {
	byName := map[string]fs.DirEntry{}
	var missing int
	for _, layer := range []fs.FS{o.bottom, o.top} {
		entries, err := fs.ReadDir(layer, name)
		if errors.Is(err, fs.ErrNotExist) {
			missing++
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			byName[e.Name()] = e
		}
	}
	if missing == 2 {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrNotExist}
	}
	return slices.SortedFunc(maps.Values(byName), func(a, b fs.DirEntry) int {
		return strings.Compare(a.Name(), b.Name())
	}), nil
}

// folder is an open directory with the entries of both layers.
type folder struct {
	fs.File
	entries []fs.DirEntry
}

// ReadDir implements fs.ReadDirFile.
func (d *folder) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 {
		n = len(d.entries)
	} else if len(d.entries) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(d.entries))
	out := d.entries[:n:n]
	d.entries = d.entries[n:]
	return out, nil
}
