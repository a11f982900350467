package risk

// Names of the factors, as they appear in models, assessments and records.
const (
	FactorIdentity         = "identity"
	FactorSVIDAge          = "svid_age"
	FactorAttestationAge   = "attestation_age"
	FactorAttestationTrust = "attestation_trust"
	FactorAttestationTier  = "attestation_tier"
	FactorZone             = "zone"
	FactorTransit          = "transit"
	FactorRequestRate      = "request_rate"
	FactorNovelty          = "novelty"
	FactorHourOfWeek       = "hour_of_week"
	FactorDenials          = "denials"
	FactorUnconfirmed      = "unconfirmed"
	FactorNewCountry       = "new_country"
	FactorGeoVelocity      = "geo_velocity"
	FactorExternal         = "external"
)

// FactorNames returns the name of every factor, in the order of an assessment.
func FactorNames() []string {
	names := make([]string, 0, factorCount)
	for _, f := range factorTable {
		names = append(names, f.name)
	}
	return names
}

// The index of each factor in factorTable and in a Model.
const (
	iIdentity = iota
	iSVIDAge
	iAttestationAge
	iAttestationTrust
	iAttestationTier
	iZone
	iTransit
	iRequestRate
	iNovelty
	iHourOfWeek
	iDenials
	iUnconfirmed
	iNewCountry
	iGeoVelocity
	iExternal
	factorCount
)

// A factor reads one signal and gives its value for the record, its severity 0 to 100 and a reason.
type factor struct {
	name string
	// ordered lists the categories from best to worst, for factors with an order of their own; a model
	// must not turn it around.
	ordered []string
	// stepped factors measure a number by steps; the others look up a category.
	stepped bool
	// free factors take the categories that the model names (zones).
	free bool
	// optional factors came after the first models: a model without one does not assess it, and gives what it gave.
	optional bool
	read     func(s Signals, m *Model) (value string, severity int, reason string)
}

// factorTable has every factor, in the order of the assessment. It is never written to.
var factorTable = [factorCount]factor{
	iIdentity: {name: FactorIdentity, ordered: []string{"HIGH_ASSURANCE", "ENHANCED", "BASIC"}, read: func(s Signals, m *Model) (string, int, string) {
		return category(m, iIdentity, s.Level, "how strongly the identity was verified")
	}},
	iSVIDAge: {name: FactorSVIDAge, stepped: true, read: func(s Signals, m *Model) (string, int, string) {
		return steps(m, iSVIDAge, s.SVIDAge, "seconds since the SVID became valid")
	}},
	iAttestationAge: {name: FactorAttestationAge, stepped: true, read: func(s Signals, m *Model) (string, int, string) {
		return steps(m, iAttestationAge, s.AttestationAge, "seconds since the device was attested")
	}},
	iAttestationTrust: {name: FactorAttestationTrust, stepped: true, read: readTrust},
	iAttestationTier: {name: FactorAttestationTier, ordered: []string{"affirming", "warning", "contraindicated"}, read: func(s Signals, m *Model) (string, int, string) {
		return category(m, iAttestationTier, s.AttestationTier, "verdict of the appraisal of the device")
	}},
	iZone: {name: FactorZone, free: true, read: func(s Signals, m *Model) (string, int, string) {
		return category(m, iZone, s.Zone, "network zone of the peer address")
	}},
	iTransit: {name: FactorTransit, ordered: []string{"post_quantum", "classical"}, read: func(s Signals, m *Model) (string, int, string) {
		return category(m, iTransit, s.Transit, "key agreement of the connection")
	}},
	iRequestRate: {name: FactorRequestRate, stepped: true, read: func(s Signals, m *Model) (string, int, string) {
		return steps(m, iRequestRate, s.RateMilli, "thousandths of a request per minute, smoothed")
	}},
	iNovelty: {name: FactorNovelty, ordered: []string{"known", "new"}, read: func(s Signals, m *Model) (string, int, string) {
		return category(m, iNovelty, s.Novelty, "whether the principal had this secret before")
	}},
	iHourOfWeek: {name: FactorHourOfWeek, ordered: []string{"usual", "unusual"}, read: readHour},
	iDenials: {name: FactorDenials, stepped: true, read: func(s Signals, m *Model) (string, int, string) {
		return steps(m, iDenials, s.Denials, "thousandths of a recent denial, smoothed")
	}},
	iUnconfirmed: {name: FactorUnconfirmed, stepped: true, read: func(s Signals, m *Model) (string, int, string) {
		return steps(m, iUnconfirmed, s.Unconfirmed, "thousandths of a recent delivery without a receipt, smoothed")
	}},
	iNewCountry: {name: FactorNewCountry, ordered: []string{"known", "new"}, optional: true, read: func(s Signals, m *Model) (string, int, string) {
		const what = "whether the principal, or the device, was permitted from this country before"
		if s.Unplaced != "" {
			return notAssessed, 0, what + ": " + s.Unplaced
		}
		return category(m, iNewCountry, s.Country, what)
	}},
	iGeoVelocity: {name: FactorGeoVelocity, stepped: true, optional: true, read: func(s Signals, m *Model) (string, int, string) {
		const what = "kilometres per hour since the last permitted place, at least"
		if s.Unplaced != "" {
			return notAssessed, 0, what + ": " + s.Unplaced
		}
		return steps(m, iGeoVelocity, s.Velocity, what)
	}},
	iExternal: {name: FactorExternal, optional: true, ordered: []string{"clear", "raised", "high"}, read: func(s Signals, m *Model) (string, int, string) {
		return category(m, iExternal, s.External, "what configured transmitters of signals say")
	}},
}

// readTrust measures distrust, 100 minus the score, so that here too more is worse; the value that is
// shown is the score.
func readTrust(s Signals, m *Model) (string, int, string) {
	const what = "trust score of the attestation, 100 is best"
	score, ok := s.AttestationScore.Get()
	if !ok || score > MaxScore {
		return unknownValue, MaxScore, what + withheldSuffix
	}
	_, severity, _ := steps(m, iAttestationTrust, Known(MaxScore-score), what)
	return decimal(score), severity, what
}

// readHour asks the model's table of usual hours, then weighs the answer like any category.
func readHour(s Signals, m *Model) (string, int, string) {
	const what = "hour of the week in UTC, Monday 00:00 is 0"
	hour, ok := s.Hour.Get()
	if !ok || hour >= hoursPerWeek {
		return unknownValue, MaxScore, what + withheldSuffix
	}
	kind, reason := "unusual", what+": outside of the usual hours"
	if m.usual[hour] {
		kind, reason = "usual", what+": within the usual hours"
	}
	return decimal(hour), m.rules[iHourOfWeek].Severities[kind], reason
}

const withheldSuffix = ": withheld or unknown, so it counts as the worst"

func category(m *Model, i int, value, what string) (string, int, string) {
	if severity, ok := m.rules[i].Severities[value]; ok {
		return value, severity, what
	}
	return unknownValue, MaxScore, what + withheldSuffix
}

func steps(m *Model, i int, r Reading, what string) (string, int, string) {
	v, ok := r.Get()
	if !ok {
		return unknownValue, MaxScore, what + withheldSuffix
	}
	severity := 0
	for _, st := range m.rules[i].Steps {
		if v < st.From {
			break
		}
		severity = st.Severity
	}
	return decimal(v), severity, what
}
