# What the lab's scripts share.
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/st2ha-lab
ALL_NODES='primary secondary secondary2' NET=192.168.0
declare -A ADDR=([primary]=$NET.100 [secondary]=$NET.101 [secondary2]=$NET.102)
say() { printf 'lab: %s\n' "$*" >&2; }
die() { printf 'lab: %s\n' "$*" >&2; exit 1; }
sources() { # the apt sources of this machine
  local s
  for s in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do [ ! -s "$s" ] || break; done
  echo "$s"
}
