#!/bin/bash
# bench.sh [RUNS [FIRST]]: on the lab's nodes, st2ha beside Ansible, from this machine (../bench/compare.py; FIRST first
# runs, which take a minute or more each: RUNS unless given), then all steps of the join from the primary (steps.py).
set -euo pipefail
here=$(dirname "$(realpath "$0")") runs=${1:-5} first=${2:-${1:-5}}
export LAB=${LAB:-${TMPDIR:-/tmp}/st2ha-lab-bench}
"$here/../bench/setup.sh"
make --silent -C "$here/../.." build
trap '"$here/lab.sh" down' EXIT
trap 'exit 130' INT TERM
"$here/lab.sh" up
img=$("$here/mkbase.sh")
"$here/lab.sh" exec python3 "$here/../bench/compare.py" "on the lab's nodes, from a third machine" "$img" "$here/../../bin/st2ha-linux-$(go env GOARCH)" "$runs" "$first"
"$here/deploy.sh"
"$here/lab.sh" ssh primary "python3 - 'step, on the lab nodes, from the primary' $runs" <"$here/../bench/steps.py"
