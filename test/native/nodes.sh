#!/bin/bash
# nodes.sh CMD...: the lab's two nodes at this machine's own speed, and CMD with them up; nothing of them stays.
# Each node is a systemd of its own in namespaces of its own (processes, mounts, network, host name, IPC, cgroups) on a
# copy of the lab's image: real sshd, sudo, systemd, RabbitMQ, Redis, exportfs. Only the kernel is this machine's, which
# may have no NFS at all. So in place of NFS the secondary mounts by sshfs, from the same fstab line and by the same
# mount unit, and nfs-server.service starts nothing.
#   in CMD: on NODE PROGRAM...   runs a program in a node; CMD itself is in the nodes' network, as 192.168.0.1
set -euo pipefail
self=$(realpath "$0"); here=${self%/*}; . "$here/../lab/lib.sh"
cgroups=${cgroups:-$(findmnt -n -o TARGET -t cgroup2 | head -1)/st2ha-native-$$} NODES="primary secondary"

inside() { # in a process namespace whose end is the end of all nodes
  export work=$1 cgroups=$2 base=$3; shift 3
  mount -t tmpfs -o mode=755 none "$work"
  mkdir "$work/base"; mount -o loop,ro,noload "$base" "$work/base"
  ip link set lo up
  # The lab's network: a bridge, and this machine on it.
  ip link add br0 type bridge; ip addr add "$NET.1/24" dev br0; ip link set br0 up
  for x in $NODES; do
    root "$x"
    setsid unshare --mount --uts --ipc --net --pid --fork "$self" _boot "$x" </dev/null >"$work/$x.console" 2>&1 &
    local p=''; until p=$(pgrep -P $!); do kill -0 $! || die "node $x: $(<"$work/$x.console")"; sleep 0.01; done
    echo "$p" >"$work/$x.pid"
    ip link add "to-$x" master br0 up type veth peer name "$x"
    ip link set "$x" netns "$p"; touch "$work/$x.linked"
  done
  for x in $NODES; do ready "$x"; done
  export -f on; export base; "$@"
}
root() { # NODE: its file system
  local x=$1 r=$work/$1 o h=''
  mkdir -p "$r/upper" "$r/work" "$r/root"
  mount -t overlay -o "lowerdir=$work/base,upperdir=$r/upper,workdir=$r/work,redirect_dir=on" none "$r/root"; r=$r/root
  cp -a "$r/usr/local/lib/lab/$x/." "$r/"                      # as lab-init does
  cat "$r"/usr/local/lib/lab/*/home/stanley/.ssh/stanley_rsa.pub >>"$r/home/stanley/.ssh/authorized_keys"  # for sshfs
  echo "$x" >"$r/etc/hostname"; : >"$r/etc/fstab"
  for o in $NODES; do h+="${ADDR[$o]} $o"$'\n'; done
  printf '127.0.0.1 localhost\n%s' "$h" >"$r/etc/hosts"
  for o in lab-init.service systemd-udevd.service run-rpc_pipefs.mount; do ln -sf /dev/null "$r/etc/systemd/system/$o"; done
  # A broker as on a machine of its own; the lab's settings are for slow nodes.
  rm -f "$r/etc/systemd/system/rabbitmq-server.service.d/lab.conf"
  printf '[Unit]\nDescription=Stand-in: this kernel has no NFS server\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n' \
    >"$r/etc/systemd/system/nfs-server.service"
  for o in sshfs fusermount3; do
    o=$(command -v $o); cp "$o" "$r$o"
    ldd "$o" | awk '$3 ~ /^\// {print $3}' | while read -r l; do [ -e "$r$l" ] || cp -L "$l" "$r$l"; done
  done
  rm "$r/sbin/mount.nfs"; install -m 755 "$here/mount.nfs" "$r/sbin/mount.nfs"
}
boot() { # NODE: becomes the node's PID 1
  local x=$1 r=$work/$1/root d
  echo 0 >"$cgroups/$x/cgroup.procs"
  exec unshare --cgroup "$self" _init "$x"
}
init() {
  local x=$1 r=$work/$1/root d
  hostname "$x"
  until [ -e "$work/$x.linked" ]; do sleep 0.01; done
  ip link set lo up; ip addr add "${ADDR[$x]}/24" dev "$x"; ip link set "$x" up
  mount --make-rprivate /
  mount -t proc proc "$r/proc"; mount -t sysfs sysfs "$r/sys";
  for d in sys proc/sys; do mount --bind "$r/$d" "$r/$d"; mount -o remount,bind,ro "$r/$d"; done  # the kernel is not the node's
  mount -t cgroup2 cgroup2 "$r/sys/fs/cgroup"
  mount -t tmpfs -o mode=755 none "$r/dev"; mount -t tmpfs -o mode=755 none "$r/run"; mount -t tmpfs none "$r/tmp"
  mkdir "$r/dev/pts" "$r/dev/shm"; mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$r/dev/pts"; mount -t tmpfs none "$r/dev/shm"
  ln -s pts/ptmx "$r/dev/ptmx"; ln -s /proc/self/fd "$r/dev/fd"
  for d in null zero full random urandom tty; do mknod -m 666 "$r/dev/$d" c $(stat -c '0x%t 0x%T' "/dev/$d"); done
  mknod -m 600 "$r/dev/fuse" c 10 229
  cd "$r"; mkdir -p run/old; pivot_root . run/old; umount -l /run/old
  exec env -i container=st2ha PATH="$PATH" /lib/systemd/systemd --log-target=journal
}
on() { nsenter --target "$(cat "$work/$1.pid")" --mount --uts --ipc --net --pid --cgroup --root --wd "${@:2}"; }
ready() { # NODE: nothing failed, and nothing is still to start
  local state
  for _ in $(seq 300); do
    state=$(on "$1" sh -c "$UP" 2>/dev/null) || true
    [ "$state" != running ] || return 0
    [ "$state" != degraded ] || break
    sleep 0.2
  done
  on "$1" systemctl --no-pager --no-legend list-units --state=failed,activating >&2 || cat "$work/$1.console" >&2
  die "node $1 is ${state:-not there}"
}

case ${1:-} in
  '') sed -n 2,8p "$self" >&2; exit 2;;
  _inside) shift; inside "$@"; exit;;
  _boot) boot "$2";;
  _init) init "$2";;
esac
[ "$(id -u)" = 0 ] || die "needs root, for its namespaces"
"$here/setup.sh"
base=$("$here/../lab/mkbase.sh")
work=$(mktemp -d); mkdir "$cgroups" "$cgroups"/{primary,secondary}
clean() {
  kill -KILL "$nodes" 2>/dev/null || true   # and with it all processes in its namespace
  # Cgroups of processes that have just ended take a moment.
  for _ in $(seq 100); do
    find "$cgroups" -depth -type d -exec rmdir {} + 2>/dev/null || true
    [ -e "$cgroups" ] || break
    sleep 0.05
  done
  rmdir "$work"
}
nodes=''; trap clean EXIT; trap 'exit 130' INT TERM
unshare --mount --net --pid --fork --kill-child --mount-proc "$self" _inside "$work" "$cgroups" "$base" "$@" & nodes=$!
wait $nodes
