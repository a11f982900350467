package config

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const (
	keyA = "witness.example/w1+ed03c8d7+BDuvLZVszyxTL8EvS5sbo28VASHFGOq3xEs562vF4W+I"
	keyB = "other.example/w+80c36f71+BCminVjhlSFekG/uyRnoMD3hUQP4cEi6oaTo40T7jdCR"
)

// What of the log others see is refused where it could not work, or would show too much.
func TestOutward(t *testing.T) {
	faults := func(edit func(l *Log)) string {
		var l Log
		edit(&l)
		var out []string
		fault := func(key, format string, args ...any) { out = append(out, key+": "+fmt.Sprintf(format, args...)) }
		l.Witnesses.validate(fault)
		validatePublish(l.Publish, fault)
		l.Tiles.validate(fault)
		return strings.Join(out, "\n")
	}
	good := func(l *Log) {
		l.Witnesses = Witnesses{Quorum: 1, List: []Witness{{Key: keyA, URL: "https://a.example/"}, {Key: keyB, URL: "http://127.0.0.1:1/"}}}
		l.Publish = []Publication{{Directory: "d"}, {URL: "https://a.example/x", BearerTokenFile: "t", CAFile: "c", Timeout: time.Second}}
		l.Tiles = Tiles{Listen: "[::1]:9444"}
	}
	if got := faults(good); got != "" {
		t.Errorf("a good one: %s", got)
	}
	if got := faults(func(l *Log) { l.Tiles = Tiles{Listen: "0.0.0.0:9444", CertFile: "c", KeyFile: "k"} }); got != "" {
		t.Errorf("tiles over TLS: %s", got)
	}
	for want, edit := range map[string]func(l *Log){
		"no list of witnesses":       func(l *Log) { l.Witnesses = Witnesses{Quorum: 1} },
		"1 to 2":                     func(l *Log) { l.Witnesses.Quorum = 3 },
		"a second at least":          func(l *Log) { l.Witnesses.Every = time.Millisecond },
		"named twice":                func(l *Log) { l.Witnesses.List[1].Key = keyA },
		"list[0].key":                func(l *Log) { l.Witnesses.List[0].Key = "x" },
		"list[1].url":                func(l *Log) { l.Witnesses.List[1].URL = "http://192.0.2.1/" },
		"list[0].timeout":            func(l *Log) { l.Witnesses.List[0].Timeout = time.Hour },
		"at most 16":                 func(l *Log) { l.Witnesses.List = make([]Witness, 17) },
		"a directory or a url":       func(l *Log) { l.Publish[0].URL = "https://a.example/x" },
		"publish[1].url":             func(l *Log) { l.Publish[1].URL = "http://a.example/x" },
		"a directory has no":         func(l *Log) { l.Publish[0].CAFile = "c" },
		"at most 16 are":             func(l *Log) { l.Publish = make([]Publication, 17) },
		"needed together":            func(l *Log) { l.Tiles.CertFile = "c" },
		"plain HTTP":                 func(l *Log) { l.Tiles.Listen = "0.0.0.0:9444" },
		"loopback IP address":        func(l *Log) { l.Tiles.Listen = "localhost:9444" },
		"log.tiles.listen: it is mi": func(l *Log) { l.Tiles = Tiles{CertFile: "c"} },
		"has no valid port":          func(l *Log) { l.Tiles.Listen = "127.0.0.1:x" },
	} {
		if got := faults(func(l *Log) { good(l); edit(l) }); !strings.Contains(got, want) {
			t.Errorf("%q is not said: %s", want, got)
		}
	}
}
