# Shared by test/run and test/long: installing what the tests need, timed steps, the summary.
# Sourced, never run. The caller has set -uo pipefail and stands in the repository's root.
# shellcheck shell=bash

# Program on PATH -> Debian or Ubuntu package that brings it. Docker is not among them: an engine is a
# service of the machine, and the tests that want one say that they left it out.
bulla_programs="
swtpm:swtpm
swtpm_setup:swtpm-tools
tpm2_quote:tpm2-tools
gcc:gcc
shellcheck:shellcheck
patch:patch
"

step_names=()
step_results=()
step_seconds=()
failed=0
logs="$(mktemp -d)"
trap 'rm -rf "$logs"' EXIT

say() { printf '\n== %s\n' "$*"; }

# step NAME COMMAND...: runs the command, shows its output, keeps result and time. It goes on after a
# failure, so that one run names every fault.
step() {
	local name="$1" start end result=ok
	shift
	say "$name"
	start=$(date +%s)
	if ! "$@"; then
		result=FAILED
		failed=1
	fi
	end=$(date +%s)
	step_names+=("$name")
	step_results+=("$result")
	step_seconds+=($((end - start)))
	printf -- '-- %s: %s, %d s\n' "$name" "$result" $((end - start))
}

summary() {
	local i total=0
	printf '\n%-52s %-7s %6s\n' step result time
	for i in "${!step_names[@]}"; do
		printf '%-52s %-7s %4d s\n' "${step_names[$i]}" "${step_results[$i]}" "${step_seconds[$i]}"
		total=$((total + step_seconds[i]))
	done
	printf '%-52s %-7s %4d s\n' total "$([ "$failed" = 0 ] && echo ok || echo FAILED)" "$total"
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		echo "needs root or sudo to run: $*" >&2
		return 1
	fi
}

# The Debian packages of what is not there, each once.
missing_packages() {
	local pair
	for pair in $bulla_programs; do
		command -v "${pair%%:*}" >/dev/null || echo "${pair#*:}"
	done
	# The race detector links against libc, and its headers come in a package of their own.
	if [ ! -e /usr/include/stdlib.h ]; then
		echo libc6-dev
	fi
	# Only for reading docker-compose.yaml: no engine is needed for that.
	if ! docker compose version >/dev/null 2>&1 && ! command -v docker-compose >/dev/null; then
		echo docker-compose
	fi
	if ! python_ready; then
		echo python3-boto3
	fi
}

# boto3 is the independent client of the KMS double. Another Python may stand first on PATH: then Debian's is
# put before it, for the tests only.
python_ready() { python3 -c 'import boto3' 2>/dev/null; }

prepare_python() {
	python_ready && return 0
	local dir="${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/bulla-tools/python"
	mkdir -p "$dir" && ln -sf /usr/bin/python3 "$dir/python3" || return 1
	PATH="$dir:$PATH"
	python_ready
}

install_missing() { install_packages && prepare_python; }

install_packages() {
	local packages
	packages="$(missing_packages | sort -u | tr '\n' ' ')"
	if [ -z "${packages// /}" ]; then
		echo "no package is missing"
		return 0
	fi
	echo "installing: $packages"
	if ! command -v apt-get >/dev/null; then
		echo "no apt-get here: install by hand what these Debian packages bring: $packages" >&2
		return 1
	fi
	# A mirror that does not answer for the lists may still have been asked before: try in any case.
	as_root apt-get -qq update || echo "apt-get update failed; trying with the lists at hand" >&2
	# shellcheck disable=SC2086 # a list of package names
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $packages
}

# Go itself can't come from apt in the version of go.mod; a Go from 1.21 on fetches that by itself.
check_go() {
	if ! command -v go >/dev/null; then
		echo "go is not on PATH: install Go 1.26 or later from https://go.dev/dl/" >&2
		return 1
	fi
	go version
}
