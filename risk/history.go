package risk

import "math/bits"

// History is what is remembered of one principal on one device or instance. It is a plain value: its
// methods are pure and return the new value. The zero value is the history of a newcomer. The caller
// stores it, bounds how many it keeps, and serialises the updates of one key.
type History struct {
	// Requests counts requests with a time constant of one minute, so that it settles at the rate per
	// minute.
	Requests Counter `json:"requests"`
	// Denials counts denied requests, with a half-life of fifteen minutes.
	Denials Counter `json:"denials"`
	// Unconfirmed counts deliveries that were left without a receipt, with a half-life of one hour.
	Unconfirmed Counter `json:"unconfirmed"`
}

// Counter is a count that decays exponentially. It is written only when something is counted, never when it
// is read: repeated rounding would otherwise let a caller wear its own history down by asking often.
type Counter struct {
	// Milli is the count in thousandths, as of At.
	Milli int64 `json:"milli"`
	// At is the time of the last count, in microseconds since 1970.
	At int64 `json:"at"`
}

const (
	milli = 1000
	// rateHalfLife is one minute times ln 2, in microseconds: n requests a minute settle at n × 1000.
	rateHalfLife        = 41_588_831
	denialsHalfLife     = 15 * 60 * 1_000_000
	unconfirmedHalfLife = 60 * 60 * 1_000_000
	// maxMilli bounds every count, far above any real one, so that no sum overflows.
	maxMilli = int64(1) << 40
)

// Requested returns the history after one more request at now, in microseconds since 1970.
func (h History) Requested(now int64) History {
	h.Requests = h.Requests.add(now, rateHalfLife)
	return h
}

// Denied returns the history after one more denial at now.
func (h History) Denied(now int64) History {
	h.Denials = h.Denials.add(now, denialsHalfLife)
	return h
}

// LeftUnconfirmed returns the history after one more delivery was found without a receipt at now.
func (h History) LeftUnconfirmed(now int64) History {
	h.Unconfirmed = h.Unconfirmed.add(now, unconfirmedHalfLife)
	return h
}

// RateMilli returns the request rate at now, in thousandths of a request per minute.
func (h History) RateMilli(now int64) int64 { return h.Requests.read(now, rateHalfLife) }

// DenialsMilli returns the recent denials at now, in thousandths.
func (h History) DenialsMilli(now int64) int64 { return h.Denials.read(now, denialsHalfLife) }

// UnconfirmedMilli returns the recent deliveries without a receipt at now, in thousandths.
func (h History) UnconfirmedMilli(now int64) int64 {
	return h.Unconfirmed.read(now, unconfirmedHalfLife)
}

// Idle says whether nothing is left of the history at now, so that it need not be kept.
func (h History) Idle(now int64) bool {
	return h.RateMilli(now) == 0 && h.DenialsMilli(now) == 0 && h.UnconfirmedMilli(now) == 0
}

// read returns the count at now. A time before the last count reads as that count: a clock that went back
// forgives nothing.
func (c Counter) read(now, halfLife int64) int64 {
	if now <= c.At {
		return max(0, min(c.Milli, maxMilli))
	}
	dt := now - c.At
	if dt < 0 {
		return 0 // it overflowed: longer ago than any count lasts
	}
	return decay(c.Milli, dt, halfLife)
}

func (c Counter) add(now, halfLife int64) Counter {
	return Counter{Milli: min(c.read(now, halfLife)+milli, maxMilli), At: max(now, c.At)}
}

// roots holds 2^(-1/2), 2^(-1/4), 2^(-1/8) … as fractions of 2^32, rounded down.
var roots = [32]uint64{
	3037000499, 3611622602, 3938502375, 4112874773, 4202935003, 4248701964, 4271771996, 4283353945,
	4289156690, 4292061009, 4293513906, 4294240539, 4294603902, 4294785595, 4294876444, 4294921870,
	4294944583, 4294955939, 4294961617, 4294964456, 4294965876, 4294966586, 4294966941, 4294967118,
	4294967207, 4294967251, 4294967273, 4294967284, 4294967290, 4294967293, 4294967294, 4294967295,
}

// decay returns v × 2^(-dt/halfLife), rounded down. Whole half-lives are shifts; of the fraction, 32 binary
// digits are used, one root of two for each. v is capped at maxMilli; dt and halfLife are positive.
func decay(v, dt, halfLife int64) int64 {
	whole := dt / halfLife
	if v <= 0 || whole > 40 {
		return 0
	}
	const guard = 20 // binary digits kept below the unit while multiplying
	x := uint64(min(v, maxMilli)) << guard >> whole
	fraction, _ := bits.Div64(uint64(dt%halfLife), 0, uint64(halfLife))
	fraction >>= 32
	for i, r := range roots {
		if fraction&(1<<(len(roots)-1-i)) != 0 {
			hi, lo := bits.Mul64(x, r)
			x = hi<<32 | lo>>32
		}
	}
	return int64(x >> guard)
}
