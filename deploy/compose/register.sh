#!/bin/sh
# One-shot job of docker-compose.yaml: gives the SPIRE agent what it needs to join, and registers the
# workloads. It may run any number of times: entries have fixed ids and are made once.
set -eu

socket=/run/spire/server/private/api.sock
domain=spiffe://bulla.example
bootstrap=/run/spire/bootstrap

# A fresh token each time. The agent ignores it while its own SVID is good, and joins anew with it when it
# was down for longer than that.
spire-server bundle show -socketPath "$socket" >"$bootstrap/bundle.pem"
umask 077
spire-server token generate -socketPath "$socket" -spiffeID "$domain/node/compose" -ttl 3600 |
	sed -n 's/^Token: //p' >"$bootstrap/join-token"
[ -s "$bootstrap/join-token" ] || {
	echo "the SPIRE server gave no join token" >&2
	exit 1
}

# register ENTRY UID PATH
register() {
	if spire-server entry show -socketPath "$socket" -entryID "$1" 2>/dev/null | grep -q "$domain"; then
		echo "$1 is registered"
		return 0
	fi
	spire-server entry create -socketPath "$socket" -entryID "$1" -parentID "$domain/node/compose" \
		-spiffeID "$domain/$3" -selector "unix:uid:$2"
}

register broker 65532 bulla/broker
register workload 10001 workload
register operator 10002 operator
register security 10003 security
register auditor 10004 auditor
