#!/bin/bash
# bench.sh [RUNS [FIRST]]: all steps of the join from the primary (../bench/steps.py), on nodes of KIND; on UML nodes
# after st2ha beside Ansible, from this machine (../bench/compare.py; FIRST first runs, which take a minute or more each:
# RUNS unless given).
set -euo pipefail
here=$(dirname "$(realpath "$0")") runs=${1:-5} first=${2:-${1:-5}}
export LAB=${LAB:-${TMPDIR:-/tmp}/st2ha-lab-bench} KIND=${KIND:-uml}
make --silent -C "$here/../.." build
trap '"$here/lab.sh" down' EXIT
trap 'exit 130' INT TERM
"$here/lab.sh" up
where="the lab's nodes"
if [ "$KIND" = fast ]; then where="nodes of this machine's own speed"; else
  "$here/../bench/setup.sh"
  img=$("$here/mkbase.sh")
  "$here/lab.sh" exec python3 "$here/../bench/compare.py" "on $where, from a third machine" "$img" "$here/../../bin/st2ha-linux-$(go env GOARCH)" "$runs" "$first"
fi
"$here/deploy.sh"
"$here/lab.sh" ssh primary "python3 - 'step, on $where, from the primary' $runs" <"$here/../bench/steps.py"
[ "$KIND" != fast ] || echo "systemd, sshd, sudo, RabbitMQ, Redis, exportfs are real; mounts are sshfs in place of NFS, and nfs-server.service starts nothing: this machine's kernel may have no NFS"
