#!/bin/bash
# all.sh PART...: runs parts of make test one after the other, goes on after one that failed, and ends with a table.
# Ends with 1 if any failed.
set -uo pipefail
export ST2HA_TEST_ALL=1   # what a test cannot do here fails it (internal/testenv)
table='' code=0 began=$SECONDS
for part in "$@"; do
  printf '\n== make %s\n' "$part"
  start=$SECONDS result=passed
  "${MAKE:-make}" --no-print-directory "$part" || { result="FAILED: make $part runs it alone"; code=1; }
  printf -v line '%-14s %5d s  %s\n' "$part" $((SECONDS - start)) "$result"
  table+=$line
  # Without what it installs nothing else is worth the time.
  [ "$part" != setup ] || [ $code = 0 ] || break
done
printf '\n%-14s %7s  %s\n%s%-14s %5d s\n' part time result "$table" all $((SECONDS - began))
exit $code
