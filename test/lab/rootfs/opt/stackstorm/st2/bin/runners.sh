#!/bin/sh
# As the real one: st2actionrunner.service calls it to start and stop its workers.
WORKERS="${WORKERS:-10}"
[ -n "$1" ] || { echo >&2 "Usage: $0 action"; exit 99; }
exec systemctl "$1" $(seq -f 'st2actionrunner@%g' 1 "$WORKERS")
