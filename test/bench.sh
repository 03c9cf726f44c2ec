#!/bin/bash
# bench.sh: how long the no-change run of all steps takes on both nodes, connections included, without StackStorm's
# own scheduling: on the lab's nodes, and the SSH share alone at this machine's own speed.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
exec "$here/lab/bench.sh" "$@"
