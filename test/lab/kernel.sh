#!/bin/bash
# kernel.sh: the kernel that the nodes run, one line each: version, program, modules, its own arguments. It is the
# fastest user-mode-linux that Debian's suites offer and that proves itself on this machine: sid's with seccomp=on, else
# trixie's, else the stock one, which setup.sh installed; a line on stderr says which and why.
#   LAB_KERNEL=stock|6.12|7.2     this one, proved or not
# A newer one is unpacked below the cache with the C library that it is linked against, and runs from there: nothing of
# it is installed. What cannot be fetched (no network, a file that left the pool) is left out, and tried again by the
# next run. A proof is made once for each kernel, CPU and kernel of this machine. To look for newer ones:
# rm -r ~/.cache/st2ha-lab/kernel-*
set -euo pipefail
self=$(realpath "$0"); here=${self%/*}; . "$here/lib.sh"

fetch() { # SUITE DIR: from the mirrors that this machine uses, with its suite replaced
  local work own from; own=$(. /etc/os-release; echo "$VERSION_CODENAME") from=$(sources)
  work=$(mktemp -d "$CACHE/.kernel.XXXXXX"); trap "rm -rf '$work'" EXIT
  cd "$work"; mkdir -p lists/partial archives/partial uml libc kernel/libc; : > status
  case $from in
    *.sources) awk -v RS= -v ORS='\n\n' -v own="$own" '$0 ~ "(^|\n)Suites:([^\n]* )?" own "( |\n|$)"' "$from" |
                 sed "s/^Suites:.*/Suites: $1/" > from.sources;;
    *) sed -n "/^deb /s/ $own / $1 /p" "$from" > from.list;;
  esac
  get() {
    timeout 180 apt-get -qq -o Dir::Etc::SourceList="$(echo "$work"/from.*)" -o Dir::Etc::SourceParts=/dev/null \
      -o Dir::State::Lists="$work/lists" -o Dir::State::Status="$work/status" -o Dir::Cache::Archives="$work/archives" \
      -o APT::Sandbox::User=root -o APT::Update::Error-Mode=any -o Acquire::Languages=none \
      -o Acquire::http::Timeout=20 -o Acquire::Retries=1 "$@" </dev/null
  }
  get update; get download user-mode-linux libc6
  dpkg-deb -x user-mode-linux_*.deb uml; dpkg-deb -x libc6_*.deb libc
  mv uml/usr/bin/linux.uml uml/usr/lib/uml/modules kernel/; cp -L libc/usr/lib/*/{libc.so.6,ld-linux-*} kernel/libc/
  patchelf --set-interpreter "$2/libc/$(cd kernel/libc; echo ld-linux-*)" --set-rpath "$2/libc" kernel/linux.uml
  mv kernel "$2"
}
describe() { # DIR
  "$1/linux.uml" --version; printf '%s\n' "$1/linux.uml" "$1/modules"
  if "$1/linux.uml" --help 2>&1 | grep -q '^seccomp='; then echo seccomp=on; fi
}
prove() { # DIR: two nodes boot, load what the lab needs, send each other data, stand still and go on, and end
  L=$here/lab.sh        # no local: the trap needs it
  export LAB LAB_KERNEL=$1 NODES='primary secondary' WAIT=ssh
  LAB=$(mktemp -u "${TMPDIR:-/tmp}/st2ha-proof.XXXXXX"); log=$LAB.log
  trap '"$L" down; rm -f "$log"' EXIT; trap 'exit 130' INT TERM
  try() { local what=$1; shift; timeout 180 "$@" >"$log" 2>&1 </dev/null || { tail -20 "$log"; die "$what"; }; }
  try 'two nodes do not boot' "$L" up
  for x in $NODES; do try "$x cannot load NFS" "$L" ssh "$x" 'modprobe nfsd && modprobe nfsv4'; done
  try 'data does not come over as it was sent' "$L" ssh stanley@primary "head -c 16M /dev/urandom > x && sha256sum < x > sent &&
    ssh -o BatchMode=yes -i .ssh/stanley_rsa ${ADDR[secondary]} sha256sum < x | cmp - sent"
  try 'a node does not freeze' "$L" freeze secondary
  ! timeout 1 "$L" exec nc "${ADDR[secondary]}" 22 </dev/null >/dev/null 2>&1 || die 'a frozen node answers'
  try 'a frozen node does not go on' "$L" thaw secondary
  try 'a thawed node does not answer' "$L" ssh secondary true
  try 'a node does not end' "$L" kill secondary
  try 'a node does not boot again with its disk' "$L" start secondary
}

case ${1:-} in
  _fetch) fetch "$2" "$3"; exit;;
  _prove) prove "$2"; exit;;
esac
want=${LAB_KERNEL:-} out=''
[ "${want#/}" = "$want" ] || { describe "$want"; exit; }       # as prove asks for it
mkdir -p "$CACHE"; exec 8>"$CACHE/kernel.lock"; flock 8         # one fetch and one proof at a time
hash=$(sha256sum <"$self" | cut -c1-12)
machine=$( { uname -rv; grep -m1 '^model name' /proc/cpuinfo; grep -m1 '^flags' /proc/cpuinfo; } | sha256sum | cut -c1-12)
last() { grep -v '^$' | tail -1 | sed 's/^lab: //'; }
[ "$want" = stock ] || for suite in sid trixie; do
  dir=$CACHE/kernel-$suite-$hash
  if [ ! -e "$dir" ]; then
    for old in "$CACHE"/.kernel.* "$CACHE"/kernel-*-*; do
      case $old in *"-$hash") ;; *) pgrep -f -- "^$old/" >/dev/null || rm -rf "$old";; esac
    done
    said=$("$self" _fetch "$suite" "$dir" 2>&1 8>&-) || { out+="; $suite has none to fetch ($(echo "$said" | last))"; continue; }
  fi
  version=$("$dir/linux.uml" --version)
  if [ -n "$want" ]; then
    case $version in "$want"|"$want".*) ;; *) out+="; $suite has $version"; continue;; esac
  else
    proof=$dir/proof-$machine
    if [ ! -e "$proof" ]; then
      say "trying the kernel $version of Debian $suite"
      if "$self" _prove "$dir" >"$proof.new" 2>&1 8>&-; then : >"$proof.new"; fi
      mv "$proof.new" "$proof"
    fi
    [ ! -s "$proof" ] || { out+="; $version of $suite failed ($(last <"$proof"); more in $proof)"; continue; }
  fi
  say "the nodes run Linux $version of Debian $suite${want:+, as LAB_KERNEL says}$out"
  describe "$dir"; exit
done
version=$(linux.uml --version)
case $want in stock|'') ;; *) die "LAB_KERNEL=$want: there is no such kernel; stock is $version$out";; esac
say "the nodes run Linux $version, the stock one${want:+, as LAB_KERNEL says}$out"
printf '%s\n' "$version" "$(command -v linux.uml)" /usr/lib/uml/modules
