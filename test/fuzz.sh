#!/bin/bash
# fuzz.sh TIME: runs every fuzz target of the module for TIME.
set -euo pipefail
for package in $(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do
  for target in $(go test -list '^Fuzz' "$package" | grep '^Fuzz'); do
    echo "$package $target"
    # Minimizing takes up to a minute for each new input, and gains nothing where goroutines make coverage vary.
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" -fuzzminimizetime 100x "$package" >/tmp/st2ha-fuzz.$$ || { cat /tmp/st2ha-fuzz.$$; rm -f /tmp/st2ha-fuzz.$$; exit 1; }
    rm -f /tmp/st2ha-fuzz.$$
  done
done
