#!/bin/bash
# deploy.sh [NODE...]: the pack, with its binary for the nodes, onto the nodes (default: primary), where "st2 pack
# install" would put it.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
cd "$here/../.."
make --silent build
for node in "${@:-primary}"; do
  tar -c --sort=name --owner=root:0 --group=st2packs:1499 --mode=g+w actions workflows rules sensors pack.yaml config.schema.yaml bin |
    "$here/lab.sh" ssh "$node" 'mkdir -p /opt/stackstorm/packs/st2ha && tar -x -C /opt/stackstorm/packs/st2ha'
done
