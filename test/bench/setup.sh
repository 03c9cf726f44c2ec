#!/bin/bash
# setup.sh: Ansible, with the collections of Debian's package.
set -euo pipefail
command -v ansible-playbook >/dev/null && exit
sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
echo "installing ansible" >&2
$sudo apt-get update -qq </dev/null
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends ansible </dev/null >/dev/null
