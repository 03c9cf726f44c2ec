#!/bin/bash
# bench.sh [RUNS [FIRST]]: how long a run of all steps takes that finds nothing to change, connections included, without
# StackStorm's own scheduling: on nodes of this machine's own speed, and on the lab's slower ones; there beside Ansible.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
KIND=fast "$here/lab/bench.sh" "${1:-5}"
"$here/lab/bench.sh" "$@"
