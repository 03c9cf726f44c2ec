#!/bin/bash
# deploy.sh [WAY...]: the pack, with its binaries for the nodes, onto the primary, where "st2 pack install" would put it.
# WAY is how a program is run there (default: lab.sh ssh primary).
set -euo pipefail
here=$(dirname "$(realpath "$0")") top=$(realpath "$(dirname "$(realpath "$0")")/../..")
[ $# -gt 0 ] || set -- "$here/lab.sh" ssh primary
make --silent -C "$top" build
tar -c -C "$top" --sort=name --owner=root:0 --group=st2packs:1499 --mode=g+w actions workflows rules sensors pack.yaml config.schema.yaml bin |
  "$@" tar -x -C /opt/stackstorm/packs --one-top-level=st2ha
