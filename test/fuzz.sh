#!/bin/bash
# fuzz.sh TIME: runs every fuzz target of the module for TIME.
set -euo pipefail
for package in $(go list ./... | grep -v /test/lab); do
  for target in $(go test -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
    echo "$package $target"
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" "$package" >/tmp/st2ha-fuzz.$$ || { cat /tmp/st2ha-fuzz.$$; rm -f /tmp/st2ha-fuzz.$$; exit 1; }
    rm -f /tmp/st2ha-fuzz.$$
  done
done
