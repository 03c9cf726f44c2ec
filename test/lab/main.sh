#!/bin/bash
# main.sh: the main job on two real nodes: brings up the lab, joins the secondary, and says what came of it.
#   KEEP=1 main.sh     leaves the nodes up, to look around
set -euo pipefail
here=$(dirname "$(realpath "$0")") top=$(realpath "$(dirname "$(realpath "$0")")/../..")
export LAB=${LAB:-${TMPDIR:-/tmp}/st2ha-lab-$(id -u)}
out=$(mktemp -d)
done_() {
  code=$?
  rm -rf "$out"
  if [ "${KEEP:-}" = 1 ] && [ -e "$LAB/ssh_config" ]; then
    printf '\nThe nodes are up:  ssh -F %s primary   (or secondary)\nTo end them:       make lab-down\n' "$LAB/ssh_config"
  else
    "$here/lab.sh" down
  fi
  exit $code
}
trap done_ EXIT
trap 'exit 130' INT TERM
echo "Bringing up two nodes: 192.168.0.100 (primary) and 192.168.0.101 (secondary)"
began=$SECONDS
"$here/lab.sh" up
echo "Both nodes run StackStorm with backends of their own after $((SECONDS - began)) s"
"$here/deploy.sh"
python=$("$top/test/workflow/setup.sh")
cat > "$out/config.yaml" <<'C'
primary: 192.168.0.100
secondaries: [192.168.0.101]
rabbitmq_password: "lab's p@ss/word: 100% $ecret"
C
job() { # NAME PARAMS
  "$python" "$top/test/workflow/run.py" --pack "$top" --config "$out/config.yaml" --params "$2" --runner \
    --exec "ssh -F $LAB/ssh_config primary" "$1" > "$out/$1.json"
}
echo; echo "st2 run st2ha.join_secondary"
joined=$SECONDS code=0
job join_secondary '{}' || code=$?
joined=$((SECONDS - joined))
if [ $code = 0 ]; then
  # The primary's own services restart once the workflow has ended.
  until "$here/lab.sh" ssh primary 'test ! -e /var/lib/st2ha/owed/st2'; do sleep 1; done
  echo; echo "After the primary's restart:"
  job verify_node '{"host": "192.168.0.100", "role": "primary"}' || code=$?
  job verify_node '{"host": "192.168.0.101", "role": "secondary"}' || code=$?
fi
echo
"$python" "$here/summary.py" "$out/join_secondary.json" "$joined"
"$here/lab.sh" kernel
exit $code
