# What the lab's scripts share.
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/st2ha-lab
ALL_NODES='primary secondary secondary2' NET=192.168.0   # that the image has something of their own for
# The others are fast nodes alone, made of secondary2's (fast.sh).
declare -A ADDR=([primary]=$NET.100 [secondary]=$NET.101)
for n in 2 3 4 5 6 7 8; do ADDR[secondary$n]=$NET.$((100 + n)); done
say() { printf 'lab: %s\n' "$*" >&2; }
die() { printf 'lab: %s\n' "$*" >&2; exit 1; }
sources() { # the apt sources of this machine
  local s
  for s in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do [ ! -s "$s" ] || break; done
  echo "$s"
}
# For a node's shell: "running" if systemd has nothing left to do, nothing failed, no service waits for its next try, and
# each st2 service that runs is connected (it listens then: st2service); else what is not so.
UP='state=$(systemctl is-system-running --wait); [ "$state" = running ] || { echo "$state"; exit; }
  not=$(systemctl list-units --no-legend --plain --state=activating | cut -d" " -f1)
  for unit in $(systemctl list-units --no-legend --plain --state=running "st2*.service" | cut -d" " -f1); do
    case $unit in st2ha*) continue;; esac
    grep -q "@st2service/$(echo "${unit%.service}" | tr @ .)\$" /proc/net/unix || not="$not $unit"
  done
  echo ${not:-running}'
