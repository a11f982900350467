package broker

import "github.com/bulla-project/bulla/policy"

// EngineOf is the engine that decides for b.
func EngineOf(b *Broker) *policy.Engine { return b.engine }
