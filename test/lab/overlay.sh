#!/bin/bash
# overlay.sh ROOT IN: what every node has. Called by mkbase.sh in the target's namespace; IN holds rootfs/, bin/ and
# key.pub. What one node has of its own is nodes.sh's.
set -euo pipefail
r=$1 in=$2
in_root() { chroot "$r" "$@"; }

# Fixed ids, so that images are alike; st2packs not 999, which is systemd-journal in this image: as in the field the
# group has another number than the examples say.
in_root groupadd --gid 1499 st2packs
in_root groupadd --gid 1500 stanley
in_root useradd --uid 1500 --gid 1500 --create-home --shell /bin/bash stanley
in_root groupadd --system --gid 980 st2
# As `adduser --system --no-create-home` of Debian 12 makes it (packaging/deb/scripts/pre-install.sh:27 of StackStorm).
in_root useradd --system --uid 980 --gid 980 --groups st2packs --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin st2
in_root groupadd --system --gid 981 mongodb
in_root useradd --system --uid 981 --gid 981 --home-dir /var/lib/mongodb --no-create-home --shell /usr/sbin/nologin mongodb

cp -r --no-preserve=ownership "$in/rootfs/." "$r/"
chmod 440 "$r/etc/sudoers.d/st2"
install -d -m 700 "$r/root/.ssh"; install -m 600 "$in/key.pub" "$r/root/.ssh/authorized_keys"

# MongoDB
install -m 755 "$in/bin/mongod" "$r/usr/bin/mongod"
install -m 755 "$in/bin/mongocmd" "$r/usr/local/bin/mongocmd"
install -m 755 "$in/bin/tree" "$r/usr/local/sbin/lab-tree"
install -d -m 700 -o 981 -g 981 "$r/var/lib/mongodb"
install -d -m 755 -o 981 -g 981 "$r/var/log/mongodb"

# StackStorm: one program for all services, by name
o=$r/opt/stackstorm
install -d -m 755 "$o" "$o/st2/bin" "$o/st2/lib/python3.11/site-packages/st2common" "$r/etc/st2"
echo "__version__ = '3.9.0'" > "$o/st2/lib/python3.11/site-packages/st2common/__init__.py"
ln -s /usr/bin/python3 "$o/st2/bin/python"
install -m 755 "$in/bin/st2service" "$o/st2/bin/st2service"
install -d -m 775 -g 1499 "$o/packs" "$o/virtualenvs"
install -d -m 755 -o 980 "$o/configs" "$o/exports" "$o/overrides" "$r/var/log/st2" # packaging/common/BUILD:25-43
services='st2api st2auth st2stream st2garbagecollector st2notifier st2rulesengine st2scheduler st2sensorcontainer
  st2timersengine st2workflowengine'
for s in $services st2actionrunner; do
  ln -s st2service "$o/st2/bin/$s"
  user=st2 group=st2 more='' unit=$s
  if [ "$s" = st2actionrunner ]; then
    user=root group=st2packs more=$'UMask=002\nEnvironment="WORKERID=%i"\n' unit=$s@
  fi
  # As packaging/deb/systemd in StackStorm's repository; but st2api, st2auth and st2stream have a socket each there.
  cat > "$r/usr/lib/systemd/system/$unit.service" <<UNIT
[Unit]
Description=StackStorm service $s
After=network.target

[Service]
Type=simple
User=$user
Group=$group
${more}Environment="DAEMON_ARGS=--config-file /etc/st2/st2.conf"
EnvironmentFile=-/etc/default/$s
ExecStart=/opt/stackstorm/st2/bin/$s \$DAEMON_ARGS
TimeoutSec=60
PrivateTmp=true
Restart=on-failure
RestartSec=5

[Install]
WantedBy=multi-user.target
UNIT
done
sed -i 's/^\[Service\]/&/; /^After=network.target/a JoinsNamespaceOf=st2actionrunner.service' "$r/usr/lib/systemd/system/st2actionrunner@.service"
cat > "$r/usr/lib/systemd/system/st2actionrunner.service" <<'UNIT'
[Unit]
Description=StackStorm service st2actionrunner
After=network.target

