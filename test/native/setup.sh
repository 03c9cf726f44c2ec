#!/bin/bash
# setup.sh: what the nodes at this machine's own speed need on a Debian 12 machine beside what the lab does.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
"$here/../lab/setup.sh"
command -v sshfs >/dev/null && command -v fusermount3 >/dev/null && exit
sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
echo "installing sshfs" >&2
$sudo apt-get update -qq </dev/null
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends sshfs </dev/null >/dev/null
