package main

import (
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/secret"
)

// The checks of what flags name. A name with a slip in it would be answered with an empty list, which reads as "nobody". ""
// stands for a flag that was not given.

func checkPrincipal(flag, id string) error {
	if id == "" {
		return nil
	}
	if _, err := certs.ParseID(id); err != nil {
		return usage("%s: %v", flag, err)
	}
	return nil
}

func checkSecret(flag, name string) error {
	if name == "" {
		return nil
	}
	if _, err := secret.ParseName(name); err != nil {
		return usage("%s: %v", flag, err)
	}
	return nil
}

func checkDevice(flag, id string) error {
	if id == "" {
		return nil
	}
	if _, err := attest.ParseDeviceID(id); err != nil {
		return usage("%s: %q is not the id of a device: `bulla device list` shows which there are", flag, id)
	}
	return nil
}

func checkRevision(flag, digest string) error {
	if digest == "" {
		return nil
	}
	if err := checkDigest(digest); err != nil {
		return usage("%s: %v", flag, err)
	}
	return nil
}

func checkDomain(flag, name string) error {
	if name == "" {
		return nil
	}
	if _, err := certs.ParseTrustDomain(name); err != nil {
		return usage("%s: %v", flag, err)
	}
	return nil
}
