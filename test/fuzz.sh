#!/bin/bash
# fuzz.sh TIME: runs every fuzz target of the module for TIME. A package is built once for all of its targets.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cache=$(go env GOCACHE)/fuzz module=$(go list -m)
for package in $(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do
  go test -c -fuzz . -o "$dir/fuzz" "$package"
  for target in $("$dir/fuzz" -test.list '^Fuzz'); do
    echo "$package $target"
    # Minimizing takes up to a minute for each new input, and gains nothing where goroutines make coverage vary.
    (cd "$package" && "$dir/fuzz" -test.run '^$' -test.fuzz "^$target\$" -test.fuzztime "$1" -test.fuzzminimizetime 100x \
      -test.fuzzcachedir "$cache/$module/${package#./}") >"$dir/said" 2>&1 || { cat "$dir/said"; exit 1; }
  done
done
