# fast.sh: what lab.sh does in its own way for fast nodes. Each is a systemd of its own in namespaces of its own
# (processes, mounts, network, host name, IPC, cgroups) on the lab's image: real sshd, sudo, systemd, RabbitMQ, Redis,
# exportfs, at this machine's speed. The kernel is this machine's, which may have no NFS at all: what is mounted is by
# sshfs, from the same fstab line and by the same mount unit, and nfs-server.service starts nothing.
CGROUP=$(findmnt -n -o TARGET -t cgroup2 | head -1)/$NS
kernel() { uname -r; }
link() { :; } # a node makes its cable itself, for it has two ends
relink() { # NODE
  ! ip -n "$NS" link show "tap-$1" >/dev/null 2>&1 || ip -n "$NS" link set "tap-$1" master br0
}
pids() { pgrep -f -- " _(node|boot) $1 $(escaped)\$" || true; } # NODE: its supervisor, and the parent of its init
running() { # NODE: its init
  local p; p=$(pgrep -f -- "^unshare .* _boot $1 $(escaped)\$") && pgrep -P "$p"
}
launch() { echo "unshare --mount --propagation private"; }
node() { # NODE: the supervisor, in whose mount namespace the node's file system is; with it all of the node ends
  local x=$1 r=$LAB/$1.root code
  root "$x" "$r"
  mkdir -p "$CGROUP/$x"
  while :; do
    # A node that reboots ends with SIGHUP (reboot(2), "Behavior inside PID namespaces").
    code=0; unshare --uts --ipc --net --pid --mount --fork --kill-child "$self" _boot "$x" "$LAB" || code=$?
    [ $code = 129 ] || break
    echo "reboot: again"
  done
}
root() { # NODE DIR: its file system
  local x=$1 r=$2 lower o own
  mkdir -p "$r"; mount -t tmpfs -o mode=755,size=4G none "$r"
  lower=$r/base; mkdir "$lower" "$r/upper" "$r/work" "$r/root"
  mount -o loop,ro,noload "$(base)" "$lower"
  mount -t overlay -o "lowerdir=$lower,upperdir=$r/upper,workdir=$r/work,redirect_dir=on" none "$r/root"
  identity "$x" >"$r/cmdline"; r=$r/root own=$r/usr/local/lib/lab/$x
  # A node that the image has nothing for is secondary2 by another name: its broker keeps the one it was made with.
  for o in $NODES; do
    [ "$(own "$o")" = "$o" ] || sed -n "s/^secondary2,[0-9.]* /$o,${ADDR[$o]} /p" "$(base).known_hosts" |
      tee -a "$r"/usr/local/lib/lab/*/root/.ssh/known_hosts "$r"/usr/local/lib/lab/*/home/stanley/.ssh/known_hosts >/dev/null
  done
  if [ ! -e "$own" ]; then
    cp -a "$r/usr/local/lib/lab/secondary2" "$own"
    echo 'NODENAME=rabbit@secondary2' >>"$r/etc/rabbitmq/rabbitmq-env.conf"
    identity "$x" | sed "s/secondary2:[0-9.]*/secondary2:127.0.0.1/" >"$LAB/$x.root/cmdline"
  fi
  # For sshfs: a node logs in at the primary with its own key.
  cat "$r"/usr/local/lib/lab/*/home/stanley/.ssh/stanley_rsa.pub >>"$own/home/stanley/.ssh/authorized_keys"
  machine_id "$x" >"$r/etc/machine-id"; echo '# no disk of its own' >"$r/etc/fstab"
  for o in systemd-udevd.service run-rpc_pipefs.mount; do ln -sf /dev/null "$r/etc/systemd/system/$o"; done
  # A broker as on a machine of its own; the lab's settings are for slow nodes.
  rm -f "$r/etc/systemd/system/rabbitmq-server.service.d/lab.conf"
  printf '[Unit]\nDescription=Stand-in: this kernel may have no NFS server\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n' \
    >"$r/etc/systemd/system/nfs-server.service"
  for o in sshfs fusermount3; do
    o=$(command -v $o); cp "$o" "$r$o"
    ldd "$o" | awk '$3 ~ /^\// {print $3}' | while read -r l; do [ -e "$r$l" ] || cp -L "$l" "$r$l"; done
  done
  rm "$r/sbin/mount.nfs"; install -m 755 "$here/mount.nfs" "$r/sbin/mount.nfs"
}
into() { # NODE: into its cgroup, which becomes the root of those that it sees
  echo 0 >"$CGROUP/$1/cgroup.procs"
  exec unshare --cgroup "$self" _init "$1"
}
init() { # NODE: becomes its PID 1
  local x=$1 r=$LAB/$1.root/root d
  hostname "$x"
  ip -n "$NS" link del "tap-$x" 2>/dev/null || true # of the boot before, whose end may not be over
  ip link add vec0 type veth peer name "tap-$x" netns "$NS"
  ip -n "$NS" link set "tap-$x" master br0 up
  mount --make-rprivate /
  mount -t proc proc "$r/proc"; mount -t sysfs sysfs "$r/sys"
  # The kernel is not the node's.
  for d in sys proc/sys proc/sysrq-trigger; do
    [ ! -e "$r/$d" ] || { mount --bind "$r/$d" "$r/$d"; mount -o remount,bind,ro "$r/$d"; }
  done
  mount --bind "$LAB/$x.root/cmdline" "$r/proc/cmdline"
  mount -t cgroup2 cgroup2 "$r/sys/fs/cgroup"
  mount -t tmpfs -o mode=755 none "$r/dev"; mount -t tmpfs -o mode=755 none "$r/run"; mount -t tmpfs none "$r/tmp"
  mkdir "$r/dev/pts" "$r/dev/shm"; mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$r/dev/pts"; mount -t tmpfs none "$r/dev/shm"
  ln -s pts/ptmx "$r/dev/ptmx"; ln -s /proc/self/fd "$r/dev/fd"
  for d in null zero full random urandom tty; do mknod -m 666 "$r/dev/$d" c $(stat -c '0x%t 0x%T' "/dev/$d"); done
  mknod -m 600 "$r/dev/fuse" c 10 229
  cd "$r"; mkdir -p run/old; pivot_root . run/old; umount -l /run/old
  # What would change this machine: its clock, its modules, its memory.
  exec env -i container=st2ha PATH="$PATH" setpriv --bounding-set=-sys_time,-sys_module,-sys_rawio,-syslog \
    /lib/systemd/systemd --log-target=journal
}
gone() { # NODE, when it is off: its cgroups, which take a moment
  local n
  for n in $(seq 200); do
    find "$CGROUP/$1" -depth -type d -exec rmdir {} + 2>/dev/null || true
    [ -e "$CGROUP/$1" ] || break
    sleep 0.05
  done
  [ ! -e "$CGROUP/$1" ] || die "node $1 does not end: $(cat "$CGROUP/$1/cgroup.procs")"
  rmdir "$CGROUP" 2>/dev/null || true
  rm -rf "$LAB/$1.root"
}
