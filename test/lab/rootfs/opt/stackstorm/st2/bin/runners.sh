#!/bin/sh
# As the real one: st2actionrunner.service calls it to start and stop its workers.
# --no-block: the real workers are of Type=simple, whose start returns at once.
WORKERS="${WORKERS:-10}"
[ -n "$1" ] || { echo >&2 "Usage: $0 action"; exit 99; }
units=$(seq -f 'st2actionrunner@%g' 1 "$WORKERS")
case $1 in start) exec systemctl --no-block start $units;; *) exec systemctl "$1" $units;; esac
