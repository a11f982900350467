package outward

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestCheckURL(t *testing.T) {
	for _, good := range []string{"https://example.org/x", "https://example.org:8443", "http://127.0.0.1:80/x", "http://[::1]:80/x"} {
		if err := CheckURL(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "example.org", "http://example.org/x", "http://localhost/x", "http://192.0.2.1/", "ftp://example.org/", "https://a:b@example.org/", "https://example.org/#x", "https://example.org/?x", "file:///etc/passwd", "https://"} {
		if err := CheckURL(bad); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestBackoff(t *testing.T) {
	last := time.Duration(0)
	for n := range 100 {
		d := Backoff(n, time.Minute)
		if d < last || d < time.Second || d > time.Minute {
			t.Fatalf("after %d failures: %s", n, d)
		}
		last = d
	}
}

func TestReadAll(t *testing.T) {
	if _, err := ReadAll(strings.NewReader("12345"), 4); err == nil {
		t.Error("more than the limit was read")
	}
	if text, err := ReadAll(strings.NewReader("1234"), 4); err != nil || string(text) != "1234" {
		t.Errorf("%q, %v", text, err)
	}
}
