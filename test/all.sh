#!/bin/bash
# all.sh PART... [-- PART...] [-- PART...]: runs parts of make test and ends with a table; ends with 1 if any failed. The
# parts of a lane run one after the other, and go on after one that failed. Most of a test's time is waiting, so lanes run
# side by side, from when the first part is done. The third lane's parts only compute: they have the CPU time that the
# others leave (sched(7), SCHED_IDLE). What lanes behind the first print comes at the end.
set -uo pipefail
dir=$(mktemp -d) began=$SECONDS beside=()
trap 'for lane in ${beside[@]+"${beside[@]}"}; do kill -- "-$lane" 2>/dev/null; done; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM
run() { # PART: its time and what came of it go into the table
  local start=$SECONDS result=passed
  "${MAKE:-make}" --no-print-directory "$1" || result="FAILED: make $1 runs it alone"
  printf '%-14s %5d s  %s\n' "$1" $((SECONDS - start)) "$result" >"$dir/$1.line"
  [ "$result" = passed ]
}
lane() { # NUMBER PART...: beside the first
  local n=$1 p; shift
  [ $# -gt 0 ] || return 0
  set -m
  { [ "$n" = 2 ] || chrt --idle --all-tasks --pid 0 $BASHPID >/dev/null
    for p; do run "$p" </dev/null >"$dir/$p.log" 2>&1; done; } & beside+=($!)
  set +m
}
n=1 first=() second=() third=()
for part; do
  case $n,$part in *,--) n=$((n + 1));; 1,*) first+=("$part");; 2,*) second+=("$part");; *) third+=("$part");; esac
done
for part in "${first[@]}"; do
  printf '\n== make %s\n' "$part"
  run "$part" || [ "$part" != setup ] || break   # without what it installs nothing else is worth the time
  [ "$part" != "${first[0]}" ] || { lane 2 ${second[@]+"${second[@]}"}; lane 3 ${third[@]+"${third[@]}"}; }
done
for p in ${beside[@]+"${beside[@]}"}; do wait "$p"; done
beside=()
for part in ${second[@]+"${second[@]}"} ${third[@]+"${third[@]}"}; do
  [ ! -e "$dir/$part.log" ] || { printf '\n== make %s, beside the others\n' "$part"; cat "$dir/$part.log"; }
done
printf '\n%-14s %7s  %s\n' part time result
all=("${first[@]}" ${second[@]+"${second[@]}"} ${third[@]+"${third[@]}"})
for part in "${all[@]}"; do cat "$dir/$part.line" 2>/dev/null || printf '%-14s %7s  not run\n' "$part" -; done
printf '%-14s %5d s\n' all $((SECONDS - began))
! grep -L ' passed$' "$dir"/*.line | grep -q . && [ "$(ls "$dir"/*.line | wc -l)" = ${#all[@]} ]
