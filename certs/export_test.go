package certs

// Remembered counts the verdicts that v keeps.
func Remembered(v *PeerVerifier) int {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return len(v.new) + len(v.old)
}
