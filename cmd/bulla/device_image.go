package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/nitro"
	"github.com/bulla-project/bulla/attest/sevsnp"
	"github.com/bulla-project/bulla/attest/tdx"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
)

// maxMeasurements is the largest file of measurements or evidence that is read, in bytes.
const maxMeasurements = 64 << 10

// imageFlags name the image of a confidential machine.
type imageFlags struct {
	kind, measurements, evidence string
	anyPlatform                  bool
}

func (f *imageFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.kind, "kind", "", "kind of confidential machine: nitro, sev-snp or tdx")
	c.Flags().StringVar(&f.measurements, "measurements", "", "JSON file with the measurements of the image, by name")
	c.Flags().StringVar(&f.evidence, "evidence", "", "document, report or quote that a machine with this image has made")
	c.Flags().BoolVar(&f.anyPlatform, "any-platform", false, "the image may run on any processor, not only on that of the report")
}

// enrollee is the image that the flags name; one of no kind without --kind.
func (f imageFlags) enrollee() (enrollee, error) {
	if f.kind == "" {
		if f.measurements != "" || f.evidence != "" || f.anyPlatform {
			return enrollee{}, usage("--measurements, --evidence and --any-platform belong to an image: say which --kind it is of")
		}
		return enrollee{}, nil
	}
	kind := attest.Kind(f.kind)
	if !kind.Confidential() {
		return enrollee{}, usage("--kind: %q is none of nitro, sev-snp and tdx", f.kind)
	}
	if (f.measurements == "") == (f.evidence == "") {
		return enrollee{}, usage("name either --measurements or --evidence: one of them says what the image is")
	}
	values, err := f.values(kind)
	if err != nil {
		return enrollee{}, err
	}
	image, err := attest.NewImage(kind, values, !f.anyPlatform)
	if err != nil {
		return enrollee{}, usage("%v (see --any-platform and `bulla device enroll --help`)", err)
	}
	return enrollee{kind, image.EnrolRequest(), func(context.Context, []byte) ([]byte, error) { return nil, nil }}, nil
}

// values reads what the image measures. Nothing is verified here: the operator says which file is to be trusted.
func (f imageFlags) values(kind attest.Kind) ([]attest.Named, error) {
	if f.measurements != "" {
		text, err := readFile("--measurements", f.measurements, maxMeasurements)
		if err != nil {
			return nil, err
		}
		values, err := readMeasurements(text)
		if err != nil {
			return nil, usage("--measurements: %s: %v", f.measurements, err)
		}
		return values, nil
	}
	raw, err := readFile("--evidence", f.evidence, maxMeasurements)
	if err != nil {
		return nil, err
	}
	var shown interface{ Values() []attest.Named }
	switch kind {
	case attest.KindNitro:
		shown, err = nitro.Parse(raw)
	case attest.KindSEVSNP:
		shown, err = sevsnp.ParseReport(raw)
	default:
		shown, err = tdx.Parse(raw)
	}
	if err != nil {
		return nil, usage("--evidence: %s: %v", f.evidence, err)
	}
	return shown.Values(), nil
}

// readMeasurements reads one JSON object of names and hexadecimal values, or the output of nitro-cli, which has
// such an object under "Measurements". Names and values may be in upper case.
func readMeasurements(text []byte) ([]attest.Named, error) {
	var file map[string]json.RawMessage
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, err
	}
	if inner, ok := file["Measurements"]; ok {
		file = nil
		if err := json.Unmarshal(inner, &file); err != nil {
			return nil, fmt.Errorf("under \"Measurements\": %w", err)
		}
	}
	var values []attest.Named
	for name, raw := range file {
		var value string
		if err := json.Unmarshal(raw, &value); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		values = append(values, attest.Named{Name: strings.ToLower(name), Value: strings.ToLower(value)})
	}
	return values, nil
}

// imageFields show what an image is made of.
func imageFields(image attest.Image) []show.Field {
	var fields []show.Field
	for _, v := range image {
		fields = append(fields, show.Field{Name: strings.ReplaceAll(v.Name, "_", " "), Value: v.Value})
	}
	return fields
}
