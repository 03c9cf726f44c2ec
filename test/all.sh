#!/bin/bash
# all.sh PART... [-- PART...]: runs parts of make test one after the other, goes on after one that failed, and ends with a
# table; ends with 1 if any failed. The parts behind -- only compute: they run beside the first ones with the CPU time that
# those leave (sched(7), SCHED_IDLE), for most of a test's time is waiting. Their output comes at the end.
set -uo pipefail
dir=$(mktemp -d) began=$SECONDS beside=''
trap '[ -z "$beside" ] || kill -- "-$beside" 2>/dev/null; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM
run() { # PART: its time and what came of it go into the table
  local start=$SECONDS result=passed
  "${MAKE:-make}" --no-print-directory "$1" || result="FAILED: make $1 runs it alone"
  printf '%-14s %5d s  %s\n' "$1" $((SECONDS - start)) "$result" >"$dir/$1.line"
  [ "$result" = passed ]
}
first=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do first+=("$1"); shift; done
[ $# = 0 ] || shift
later=("$@") all=("${first[@]}" "$@")
for part in "${first[@]}"; do
  printf '\n== make %s\n' "$part"
  run "$part" || [ "$part" != setup ] || break   # without what it installs nothing else is worth the time
  if [ ${#later[@]} -gt 0 ] && [ -z "$beside" ]; then
    set -m
    { chrt --idle --all-tasks --pid 0 $BASHPID >/dev/null; for p in "${later[@]}"; do run "$p" </dev/null >"$dir/$p.log" 2>&1; done; } & beside=$!
    set +m
  fi
done
[ -z "$beside" ] || wait "$beside"
beside=''
for part in ${later[@]+"${later[@]}"}; do
  [ ! -e "$dir/$part.log" ] || { printf '\n== make %s, beside the others\n' "$part"; cat "$dir/$part.log"; }
done
printf '\n%-14s %7s  %s\n' part time result
for part in "${all[@]}"; do cat "$dir/$part.line" 2>/dev/null || printf '%-14s %7s  not run\n' "$part" -; done
printf '%-14s %5d s\n' all $((SECONDS - began))
! grep -L ' passed$' "$dir"/*.line | grep -q . && [ "$(ls "$dir"/*.line | wc -l)" = ${#all[@]} ]
