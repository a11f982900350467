package abuse

import (
	"errors"
	"testing"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/test/rig"
)

func TestPath(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "hello")
	c := r.Client("workload")
	s, err := c.Get(t.Context(), "demo/hello")
	if err != nil {
		t.Fatalf("%v\n%s", err, r.Log)
	}
	err = s.Use(func(b []byte) error {
		if string(b) != "hello" {
			return errors.New("another value")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.Receipt != "confirmed" {
		t.Error(s.Receipt)
	}
	r.Put("demo/high", "high", "top")
	file, _ := r.Device(rig.ID("workload").String())
	c2 := r.Client("workload", func(c *client.Config) { c.DeviceFile = file })
	s2, err := c2.Get(t.Context(), "demo/high")
	if err != nil {
		t.Fatalf("%v\n%s", err, r.Log)
	}
	t.Log(string(s2.Attestation), s2.RiskScore)
	if _, err := c.Get(t.Context(), "demo/high"); !errors.Is(err, client.ErrDenied) {
		t.Error(err)
	}
	if _, err := r.Client("stranger").Get(t.Context(), "demo/hello"); !errors.Is(err, client.ErrDenied) {
		t.Error(err)
	} else { t.Log(err) }
	for _, e := range r.Events() {
		t.Log(e.ID, e.Body.EventType())
	}
	r.Check()
}
