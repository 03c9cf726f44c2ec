#!/bin/bash
# setup.sh: what the tests of the Go packages need on a Debian 12 machine: a real sshd and sftp-server, ACLs, ruby,
# RabbitMQ and Redis.
set -euo pipefail
need='openssh-server openssh-sftp-server acl attr e2fsprogs ruby sudo util-linux iproute2 gcc libc6-dev make rabbitmq-server redis-server'
missing=$(for p in $need; do dpkg-query -W -f '${db:Status-Abbrev}' "$p" 2>/dev/null | grep -q '^ii' || echo "$p"; done)
[ -n "$missing" ] || exit 0
sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
echo "installing" $missing >&2
$sudo apt-get update -qq </dev/null
# No services of the packages' own on the machine: the tests start theirs (policy-rc.d: invoke-rc.d(8)).
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy >/dev/null
  $sudo chmod 755 $policy
  trap '$sudo rm -f $policy' EXIT
fi
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing </dev/null >/dev/null
if [ -d /run/systemd/system ]; then # nor after the next boot
  $sudo systemctl disable --quiet rabbitmq-server redis-server
fi
