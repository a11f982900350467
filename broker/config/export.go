package config

import (
	"fmt"
	"regexp"
)

// maxSinks is how many sinks there may be: each reads the ledger for itself.
const maxSinks = 8

// sinkName is what a sink may be called: the name is part of a file's name and of metrics.
var sinkName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// Export says where the events are written as OCSF lines, besides the ledger. A sink that is slow or fails delays nothing.
type Export struct {
	Sinks []ExportSink `yaml:"sinks"`
}

// ExportSink names a sink: exactly one of File, Stdout and CloudWatch.
type ExportSink struct {
	// Name is that of the file in data_dir that keeps how far the sink is: another name begins at From.
	Name       string      `yaml:"name"`
	File       string      `yaml:"file"`
	Stdout     bool        `yaml:"stdout"`
	CloudWatch *CloudWatch `yaml:"cloudwatch"`
	// From is the index of the first event.
	From int64 `yaml:"from"`
}

// CloudWatch names a stream of AWS CloudWatch Logs; credentials come from the environment as the AWS SDK finds them.
type CloudWatch struct {
	Group    string `yaml:"group"`
	Stream   string `yaml:"stream"`
	Region   string `yaml:"region"`
	Endpoint string `yaml:"endpoint"` // only for private endpoints
}

// exportFiles are the paths that the configuration of sinks names.
func (c *Config) exportFiles() (out []*string) {
	for i := range c.Export.Sinks {
		out = append(out, &c.Export.Sinks[i].File)
	}
	return out
}

func (e Export) validate(fault func(key, format string, args ...any)) {
	if len(e.Sinks) > maxSinks {
		fault("export.sinks", "there are %d, at most %d are possible", len(e.Sinks), maxSinks)
	}
	taken := map[string]bool{}
	once := func(key, what string) {
		if taken[what] {
			fault(key, "%s is there twice", what)
		}
		taken[what] = true
	}
	for i, s := range e.Sinks {
		key := fmt.Sprintf("export.sinks[%d]", i)
		if !sinkName.MatchString(s.Name) {
			fault(key, "name %.100q is none: use up to 32 of a to z, 0 to 9 and -", s.Name)
		}
		once(key, "the name "+s.Name)
		kinds := 0
		if s.File != "" {
			kinds++
			once(key, "the file "+s.File)
		}
		if s.Stdout {
			kinds++
			once(key, "stdout")
		}
		if w := s.CloudWatch; w != nil {
			kinds++
			once(key, "the log stream "+w.Group+"/"+w.Stream)
			if w.Group == "" || w.Stream == "" {
				fault(key, "cloudwatch wants group and stream")
			}
		}
		if kinds != 1 {
			fault(key, "name one of file, stdout and cloudwatch")
		}
		if s.From < 0 {
			fault(key, "from is an index, 0 or more")
		}
	}
}
