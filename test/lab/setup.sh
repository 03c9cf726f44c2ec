#!/bin/bash
# setup.sh: what the lab needs on a Debian 12 machine. Quick when all is there.
set -euo pipefail
here=$(dirname "$(realpath "$0")"); . "$here/lib.sh"
# gcc and libc6-dev for xstate.c, patchelf for kernel.sh; the Go toolchain is the project's own affair
need='user-mode-linux mmdebstrap e2fsprogs uidmap iproute2 openssh-client netcat-openbsd kmod nftables gcc libc6-dev patchelf
  util-linux procps ca-certificates debian-archive-keyring sshfs'
# dpkg-query fails where it has never heard of a package, as on a new machine.
missing=$({ dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' $need 2>/dev/null || true; } |
  awk -v need="$need" '$1 == "ii" {have[$2]=1} END {n=split(need, a); for (i=1; i<=n; i++) if (!(a[i] in have)) print a[i]}')
if [ -n "$missing" ]; then
  sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
  say "installing" $missing
  install() { $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing </dev/null >"$1" 2>&1; }
  log=$(mktemp); trap 'rm -f "$log"' EXIT
  install "$log" || { $sudo apt-get update -qq </dev/null >>"$log" 2>&1 && install "$log"; } || { cat "$log" >&2; die "apt-get failed"; }
fi
so=$CACHE/xstate-$(sha256sum < "$here/xstate/xstate.c" | cut -c1-12).so
if [ ! -e "$so" ]; then
  mkdir -p "$CACHE"; rm -f "$CACHE"/xstate-*.so
  gcc -O2 -Wall -shared -fPIC -o "$so.$$" "$here/xstate/xstate.c" -ldl
  mv "$so.$$" "$so"
fi
