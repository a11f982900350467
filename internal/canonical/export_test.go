package canonical

import "reflect"

// Known reports whether values of the type are encoded here as a whole.
func Known(t reflect.Type) bool { return encoderOf(t) != nil }

// Readable reports whether values of t are read here.
func Readable(t reflect.Type) bool { return decoderOf(t) != nil }
