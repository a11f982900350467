// Package risk scores one request: Assess turns signals and a model into a score from 0 (no concern) to 100.
//
// It is pure. It reads no clock, no file and no state, uses integers only, and gives the same answer for
// the same arguments on every machine; that is what lets a decision be replayed years later. Three rules
// hold for every model that ParseModel accepts, and are tested as properties:
//
//   - Monotone: making one signal worse, everything else equal, never lowers the score.
//   - Withholding never pays: a signal that is missing, unknown to the model or out of range counts as
//     the worst value of its factor.
//   - Explained: every factor of the model is listed in the assessment with its value, its points and a reason,
//     also when it is worth nothing, and the points of all factors, capped at 100 and lifted to the highest
//     floor that applies, are the score.
//
// The package does not decide anything (that is package policy), does not collect signals (package broker)
// and does not store history; History is a plain value with pure update functions, kept by the caller.
package risk

import "strconv"

// MaxScore is the worst score.
const MaxScore = 100

// A Reading is a measured non-negative number, or nothing. The zero value is "withheld".
type Reading struct {
	value int64
	known bool
}

// Known returns the reading of v. A negative number can't be measured by any factor here (it comes from a
// clock or a counter that is wrong), so it is withheld, which is the worst value.
func Known(v int64) Reading {
	if v < 0 {
		return Reading{}
	}
	return Reading{value: v, known: true}
}

// Get returns the number and whether there is one.
func (r Reading) Get() (int64, bool) { return r.value, r.known }

// Signals are the measurements of one request. A zero field means that the measurement is missing.
type Signals struct {
	// Level is the verification level: BASIC, ENHANCED or HIGH_ASSURANCE.
	Level string
	// SVIDAge is the time since the SVID became valid, in seconds.
	SVIDAge Reading
	// AttestationAge is the time since the attestation result was issued, in seconds.
	AttestationAge Reading
	// AttestationScore is the trust score of the attestation, 0 to 100, higher is better.
	AttestationScore Reading
	// AttestationTier is affirming, warning or contraindicated. "none" is the same as nothing.
	AttestationTier string
	// Zone is the name of the network zone of the peer.
	Zone string
	// Transit is post_quantum or classical: the key agreement of the TLS connection.
	Transit string
	// RateMilli is the smoothed request rate, in thousandths of a request per minute (History.RateMilli).
	RateMilli Reading
	// Novelty is known or new: whether this principal had this secret before.
	Novelty string
	// Hour is the hour of the week in UTC, 0 (Monday 00:00) to 167 (HourOfWeek).
	Hour Reading
	// Denials is the smoothed number of recent denials, in thousandths (History.DenialsMilli).
	Denials Reading
	// Unconfirmed is the smoothed number of recent deliveries without a receipt, in thousandths.
	Unconfirmed Reading
	// Country is known or new: whether the principal, or the device, was permitted from this country before.
	Country string
	// Velocity is how fast the principal, or the device, must have travelled since it was permitted last, in
	// kilometres per hour (Velocity). Where nothing is known but the time, it is that of the longest way.
	Velocity Reading
	// Unplaced says why Country and Velocity mean nothing for this request, and are worth nothing: nobody looks
	// places up here, or the identity is at many places by right. It must not be what a caller can bring about by
	// keeping something back that costs nothing elsewhere.
	Unplaced string
	// External is clear, raised or high: the worst that an external signal says.
	External string
}

// Velocity is the least speed, in kilometres per hour, at which a way of so many kilometres takes so many seconds.
// Less than a second counts as one.
func Velocity(km, seconds int64) Reading {
	const most = 1 << 32
	return Known(min(max(km, 0), most) * 3600 / max(seconds, 1))
}

// Factor is one assessed signal with what it added to the score.
type Factor struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Points int    `json:"points"`
	Reason string `json:"reason"`
}

// Floor is a rule of the model that applied: the score is at least Score, whatever the sum of the points.
type Floor struct {
	Factor string `json:"factor"`
	Score  int    `json:"score"`
}

// Assessment is the result: the score, every factor in a fixed order, and the floors that applied.
type Assessment struct {
	Score   int      `json:"score"`
	Factors []Factor `json:"factors"`
	Floors  []Floor  `json:"floors"`
}

// Assess scores the signals under the model. A zero Model gives the worst score.
func Assess(s Signals, m Model) Assessment {
	a := Assessment{Factors: make([]Factor, 0, len(factorTable)), Floors: []Floor{}}
	if !m.valid {
		a.Score = MaxScore
		for _, f := range factorTable {
			a.Factors = append(a.Factors, Factor{Name: f.name, Value: unknownValue, Points: 0, Reason: "there is no risk model"})
		}
		return a
	}
	floor := 0
	for i, f := range factorTable {
		if m.absent[i] {
			continue
		}
		value, severity, reason := f.read(s, &m)
		points := (m.rules[i].Weight*severity + MaxScore - 1) / MaxScore
		a.Factors = append(a.Factors, Factor{Name: f.name, Value: value, Points: points, Reason: reason})
		a.Score += points
		for _, fl := range m.floors[i] {
			if severity >= fl.Severity {
				a.Floors = append(a.Floors, Floor{Factor: f.name, Score: fl.Score})
				floor = max(floor, fl.Score)
			}
		}
	}
	a.Score = max(min(a.Score, MaxScore), floor)
	return a
}

// HourOfWeek returns the hour of the week in UTC, 0 for Monday 00:00 to 167, of a time in microseconds
// since 1970. A time before 1970 is withheld.
func HourOfWeek(unixMicro int64) Reading {
	if unixMicro < 0 {
		return Reading{}
	}
	const hour = int64(3600) * 1_000_000
	// 1 January 1970 was a Thursday: 72 hours after Monday 00:00.
	return Known((unixMicro/hour + 72) % hoursPerWeek)
}

const (
	hoursPerWeek = 7 * 24
	unknownValue = "unknown"
	notAssessed  = "not_assessed"
)

func decimal(v int64) string { return strconv.FormatInt(v, 10) }
