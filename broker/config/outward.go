package config

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/internal/outward"
)

// Witnesses says who cosigns the log's checkpoints (C2SP tlog-witness). None: nobody.
type Witnesses struct {
	// Quorum is how many of them make a checkpoint a witnessed one: what is served, published and proven with.
	Quorum int `yaml:"quorum"`
	// Every is the shortest time between two rounds (10 s if not given), Refresh the longest until a witness is asked again
	// about the tree that it knows (5 min).
	Every   time.Duration `yaml:"every"`
	Refresh time.Duration `yaml:"refresh"`
	List    []Witness     `yaml:"list"`
}

// Witness is one witness.
type Witness struct {
	Key     string        `yaml:"key"` // NAME+HASH+KEY, as the witness publishes it
	URL     string        `yaml:"url"` // submission prefix: /add-checkpoint is put to it
	Timeout time.Duration `yaml:"timeout"`
	CAFile  string        `yaml:"ca_file"` // PEM; the system's authorities if not given
}

// Publication is a place that gets the newest checkpoint: exactly one of Directory and URL.
type Publication struct {
	Directory       string        `yaml:"directory"`
	URL             string        `yaml:"url"` // of the object itself, written by PUT
	BearerTokenFile string        `yaml:"bearer_token_file"`
	CAFile          string        `yaml:"ca_file"`
	Timeout         time.Duration `yaml:"timeout"`
}

// Tiles says where the log is served as C2SP tlog-tiles: without authentication, the salted leaves only.
type Tiles struct {
	// Listen is host:port. Without CertFile and KeyFile it is plain HTTP, and has to be a loopback address.
	Listen   string `yaml:"listen"`
	CertFile string `yaml:"cert_file"` // PEM, read again when it changes
	KeyFile  string `yaml:"key_file"`
}

const (
	maxPublications = 16
	maxOutwardTime  = time.Minute
)

// outwardFiles are the paths that the configuration of the log names besides its copy.
func (c *Config) outwardFiles() []*string {
	out := []*string{&c.Log.Tiles.CertFile, &c.Log.Tiles.KeyFile}
	for i := range c.Log.Witnesses.List {
		out = append(out, &c.Log.Witnesses.List[i].CAFile)
	}
	for i := range c.Log.Publish {
		p := &c.Log.Publish[i]
		out = append(out, &p.Directory, &p.BearerTokenFile, &p.CAFile)
	}
	return out
}

func (w Witnesses) validate(fault func(key, format string, args ...any)) {
	if len(w.List) == 0 {
		if w.Quorum != 0 || w.Every != 0 || w.Refresh != 0 {
			fault("log.witnesses", "there is no list of witnesses")
		}
		return
	}
	if len(w.List) > proofs.MaxWitnesses {
		fault("log.witnesses.list", "%d witnesses, at most %d are allowed", len(w.List), proofs.MaxWitnesses)
	}
	if w.Quorum < 1 || w.Quorum > len(w.List) {
		fault("log.witnesses.quorum", "%d is not 1 to %d, the number of witnesses", w.Quorum, len(w.List))
	}
	if w.Every != 0 && w.Every < time.Second || w.Refresh != 0 && w.Refresh < time.Second {
		fault("log.witnesses", "every and refresh are a second at least")
	}
	seen := map[string]bool{}
	for i, one := range w.List {
		key := fmt.Sprintf("log.witnesses.list[%d]", i)
		parsed, err := proofs.ParseWitnessKey(one.Key)
		if err != nil {
			fault(key+".key", "%v", err)
		} else if seen[parsed.String()] {
			fault(key+".key", "it is named twice")
		}
		seen[parsed.String()] = true
		if err := outward.CheckURL(one.URL); err != nil {
			fault(key+".url", "%v", err)
		}
		checkTimeout(key, one.Timeout, fault)
	}
}

func checkTimeout(key string, d time.Duration, fault func(key, format string, args ...any)) {
	if d < 0 || d > maxOutwardTime {
		fault(key+".timeout", "%s is more than %s, or negative", d, maxOutwardTime)
	}
}

func validatePublish(all []Publication, fault func(key, format string, args ...any)) {
	if len(all) > maxPublications {
		fault("log.publish", "%d places, at most %d are allowed", len(all), maxPublications)
	}
	for i, p := range all {
		key := fmt.Sprintf("log.publish[%d]", i)
		switch {
		case (p.Directory == "") == (p.URL == ""):
			fault(key, "name a directory or a url, and not both")
		case p.Directory != "" && (p.BearerTokenFile != "" || p.CAFile != ""):
			fault(key, "a directory has no bearer_token_file and no ca_file")
		case p.URL != "":
			if err := outward.CheckURL(p.URL); err != nil {
				fault(key+".url", "%v", err)
			}
		}
		checkTimeout(key, p.Timeout, fault)
	}
}

func (t Tiles) validate(fault func(key, format string, args ...any)) {
	if t.Listen == "" {
		if t.CertFile != "" || t.KeyFile != "" {
			fault("log.tiles.listen", "it is missing: use host:port")
		}
		return
	}
	if err := address(t.Listen); err != nil {
		fault("log.tiles.listen", "%v", err)
		return
	}
	switch {
	case (t.CertFile == "") != (t.KeyFile == ""):
		fault("log.tiles", "cert_file and key_file are needed together")
	case t.CertFile == "" && !loopback(t.Listen):
		fault("log.tiles", "without cert_file and key_file it is plain HTTP: listen has to be a loopback IP address")
	}
}

// loopback says whether host:port is an IP address of this machine alone.
func loopback(hostPort string) bool {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
