package main

import "os"

// ballastSize is how much more garbage may gather than Go's default allows, in bytes.
const ballastSize = 16 << 20

// ballast is memory that is never touched, for a broker to hold while it serves. The live heap of one is about 25 MiB,
// and at the default of GOGC it would be collected after every 25 MiB of garbage, many times a second under load. The
// ballast counts as live but takes no memory, since the system maps a page only when it is touched: so there is room
// for this much more garbage whatever the size of the heap. A memory limit with a larger GOGC would do the same for a
// small heap, and collect without pause once a large one comes near the limit.
//
// An operator who sets GOGC or GOMEMLIMIT has chosen, and there is no ballast.
func ballast() []byte {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return nil
	}
	return make([]byte, ballastSize)
}
