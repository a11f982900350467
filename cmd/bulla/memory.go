package main

import "os"

// How much more garbage may gather than Go's default allows, in bytes: while a broker serves, and while a command goes
// over a whole record and then ends.
const (
	whileServing = 16 << 20
	whileReading = 64 << 20
)

// ballast is memory that is never touched, for a program to hold while it works. The live heap of a broker is about 25 MiB,
// and at the default of GOGC it would be collected after every 25 MiB of garbage, many times a second under load. The
// ballast counts as live but takes no memory, since the system maps a page only when it is touched: so there is room
// for this much more garbage whatever the size of the heap. A memory limit with a larger GOGC would do the same for a
// small heap, and collect without pause once a large one comes near the limit. A replay, whose live heap is a few MiB, takes
// a fifth less time with it.
//
// An operator who sets GOGC or GOMEMLIMIT has chosen, and there is no ballast.
func ballast(size int) []byte {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return nil
	}
	return make([]byte, size)
}
