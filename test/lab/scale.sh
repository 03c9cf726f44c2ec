#!/bin/bash
# scale.sh [N...]: joins N secondaries (1 2 4 8) at once to a primary of their own, on fast nodes, and prints the time of
# each join, the time of one secondary's part, and what it took of the primary's CPU. The figures and their plot go to docs/.
set -euo pipefail
here=$(dirname "$(realpath "$0")") top=$(realpath "$(dirname "$(realpath "$0")")/../..")
[ $# -gt 0 ] || set -- 1 2 4 8
export LAB=${LAB:-${TMPDIR:-/tmp}/st2ha-lab-scale} KIND=fast
. "$here/lib.sh"
python=$("$top/test/workflow/setup.sh")
out=$(mktemp -d); trap '"$here/lab.sh" down; rm -rf "$out"' EXIT; trap 'exit 130' INT TERM
make --silent -C "$top" build
ms() { echo $(($(date +%s%N) / 1000000)); }
cpu() { "$here/lab.sh" ssh primary "awk '/^usage_usec/ {print int(\$2 / 1000)}' /sys/fs/cgroup/cpu.stat"; } # cgroups(7): all of the node's processes
echo "secondaries,seconds,primary_cpu_seconds" > "$out/scale.csv"
for n in "$@"; do
  nodes=primary hosts=''
  for i in $(seq "$n"); do x=secondary; [ "$i" = 1 ] || x=secondary$i; nodes+=" $x" hosts+=${hosts:+, }${ADDR[$x]}; done
  NODES=$nodes "$here/lab.sh" up
  "$here/deploy.sh"
  printf 'primary: %s\nsecondaries: [%s]\nrabbitmq_password: scale-pass\n' "${ADDR[primary]}" "$hosts" > "$out/config.yaml"
  used=$(cpu) began=$(ms)
  "$python" "$top/test/workflow/run.py" --pack "$top" --config "$out/config.yaml" --params '{}' --runner \
    --exec "ssh -F $LAB/ssh_config primary" join_secondary > "$out/$n.json" 2> "$out/$n.log" ||
    { tail -30 "$out/$n.log" >&2; die "the join of $n secondaries failed"; }
  took=$(($(ms) - began)) used=$(($(cpu) - used))
  printf 'secondaries: %s, joined in %s.%s s, %s.%s s of the primary'"'"'s CPU\n' "$n" $((took / 1000)) $((took % 1000 / 100)) $((used / 1000)) $((used % 1000 / 100))
  printf '%s,%s.%03d,%s.%03d\n' "$n" $((took / 1000)) $((took % 1000)) $((used / 1000)) $((used % 1000)) >> "$out/scale.csv"
  "$here/lab.sh" down
done
cp "$out/scale.csv" "$top/docs/scale.csv"
"$python" "$here/plot.py" "$top/docs/scale.csv" > "$top/docs/scale.svg"
