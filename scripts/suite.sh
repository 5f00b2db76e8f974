#!/bin/sh
# Runs the tests of one marker, one after the other. A marker that no test carries yet is said aloud, and is no failure.
# What a suite needs besides the test environment is made first, so that no test's time goes into it.
# Called by `make test-<marker>`.
set -eu
cd "$(dirname "$0")/.."

marker=$1
processes=0
case "$marker" in
vllm) .venv/bin/python -m tests.fixtures.vllm_cpu ;;
trainers) .venv/bin/python scripts/environment.py trainers ;;
faults) processes=2 ;; # they wait for leases to run out more than they work
esac
status=0
.venv/bin/python -m pytest -n "$processes" --dist worksteal -m "$marker" || status=$?
if [ "$status" -eq 5 ]; then
    echo "No test carries the marker '$marker'."
    exit 0
fi
exit "$status"
