#!/bin/bash
# A lab of User-Mode Linux nodes (primary 192.168.0.100, secondary 192.168.0.101, the host 192.168.0.1) on a bridge in
# a network namespace of its own.
#   lab.sh up | down | status          up returns when the services of all nodes are up (WAIT=ssh: when ssh answers)
#   lab.sh kernel                      which kernel the nodes run (kernel.sh)
#   lab.sh ready [NODE...]             wait for the services
#   lab.sh exec CMD...                 a program of the host in the lab's network
#   lab.sh ssh NODE CMD...             as root (stanley@NODE: as stanley), stdin passed on
#   lab.sh sshconfig                   prints the path of an ssh configuration for the nodes
#   lab.sh tree NODE DIR...            one line per file: mode owner group type path [sha256 | -> target]
#   lab.sh part | join                 nodes see the host but not each other
#   lab.sh cut NODE | heal NODE        pull the node's cable (silent: no carrier change in the node)
#   lab.sh freeze NODE | thaw NODE     SIGSTOP the node's kernel
#   lab.sh kill NODE | start NODE      power cut (as on iron, files written in the last 30 s and never fsynced come
#                                      back EMPTY: `sync` first if that is not the point), and boot with the same disk
#   lab.sh reboot NODE                 in order, by its own systemd
#   lab.sh reset NODE...               power cut, and boot with a fresh disk
# LAB: where its state is (one lab each); NODES='primary secondary [secondary2]'; MEM=1G. Needs root, /dev/net/tun.
set -euo pipefail
self=$(realpath "$0"); here=${self%/*}; . "$here/lib.sh"
LAB=$(realpath -m "${LAB:-${TMPDIR:-/tmp}/st2ha-lab-$(id -u)}") MEM=${MEM:-1G}
cmd=${1:-help}; shift || true
NODES=${NODES:-$(cat "$LAB/nodes" 2>/dev/null || echo primary secondary)}
NS=st2ha-$(printf %s "$LAB" | sha256sum | cut -c1-8)
for x in $NODES; do [ -n "${ADDR[$x]:-}" ] || die "no node is called $x (there are: $ALL_NODES)"; done

ns() { nsenter --net="/run/netns/$NS" "$@"; }
is_node() { case " $NODES " in *" $1 "*) ;; *) die "no node is called ${1:-nothing} (there are: $NODES)";; esac; }
is_up() { [ -e "/run/netns/$NS" ] && [ -e "$LAB/ssh_config" ] || die "no lab is up in $LAB"; }
base() { cat "$LAB/base"; }

# A node's processes are its supervisor, the kernel and what runs in it; the first two carry the lab's directory in
# their arguments. By that, not by remembered numbers: a number may be another process's by now.
escaped() { printf %s "$LAB" | sed 's/[][\\.*^$+?(){}|]/\\&/g'; }
pids() { # NODE: of its kernel's processes and of its supervisor
  local lab; lab=$(escaped)
  pgrep -f -- " umid=$1 uml_dir=$lab/run/ | _node $1 $lab\$" || true
}
kernel() { # the number of the node's kernel: the one its supervisor started
  local p; p=$(cat "$LAB/$1.uml" 2>/dev/null) || return 1
  case $(tr '\0' ' ' <"/proc/$p/cmdline" 2>/dev/null) in *" umid=$1 uml_dir=$LAB/run/ "*) echo "$p";; *) return 1;; esac
}

net_up() {
  ip netns add "$NS"; ip -n "$NS" link set lo up
  ip -n "$NS" link add br0 type bridge stp_state 0 forward_delay 0
  ip -n "$NS" addr add "$NET.1/24" dev br0; ip -n "$NS" link set br0 up
  for x in $NODES; do
    ip -n "$NS" tuntap add dev "tap-$x" mode tap
    ip -n "$NS" link set "tap-$x" master br0 up
  done
}
config() { # of ssh: one connection per node stays open, so that a command costs no login
  for x in $NODES; do
    printf 'Host %s %s\n HostName %s\n HostKeyAlias %s\n' "$x" "${ADDR[$x]}" "${ADDR[$x]}" "$x"
  done
  printf 'Host *\n User root\n IdentityFile "%s"\n IdentitiesOnly yes\n UserKnownHostsFile "%s"\n' "$(base).key" "$(base).known_hosts"
  printf ' GlobalKnownHostsFile /dev/null\n StrictHostKeyChecking yes\n BatchMode yes\n LogLevel ERROR\n ConnectTimeout 20\n'
  printf ' ServerAliveInterval 5\n ServerAliveCountMax 6\n Ciphers aes128-gcm@openssh.com\n'
  printf ' ControlMaster auto\n ControlPersist 300\n ControlPath "%s/ssh/%%r@%%n"\n' "$LAB"
  printf ' ProxyCommand nsenter --net=/run/netns/%s nc %%h %%p\n' "$NS"
}
hang_up() { # NODE: its kept ssh connections
  local s
  for s in "$LAB/ssh/"*"@$1"; do
    [ -S "$s" ] || continue
    ssh -F "$LAB/ssh_config" -o ControlPath="$s" -O exit "$1" >/dev/null 2>&1 || true
    rm -f "$s"
  done
}
sshn() { local x=$1; shift; ssh -F "$LAB/ssh_config" "$x" "$@"; }

start() { # NODE; keeps the node's disk if there is one
  # All of a node on ONE cpu: UML hands over between its kernel and its user processes at every system call and
  # page fault; waking another (virtual) cpu costs about four times a switch on the same one.
  local cpus=($(taskset -cp $$ | sed 's/.*: //' | tr ',' '\n' | while IFS=- read -r a b; do seq "$a" "${b:-$a}"; done))
  local cpu=${cpus[$(( ${ADDR[$1]##*.} % ${#cpus[@]} ))]}
  # setsid: a process group of its own, so that the whole node can be killed at once.
  nsenter --net="/run/netns/$NS" setsid taskset -c "$cpu" "$self" _node "$1" "$LAB" </dev/null >>"$LAB/$1.console" 2>&1 9>&- &
}
node() { # the node's supervisor. noreboot: UML's own reboot (it executes itself again) finds its tap busy
  local x=$1 preload=("$CACHE"/xstate-*.so) hosts=host:$NET.1 n kernel mac
  mapfile -t kernel <"$LAB/kernel"
  for n in $ALL_NODES; do hosts+=,$n:${ADDR[$n]}; done
  printf -v mac 52:54:00:98:00:%02x "${ADDR[$x]##*.}"
  while :; do
    # gro=1: without it UML drops the big segments that the host's TCP hands to the tap, and transfers stall.
    LD_PRELOAD=${preload[0]} "${kernel[1]}" noreboot ${kernel[3]:-} \
      mem="$MEM" umid="$x" uml_dir="$LAB/run/" hostfs="${kernel[2]}" \
      ubd0="$LAB/$x.cow,$(base)" root=/dev/ubda rw \
      vec0:transport=tap,ifname="tap-$x",depth=128,gro=1,mac="$mac" \
      con0=null,fd:1 con=null ssl=null quiet loglevel=4 \
      systemd.machine_id="$(printf %s "st2ha lab $x" | sha256sum | cut -c1-32)" \
      lab.host="$x" lab.ip="${ADDR[$x]}/24" lab.gw="$NET.1" lab.hosts="$hosts" &
    echo $! > "$LAB/$x.uml"; wait $! || true
    tail -c 300 "$LAB/$x.console" | grep -q 'reboot: Restarting system' || break
    echo "reboot: again"
  done
}
wait_ssh() { # NODE SECONDS
  local end=$((SECONDS+$2))
  sleep 0.5
  # The port first: it costs nothing to ask, and the node needs its cpu for booting.
  until ns nc -z -w 1 "${ADDR[$1]}" 22 2>/dev/null && sshn "$1" true </dev/null 2>/dev/null; do
    [ -n "$(pids "$1")" ] || { tail -20 "$LAB/$1.console" >&2; die "node $1 died (its console is above)"; }
    [ $SECONDS -lt $end ] || { tail -5 "$LAB/$1.console" >&2; die "node $1: no ssh in $2 s"; }
    sleep 0.2
  done
}
ready() { # NODE: systemd has nothing left to do, nothing failed, no service waits for its next try, and all are connected
  local state='' end=$((SECONDS+300))
  while state=$(sshn "$1" "timeout 300 sh -c '$UP'" </dev/null) || true; [ "$state" != running ]; do
    [ $SECONDS -lt $end ] && [ "$state" != degraded ] || break
    sleep 0.5
  done
  [ "$state" = running ] || {
    sshn "$1" 'systemctl --no-pager --no-legend list-units --state=failed,activating' </dev/null >&2 || true
    die "node $1 is not ready after $((SECONDS-end+300)) s: ${state:-no answer}"
  }
}
reboot() { # NODE, by itself and in order
  local before after='' end=$((SECONDS+120))
  before=$(sshn "$1" 'cat /proc/sys/kernel/random/boot_id; systemctl --no-block reboot' </dev/null)
  hang_up "$1"
  until [ -n "$after" ] && [ "$after" != "$before" ]; do
    [ $SECONDS -lt $end ] || die "node $1 did not come back"
    sleep 0.5
    after=$(ssh -F "$LAB/ssh_config" -o ControlPath=none -o ConnectTimeout=2 "$1" cat /proc/sys/kernel/random/boot_id </dev/null 2>/dev/null) || after=
  done
  [ "${WAIT:-ready}" = ssh ] || ready "$1"
}
each() { # COMMAND NODE...: for all at the same time
  local f=$1 p=() rc=0; shift
  for x in "$@"; do $f "$x" & p+=($!); done
  for x in "${p[@]}"; do wait "$x" || rc=1; done
  return $rc
}
killnode() { # NODE
  local p g own all groups
  hang_up "$1"
  own=$(ps -o pgid= -p $$ | tr -d ' ')
  # UML makes its processes a group of their own; its guests are in it. Works on a frozen node too.
  while all=$(pids "$1"); [ -n "$all" ]; do
    groups=$(ps -o pgid= -p "$(echo $all | tr ' ' ,)" | sort -u | grep -vw "$own") || true
    for g in $groups; do kill -KILL -- "-$g" 2>/dev/null || true; done
    for p in $all; do kill -KILL "$p" 2>/dev/null || true; done
    # the disk is free when the last is gone; a zombie holds nothing, and init may leave it for seconds
    for g in $groups; do while pgrep -r D,R,S,T,t -g "$g" >/dev/null; do sleep 0.02; done; done
  done
  rm -rf "$LAB/$1.uml" "$LAB/run/$1"
}
down() {
  each killnode $ALL_NODES
  [ ! -e "/run/netns/$NS" ] || { ns true 2>/dev/null && ip netns del "$NS" || rm -f "/run/netns/$NS"; }
  rm -rf "$LAB"
}
boot() { start "$1"; wait_ssh "$1" 300; [ "${WAIT:-ready}" = ssh ] || ready "$1"; }

case $cmd in help|-h|--help) sed -n 2,18p "$self"; exit 2;; esac
[ "$(id -u)" = 0 ] || die "needs root, for its network namespace: sudo $self $cmd"
case $cmd in
  up)   exec 9>"$LAB.lock"; flock -n 9 || die "another lab is coming up in $LAB"
        trap 'rm -f "$LAB.lock"' EXIT; trap 'exit 130' INT TERM
        # A node that runs under its supervisor is a lab in use; anything else is the rest of one.
        for x in $ALL_NODES; do
          ! kernel "$x" >/dev/null || ! pgrep -f -- "_node $x $(escaped)\$" >/dev/null || die "is up already in $LAB: $self down"
        done
        [ ! -e "$LAB" ] && [ ! -e "/run/netns/$NS" ] || { say "removing what a dead lab left in $LAB"; down; }
        [ -c /dev/net/tun ] || die "no /dev/net/tun"
        "$here/setup.sh"; img=$("$here/mkbase.sh"); kernel=$("$here/kernel.sh")
        trap '[ $? = 0 ] || down; rm -f "$LAB.lock"' EXIT
        mkdir -p "$LAB/run" "$LAB/ssh"; echo "$img" > "$LAB/base"; echo "$kernel" > "$LAB/kernel"; echo "$NODES" > "$LAB/nodes"
        net_up; config > "$LAB/ssh_config"
        each boot $NODES;;
  down) down;;
  status) is_up; rc=0
        for x in $NODES; do
          if k=$(kernel "$x"); then
            g=$(ps -o pgid= -p "$k" | tr -d ' '); s=$(ps -o state= -p "$k")
            echo "$x ${ADDR[$x]} $([ "${s#T}" = "$s" ] && echo up || echo frozen) pid $k, $(pgrep -g "$g" | wc -l) processes"
          else echo "$x ${ADDR[$x]} off"; rc=1; fi
        done; exit $rc;;
  kernel) is_up; { read -r version; read -r _; read -r _; read -r arguments || true; } <"$LAB/kernel"
        echo "Linux $version${arguments:+ $arguments}";;
  ready) is_up; for x in "$@"; do is_node "$x"; done; each ready ${@:-$NODES};;
  ssh)  is_up; is_node "${1#*@}"; sshn "$@";;
  exec) is_up; ns "$@";;
  sshconfig) is_up; echo "$LAB/ssh_config";;
  tree) is_up; is_node "$1"; x=$1; shift; sshn "$x" lab-tree "$(printf '%q ' "$@")" </dev/null;;
  part|join) is_up; for x in $NODES; do ns bridge link set dev "tap-$x" isolated "$([ $cmd = part ] && echo on || echo off)"; done;;
  cut)  is_up; is_node "$1"; ip -n "$NS" link set "tap-$1" nomaster;;
  heal) is_up; is_node "$1"; ip -n "$NS" link set "tap-$1" master br0;;
  # only UML's kernel process: stop signals to the whole group kill a ptrace-mode node
  freeze) is_up; is_node "$1"; kill -STOP "$(kernel "$1")";;
  thaw)   is_up; is_node "$1"; kill -CONT "$(kernel "$1")";;
  kill)   is_up; is_node "$1"; killnode "$1";;
  start)  is_up; is_node "$1"; [ -z "$(pids "$1")" ] || die "node $1 is on"; boot "$1";;
  reboot) is_up; is_node "$1"; reboot "$1";;
  reset)  is_up; [ $# -gt 0 ] || die "reset: no node"; for x in "$@"; do is_node "$x"; done
          reset() { killnode "$1"; rm -f "$LAB/$1.cow"; ip -n "$NS" link set "tap-$1" master br0; boot "$1"; }; each reset "$@";;
  _node)  node "$1";;
  *) sed -n 2,18p "$self" >&2; exit 2;;
esac
