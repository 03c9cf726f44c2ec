#!/bin/bash
# Installs a browser with one known font, and prints the path of axe-core: the check of accessibility, of the version that
# package.json pins.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
need='chromium npm fonts-dejavu-core'
missing=$(for p in $need; do dpkg-query -W -f '${db:Status-Abbrev}' "$p" 2>/dev/null | grep -q '^ii' || echo "$p"; done)
command -v npm >/dev/null && missing=$(printf '%s\n' $missing | grep -vx npm || true) # one from elsewhere will do
if [ -n "$missing" ]; then
  sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
  echo "installing" $missing >&2
  $sudo apt-get update -qq </dev/null >&2
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing </dev/null >&2
fi
home=${XDG_CACHE_HOME:-$HOME/.cache}/st2ha-page/$(sha256sum "$here/package.json" | cut -c1-16)
axe=$home/node_modules/axe-core/axe.min.js
if [ ! -e "$axe" ]; then
  mkdir -p "$home"
  exec 9>"$home.lock"; flock 9 # two at once must not install into the same directory
  cp "$here/package.json" "$home/"
  (cd "$home" && npm install --no-audit --no-fund --ignore-scripts --no-package-lock </dev/null >&2)
fi
echo "$axe"
