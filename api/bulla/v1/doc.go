// Package bullav1 is the wire of the Bulla broker: the gRPC services of the workload's and the operator's side,
// generated from the .proto files beside it by tools/generate. It holds no logic.
package bullav1