[Service]
Type=oneshot
EnvironmentFile=-/etc/default/st2actionrunner
ExecStart=/bin/bash /opt/stackstorm/st2/bin/runners.sh start
ExecStop=/bin/bash /opt/stackstorm/st2/bin/runners.sh stop
PrivateTmp=true
RemainAfterExit=true

[Install]
WantedBy=multi-user.target
UNIT

# The table of faults measures how soon a doubt is seen; the watchdog tells of those only if it is asked to.
dropin=$r/usr/lib/systemd/system/st2ha-watchdog.service.d
install -d -m 755 "$dropin"
cat > "$dropin/lab.conf" <<'UNIT'
[Service]
Environment='ST2HA_WATCH_CONFIG={"watch_suspect_events": true}'
UNIT

# The broker as today's installer leaves it
sed -i 's/^#NODE_IP_ADDRESS=127.0.0.1/NODE_IP_ADDRESS=127.0.0.1/' "$r/etc/rabbitmq/rabbitmq-env.conf"
grep -qx NODE_IP_ADDRESS=127.0.0.1 "$r/etc/rabbitmq/rabbitmq-env.conf"
# Plugins that nobody enables: Erlang looks for each of a broker's 900 modules in the directory of each of them, which is
# half of the CPU time of its start, 7 s on a slow node. What the broker itself is made of stays.
for p in "$r"/usr/lib/rabbitmq/lib/*/plugins/*-*; do
  case ${p##*/} in
    amqp10_common-*|aten-*|credentials_obfuscation-*|cuttlefish-*|enough-*|gen_batch_server-*|getopt-*|jsx-*|observer_cli-*) ;;
    osiris-*|ra-*|rabbit-*|rabbit_common-*|rabbitmq_prelaunch-*|ranch-*|recon-*|seshat-*|stdout_formatter-*|sys*) ;;
    *) rm -r "$p";;
  esac
done

# The nodes have no way out: what a join may have to install comes from a repository on their own disk. Its list has
# not been fetched yet, as on a machine that was not updated for long.
apt=$r/usr/local/lib/apt
install -d -m 755 "$apt"
for p in nfs-common nfs-kernel-server; do
  deb=$(echo "$r/var/cache/apt/archives/${p}_"*.deb)
  dpkg-deb --field "$deb"
  printf 'Filename: ./%s.deb\nSize: %s\nSHA256: %s\n\n' "$p" "$(stat -c %s "$deb")" "$(sha256sum <"$deb" | cut -d' ' -f1)"
  mv "$deb" "$apt/$p.deb"
done > "$apt/Packages"
rm -f "$r"/etc/apt/sources.list.d/* "$r"/var/cache/apt/archives/*.deb
echo 'deb [trusted=yes] file:/usr/local/lib/apt ./' > "$r/etc/apt/sources.list"

rm -f "$r"/etc/ssh/ssh_host_*            # each node has its own
: > "$r/etc/machine-id"; rm -f "$r/var/lib/dbus/machine-id"
rm -f "$r/etc/resolv.conf"; : > "$r/etc/resolv.conf"
echo '/dev/ubda / ext4 defaults,noatime 0 0' > "$r/etc/fstab"
in_root systemctl --quiet set-default multi-user.target
# no consoles, nothing periodic: a quiet node
in_root systemctl --quiet mask getty@.service serial-getty@.service console-getty.service getty.target \
   apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
   systemd-firstboot.service systemd-pstore.service
# What makes no unit on a node, and is run at each boot and each daemon-reload all the same (systemd.generator(7))
install -d "$r/etc/systemd/system-generators"
for g in cryptsetup debug getty gpt-auto hibernate-resume integritysetup rc-local run system-update sysv veritysetup; do
  ln -s /dev/null "$r/etc/systemd/system-generators/systemd-$g-generator"
done
in_root systemctl --quiet disable nfs-kernel-server.service     # installed, and the product's to switch on
in_root systemctl --quiet enable lab-init.service mongod.service rabbitmq-server.service redis-server.service \
   st2actionrunner.service $(printf '%s.service ' $services)
