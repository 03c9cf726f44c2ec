#!/bin/bash
# bench.sh [RUNS]: joins the lab's nodes, then runs all steps of the join on both nodes RUNS times (default 5) with
# nothing to change, one process a step as StackStorm does, and prints the median, per step and in all.
set -euo pipefail
here=$(dirname "$(realpath "$0")") runs=${1:-5}
export LAB=${LAB:-${TMPDIR:-/tmp}/st2ha-lab-bench}
trap '"$here/lab.sh" down' EXIT
trap 'exit 130' INT TERM
"$here/lab.sh" up
"$here/deploy.sh"
# The steps run in one shell on the primary: what is timed is st2ha, not the way to the node.
"$here/lab.sh" ssh primary "cat > /root/steps" <<'S'
a=192.168.0.100 b=192.168.0.101
configure_mongodb --host=$a
configure_st2 --host=$a --role=primary --primary=$a --restart=later
configure_rabbitmq --host=$a --secondaries=$b
export_nfs --host=$a --secondaries=$b
configure_st2 --host=$b --role=secondary --primary=$a --restart=later
mount_nfs --host=$b --primary=$a
restart_st2 --host=$b --restart=inline
restart_st2 --host=$a --restart=inline
verify_node --host=$b --role=secondary --primary=$a
verify_node --host=$a --role=primary
S
"$here/lab.sh" ssh primary "python3 - $runs" <<'P'
import os, statistics, subprocess, sys, time
lines = open("/root/steps").read().split("\n")
names = dict(w.split("=") for w in lines[0].split())
steps = [l.replace("$a", names["a"]).replace("$b", names["b"]).split() for l in lines[1:] if l]
env = dict(os.environ, ST2HA_RABBITMQ_PASSWORD="bench-pass")
binary = "/opt/stackstorm/packs/st2ha/actions/st2ha"
def once():
    times = []
    for step in steps:
        began = time.monotonic()
        done = subprocess.run([binary] + step, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        times.append(time.monotonic() - began)
        if done.returncode:
            sys.exit("%s: %s" % (" ".join(step), done.stderr.decode()))
    return times
first = once()
all_runs = [once() for _ in range(int(sys.argv[1]))]
print("\n%-42s %10s %12s" % ("step, on the lab's nodes", "first run", "no change"))
for i, step in enumerate(steps):
    print("%-42s %8.2f s %10.3f s" % (" ".join(step[:2]).replace("--host=", "on "), first[i], statistics.median(r[i] for r in all_runs)))
print("%-42s %8.2f s %10.3f s" % ("all, median of %s" % sys.argv[1], sum(first), statistics.median(sum(r) for r in all_runs)))
P
