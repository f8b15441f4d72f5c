#!/usr/bin/env bash
# Fuzz every target for the given number of seconds each (default 60) and print the executions reached.
# A failing input is written to fuzz/findings/ with the command that runs it again; the exit code is then 1.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds="${1:-60}"
shift || true
exec cargo run --locked --quiet --profile fuzz -p protperf-fuzz -- --seconds "$seconds" "$@"
