#!/bin/bash
# setup.sh: what the tests of the Go packages need on a Debian 12 machine: a real sshd and sftp-server, RabbitMQ, Redis,
# an NFS server and a FUSE file system that need no NFS in the kernel, ACLs, ruby, promtool; what StackStorm installs
# packs with.
set -euo pipefail
need='openssh-server openssh-sftp-server acl attr e2fsprogs ruby sudo util-linux iproute2 gcc libc6-dev make
  rabbitmq-server redis-server nfs-ganesha nfs-ganesha-vfs sshfs strace shellcheck dash git python3 python3-venv
  systemd prometheus procps libcap2-bin'
missing=$(for p in $need; do dpkg-query -W -f '${db:Status-Abbrev}' "$p" 2>/dev/null | grep -q '^ii' || echo "$p"; done)
[ -n "$missing" ] || exit 0
sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
echo "installing" $missing >&2
$sudo apt-get update -qq </dev/null
# No service of its own on the machine, now or after a reboot: the tests start theirs, on other ports.
policy=/usr/sbin/policy-rc.d
[ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' | $sudo install -m 755 /dev/stdin "$policy"; trap '$sudo rm -f "$policy"' EXIT; }
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing </dev/null >/dev/null
for service in rabbitmq-server redis-server nfs-ganesha prometheus; do
  case " $(echo $missing) " in *" $service "*) $sudo systemctl disable --quiet "$service";; esac
done
