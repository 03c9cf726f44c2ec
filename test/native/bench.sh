#!/bin/bash
# bench.sh [RUNS]: all steps of the join on two nodes of this machine's own speed, from the primary (../bench/steps.py).
set -euo pipefail
here=$(dirname "$(realpath "$0")")
if [ "${1:-}" != _inside ]; then exec "$here/nodes.sh" "$here/bench.sh" _inside "${1:-5}"; fi
"$here/../lab/deploy.sh" on primary
on primary python3 - "step, on nodes of this machine's own speed" "$2" <"$here/../bench/steps.py"
echo "systemd, sshd, sudo, RabbitMQ, Redis, exportfs are real; mounts are sshfs in place of NFS, and nfs-server.service starts nothing: this machine's kernel may have no NFS"
