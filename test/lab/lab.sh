#!/bin/bash
# A lab of nodes (primary 192.168.0.100, secondary 192.168.0.101, the host 192.168.0.1) on a bridge in a network namespace
# of its own. KIND=uml: User-Mode Linux, each node with a kernel of its own. KIND=fast: each node is a systemd of its own
# in namespaces on this machine's kernel (fast.sh).
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
# LAB: where its state is (one lab each); NODES='primary secondary [secondary2]', of fast ones up to
# secondary8; MEM=1G. Needs root, /dev/net/tun.
# freeze, thaw, kill and start are for UML nodes alone: without a kernel of its own a node cannot stand still or lose what
# was not synced.
set -euo pipefail
self=$(realpath "$0"); here=${self%/*}; . "$here/lib.sh"
LAB=$(realpath -m "${LAB:-${TMPDIR:-/tmp}/st2ha-lab-$(id -u)}") MEM=${MEM:-1G}
cmd=${1:-help}; shift || true
KIND=$(cat "$LAB/kind" 2>/dev/null || echo "${KIND:-uml}")
NODES=${NODES:-$(cat "$LAB/nodes" 2>/dev/null || echo primary secondary)}
NS=st2ha-$(printf %s "$LAB" | sha256sum | cut -c1-8)
for x in $NODES; do [ -n "${ADDR[$x]:-}" ] || die "no node is called $x (there are: ${!ADDR[*]})"; done

ns() { nsenter --net="/run/netns/$NS" "$@"; }
is_node() { case " $NODES " in *" $1 "*) ;; *) die "no node is called ${1:-nothing} (there are: $NODES)";; esac; }
is_uml() { [ "$KIND" = uml ] || die "$cmd needs nodes with a kernel of their own, and these are $KIND"; }
is_up() { [ -e "/run/netns/$NS" ] && [ -e "$LAB/ssh_config" ] || die "no lab is up in $LAB"; }
base() { cat "$LAB/base"; }

# A node's processes are found by the lab's directory in their arguments, not by remembered numbers: a number may be
# another process's by now.
escaped() { printf %s "$LAB" | sed 's/[][\\.*^$+?(){}|]/\\&/g'; }
# What the kinds of nodes do each in their own way: kernel (as kernel.sh
# prints it), link and relink, launch, node, pids, running, gone.
case $KIND in uml|fast) . "$here/$KIND.sh";; *) die "KIND=$KIND: nodes are uml or fast";; esac

net_up() {
  ip netns add "$NS"; ip -n "$NS" link set lo up
  ip -n "$NS" link add br0 type bridge stp_state 0 forward_delay 0
  ip -n "$NS" addr add "$NET.1/24" dev br0; ip -n "$NS" link set br0 up
  for x in $NODES; do link "$x"; done
}
own() { case $ALL_NODES in *"$1"*) echo "$1";; *) echo secondary2;; esac; } # NODE: whose keys and passwords it has
config() { # of ssh: one connection per node stays open, so that a command costs no login
  for x in $NODES; do
    printf 'Host %s %s\n HostName %s\n HostKeyAlias %s\n' "$x" "${ADDR[$x]}" "${ADDR[$x]}" "$(own "$x")"
  done
  printf 'Host *\n User root\n IdentityFile "%s"\n IdentitiesOnly yes\n UserKnownHostsFile "%s"\n' "$(base).key" "$(base).known_hosts"
  printf ' GlobalKnownHostsFile /dev/null\n StrictHostKeyChecking yes\n BatchMode yes\n LogLevel ERROR\n ConnectTimeout 20\n'
  printf ' ServerAliveInterval 5\n ServerAliveCountMax 6\n Ciphers aes128-gcm@openssh.com\n'
  printf ' ControlMaster auto\n ControlPersist 300\n ControlPath "%s/ssh/%%r@%%n"\n' "$LAB"
  printf ' ProxyCommand nsenter --net=/run/netns/%s nc %%h %%p\n' "$NS"
}
machine_id() { printf %s "st2ha lab $1" | sha256sum | cut -c1-32; } # NODE
identity() { # NODE: what lab-init reads from the kernel's command line
  local n hosts=host:$NET.1
  for n in $ALL_NODES $(echo $NODES | tr " " "\n" | grep "^secondary[3-9]"); do hosts+=,$n:${ADDR[$n]}; done
  echo "lab.host=$1 lab.ip=${ADDR[$1]}/24 lab.gw=$NET.1 lab.hosts=$hosts"
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
  # setsid: a process group of its own, so that the whole node can be killed at once.
  nsenter --net="/run/netns/$NS" setsid $(launch "$1") "$self" _node "$1" "$LAB" </dev/null >>"$LAB/$1.console" 2>&1 9>&- &
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
BOOT='cat /proc/sys/kernel/random/boot_id; cut -d" " -f22 /proc/1/stat' # which boot of a node it is; fast nodes have one kernel
reboot() { # NODE, by itself and in order
  local before after='' end=$((SECONDS+120))
  before=$(sshn "$1" "$BOOT; systemctl --no-block reboot" </dev/null)
  hang_up "$1"
  until [ -n "$after" ] && [ "$after" != "$before" ]; do
    [ $SECONDS -lt $end ] || die "node $1 did not come back"
    sleep 0.5
    after=$(ssh -F "$LAB/ssh_config" -o ControlPath=none -o ConnectTimeout=2 "$1" "$BOOT" </dev/null 2>/dev/null) || after=
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
  gone "$1"
}
down() {
  each killnode "${!ADDR[@]}"
  [ ! -e "/run/netns/$NS" ] || { ns true 2>/dev/null && ip netns del "$NS" || rm -f "/run/netns/$NS"; }
  rm -rf "$LAB"
}
boot() { start "$1"; wait_ssh "$1" 300; [ "${WAIT:-ready}" = ssh ] || ready "$1"; }

case $cmd in help|-h|--help) sed -n 2,24p "$self"; exit 2;; esac
[ "$(id -u)" = 0 ] || die "needs root, for its network namespace: sudo $self $cmd"
case $cmd in
  up)   exec 9>"$LAB.lock"; flock -n 9 || die "another lab is coming up in $LAB"
        trap 'rm -f "$LAB.lock"' EXIT; trap 'exit 130' INT TERM
        # A node that runs under its supervisor is a lab in use; anything else is the rest of one.
        for x in "${!ADDR[@]}"; do
          ! running "$x" >/dev/null || ! pgrep -f -- "_node $x $(escaped)\$" >/dev/null || die "is up already in $LAB: $self down"
        done
        [ ! -e "$LAB" ] && [ ! -e "/run/netns/$NS" ] || { say "removing what a dead lab left in $LAB"; down; }
        [ -c /dev/net/tun ] || die "no /dev/net/tun"
        "$here/setup.sh"; img=$("$here/mkbase.sh"); kernel=$(kernel)
        trap '[ $? = 0 ] || down; rm -f "$LAB.lock"' EXIT
        mkdir -p "$LAB/run" "$LAB/ssh"; echo "$img" > "$LAB/base"; echo "$kernel" > "$LAB/kernel"; echo "$NODES" > "$LAB/nodes"; echo "$KIND" > "$LAB/kind"
        net_up; config > "$LAB/ssh_config"
        each boot $NODES;;
  down) down;;
  status) is_up; rc=0
        for x in $NODES; do
          if k=$(running "$x"); then
            s=$(ps -o state= -p "$k")
            echo "$x ${ADDR[$x]} $([ "${s#T}" = "$s" ] && echo up || echo frozen) pid $k"
          else echo "$x ${ADDR[$x]} off"; rc=1; fi
        done; exit $rc;;
  kernel) is_up; mapfile -t k <"$LAB/kernel"; echo "$KIND nodes, Linux ${k[0]}${k[3]:+ ${k[3]}}";;
  ready) is_up; for x in "$@"; do is_node "$x"; done; each ready ${@:-$NODES};;
  ssh)  is_up; is_node "${1#*@}"; sshn "$@";;
  exec) is_up; ns "$@";;
  sshconfig) is_up; echo "$LAB/ssh_config";;
  tree) is_up; is_node "$1"; x=$1; shift; sshn "$x" lab-tree "$(printf '%q ' "$@")" </dev/null;;
  part|join) is_up; for x in $NODES; do ns bridge link set dev "tap-$x" isolated "$([ $cmd = part ] && echo on || echo off)"; done;;
  cut)  is_up; is_node "$1"; ip -n "$NS" link set "tap-$1" nomaster;;
  heal) is_up; is_node "$1"; relink "$1";;
  # only UML's kernel process: stop signals to the whole group kill a ptrace-mode node
  freeze) is_up; is_node "$1"; is_uml; kill -STOP "$(running "$1")";;
  thaw)   is_up; is_node "$1"; is_uml; kill -CONT "$(running "$1")";;
  kill)   is_up; is_node "$1"; is_uml; killnode "$1";;
  start)  is_up; is_uml; is_node "$1"; [ -z "$(pids "$1")" ] || die "node $1 is on"; boot "$1";;
  reboot) is_up; is_node "$1"; reboot "$1";;
  reset)  is_up; [ $# -gt 0 ] || die "reset: no node"; for x in "$@"; do is_node "$x"; done
          reset() { killnode "$1"; rm -f "$LAB/$1.cow"; relink "$1"; boot "$1"; }; each reset "$@";;
  _node)  node "$1";;
  _boot)  into "$1";;
  _init)  init "$1";;
  *) sed -n 2,24p "$self" >&2; exit 2;;
esac
