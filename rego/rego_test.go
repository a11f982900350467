package rego

import (
	"encoding/json"
	"io/fs"
	"testing"
	"testing/fstest"
)

func TestFileSystems(t *testing.T) {
	t.Parallel()
	for name, fsys := range map[string]fs.FS{"base": Base(), "development": Development()} {
		if err := fstest.TestFS(fsys, "manifest.yaml", "rego/decision.rego", "data/grants.yaml", "zones.yaml"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := fs.ReadDir(Development(), "absent"); err == nil {
		t.Error("a folder that neither layer has was read")
	}
}

func TestDevelopmentReplacesOnlyData(t *testing.T) {
	t.Parallel()
	err := fs.WalkDir(Base(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		base, err := fs.ReadFile(Base(), name)
		if err != nil {
			return err
		}
		dev, err := fs.ReadFile(Development(), name)
		if err != nil {
			return err
		}
		_, err = fs.Stat(sub("development"), name)
		if replaced := err == nil; replaced == (string(base) == string(dev)) {
			t.Errorf("%s: replaced %t, but equal %t", name, replaced, string(base) == string(dev))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if entries, err := fs.ReadDir(sub("development"), "rego"); err == nil {
		t.Errorf("development has Rego of its own: %v", entries)
	}
}

func TestSchemaIsJSON(t *testing.T) {
	t.Parallel()
	if !json.Valid(InputSchema()) {
		t.Error("the schema is not JSON")
	}
}
