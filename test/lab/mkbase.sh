#!/bin/bash
# mkbase.sh: the image all nodes start from; prints its path. Debian 12, systemd, ext4, an all-in-one StackStorm per
# node; no loop mount. Made anew only when something it is made of changes. As root, or as a user with /etc/subuid
# ranges (mmdebstrap --mode=unshare).
#   SUITE=bookworm SIZE=4G SOURCES=/etc/apt/sources.list.d/debian.sources
set -euo pipefail
here=$(dirname "$(realpath "$0")"); . "$here/lib.sh"
suite=${SUITE:-bookworm} size=${SIZE:-4G}
# one user's passwords per node: an all-in-one installation knows nothing of the others
declare -A PW=([primary]=prim4ry-s3cret [secondary]=second4ry-s3cret [secondary2]=s3cond2ry-secret)
pkgs=systemd,systemd-sysv,dbus,udev,kmod,iproute2,iputils-ping,procps,netcat-openbsd,openssh-server,sudo,python3
pkgs+=,rabbitmq-server,redis-server,rpcbind,nfs-kernel-server,nfs-common
sources=${SOURCES:-$(sources)}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1735689600}

mkdir -p "$CACHE"
exec 9>"$CACHE/lock"; flock 9       # one build at a time; the others then find the image made

# The programs inside: Go's own cache makes this a second, and their bytes tell whether anything changed.
build() { (cd "$1" && CGO_ENABLED=0 GOFLAGS='-trimpath -buildvcs=false' go build -ldflags='-s -w -buildid=' -o "$CACHE/bin/" "${@:2}"); }
build "$here/mongod" . & mongod=$!
build "$here" ./st2service ./mongocmd ./tree
wait $mongod

hash=$( { cd "$here"; cat mkbase.sh overlay.sh nodes.sh pack.sh lib.sh st2.conf; tar -c --sort=name --mtime=@0 --owner=0 --group=0 rootfs
  cd "$CACHE/bin"; cat mongod st2service mongocmd tree; cat "$sources"; echo "$suite $size $SOURCE_DATE_EPOCH"; } | sha256sum | cut -c1-16)
out=$CACHE/base-$hash.img
if [ -e "$out" ]; then echo "$out"; exit; fi

say "building the nodes' image ($suite)"
begin=$SECONDS
rm -rf "$CACHE"/.work.*                      # of builds that were killed
for old in "$CACHE"/base-*.img; do           # of other inputs; a lab that is up keeps its own
  pgrep -f -- ",$old( |$)" >/dev/null || [ -n "$(losetup -j "$old")" ] || rm -f "$old" "$old".*
done
rm -f "$CACHE"/base-*.tmp
work=$(mktemp -d "$CACHE/.work.XXXXXX"); trap 'rm -rf "$work"' EXIT
chmod 755 "$work"      # the user namespace's root must be able to enter it
mode=root; [ "$(id -u)" = 0 ] || { mode=unshare; chmod 777 "$work"; }
mkdir "$work/mnt" "$work/ids"
cp -r "$here"/{overlay.sh,nodes.sh,pack.sh,st2.conf,rootfs} "$CACHE/bin" "$work/"

# Keys are made here and not at first boot: so each node can know the others, a node keeps its host key over a reset,
# and no node spends seconds on them.
ssh-keygen -q -t ed25519 -N '' -C lab -f "$work/key" </dev/null
for n in $ALL_NODES; do
  ssh-keygen -q -t ed25519 -N '' -C "root@$n" -f "$work/ids/$n.host" </dev/null
  ssh-keygen -q -t rsa -b 2048 -m PEM -N '' -C "stanley@$n" -f "$work/ids/$n.stanley" </dev/null
  echo "$n,${ADDR[$n]} $(cut -d' ' -f1,2 "$work/ids/$n.host.pub")"
done > "$work/ids/known_hosts"
if [ $mode = unshare ]; then chmod a+r "$work"/ids/*; fi
nodes="$work/nodes"
{ echo 'set -e; p='
  for n in $ALL_NODES; do
    echo "unshare -mnupf --propagation private --kill-child bash $work/nodes.sh \"\$1\" $work $n ${PW[$n]} >$work/$n.log 2>&1 & p=\"\$p \$!:$n\""
  done
  echo "for q in \$p; do wait \${q%:*} || { cat $work/\${q#*:}.log >&2; exit 1; }; done"; } > "$nodes"

# (Never remove $1/tmp/*: mmdebstrap's apt.conf is there, and without it its clean-up works on the HOST's apt lists.)
mmdebstrap --quiet --mode=$mode --variant=minbase --format=null --skip=cleanup/apt --include="$pkgs" \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
  --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='APT::Install-Recommends "false"' \
  --customize-hook='mkdir -p "$1/lib/modules"' \
  --customize-hook="bash $work/overlay.sh \"\$1\" $work" \
  --customize-hook="bash $nodes \"\$1\"" \
  --customize-hook="chroot \"\$1\" dpkg-query -W > $work/manifest" \
  --customize-hook='rm -rf "$1/var/cache/apt"/*.bin "$1/var/lib/apt/lists"/* "$1/var/log"/*.log "$1/var/log/apt"/* "$1/var/cache/ldconfig/aux-cache" "$1/var/lib/rabbitmq/.erlang.cookie"' \
  --customize-hook="unshare -m bash $work/pack.sh \"\$1\" $work/img $size" \
  "$suite" /dev/null "$sources" </dev/null >"$work/log" 2>&1 || { tail -40 "$work/log" >&2; die "the image could not be built"; }
# copies, not moves: built in a user namespace, the originals belong to a subordinate uid
cat "$work/manifest" > "$out.manifest"; cat "$work/ids/known_hosts" > "$out.known_hosts"
cp "$work/key" "$out.key"; chmod 600 "$out.key"; cp "$work/key.pub" "$out.key.pub"
cp --sparse=always "$work/img" "$out.tmp"; chmod 444 "$out.tmp"; mv "$out.tmp" "$out"    # last: what is there is whole
say "image built in $((SECONDS-begin)) s"
echo "$out"
