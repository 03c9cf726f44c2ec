#!/bin/bash
# setup.sh: what the nodes at this machine's own speed need beside what the lab does.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
"$here/../lab/setup.sh"
