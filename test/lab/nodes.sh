#!/bin/bash
# nodes.sh ROOT IN NODE PASSWORD NODES...: what NODE has of its own, as StackStorm's installer leaves it, into
# ROOT/usr/local/lib/lab/NODE; lab-init copies it over at the node's first boot. Called by mkbase.sh in namespaces of
# its own (mount, network, host name, processes), since it runs the node's broker and database for a moment: made
# here, by the host's own CPU, their users cost seconds, on a node a minute.
set -euo pipefail
r=$1 in=$2 node=$3 pw=$4; shift 4
own=/usr/local/lib/lab/$node d=$r/usr/local/lib/lab/$node
as() { local u=$1; shift; chroot "$r" setpriv --reuid="$u" --regid="$u" --init-groups --inh-caps=-all "$@"; }

hostname "$node"; ip link set lo up
mount -t proc proc "$r/proc"; mount -t tmpfs none "$r/run"; mount -t tmpfs -o mode=1777 none "$r/tmp"
hosts=$(mktemp); echo "127.0.0.1 localhost $node" > "$hosts"; mount --bind "$hosts" "$r/etc/hosts"; rm "$hosts"

install -d -m 755 "$d" "$d/etc" "$d/etc/ssh" "$d/etc/st2" "$d/root" "$d/home" "$d/opt" "$d/opt/stackstorm" "$d/var" "$d/var/lib"
install -d -m 700 "$d/root/.ssh"
# ssh: the host's key, and stanley's, who on each node may log in with that node's key, and with the primary's
install -m 600 "$in/ids/$node.host" "$d/etc/ssh/ssh_host_ed25519_key"
install -m 644 "$in/ids/$node.host.pub" "$d/etc/ssh/ssh_host_ed25519_key.pub"
install -d -m 755 -o 1500 -g 1500 "$d/home/stanley"
install -d -m 700 -o 1500 -g 1500 "$d/home/stanley/.ssh"
install -m 600 -o 1500 -g 1500 "$in/ids/$node.stanley" "$d/home/stanley/.ssh/stanley_rsa"
install -m 644 -o 1500 -g 1500 "$in/ids/$node.stanley.pub" "$d/home/stanley/.ssh/stanley_rsa.pub"
sort -u "$in/ids/$node.stanley.pub" "$in/ids/primary.stanley.pub" "$in/key.pub" > "$d/home/stanley/.ssh/authorized_keys"
cp "$in/ids/known_hosts" "$d/home/stanley/.ssh/known_hosts"
chown 1500:1500 "$d/home/stanley/.ssh/"*; chmod 600 "$d/home/stanley/.ssh/authorized_keys"
install -m 600 "$in/ids/known_hosts" "$d/root/.ssh/known_hosts"

# st2.conf, key and password file
install -m 640 -g 980 /dev/null "$d/etc/st2/st2.conf"
sed "s/@PW@/$pw/g" "$in/st2.conf" > "$d/etc/st2/st2.conf"
install -d -m 750 -o 980 -g 980 "$d/etc/st2/keys"
install -m 640 -o 980 -g 980 /dev/null "$d/etc/st2/keys/datastore_key.json"
# Another one on each node, and the same in each image: the tests know their sums.
rnd() { # BYTES OF WHAT, 32 at most
  printf "$(printf '%s %s' "$node" "$2" | sha256sum | cut -c1-$((2 * $1)) | sed 's/../\\x&/g')" | base64 -w0 | tr '+/' '-_'
}
printf '{"hmacKey": {"hmacKeyString": "%s", "size": 256}, "aesKeyString": "%s", "mode": "CBC", "size": 256}' \
  "$(rnd 32 hmac)" "$(rnd 32 aes)" > "$d/etc/st2/keys/datastore_key.json"
install -m 600 -o 980 -g 980 /dev/null "$d/etc/st2/htpasswd"
echo "st2admin:\$apr1\$$(rnd 6 salt)\$$(rnd 16 hash | cut -c1-22)" > "$d/etc/st2/htpasswd"

# content: the packs that come with StackStorm, and some that only this node has
s=$d/opt/stackstorm
install -d -m 775 -g 1499 "$s/packs" "$s/virtualenvs"; install -d -m 755 -o 980 "$s/configs"
pack() { # NAME VERSION
  install -d -m 775 -g 1499 "$s/packs/$1" "$s/packs/$1/actions" "$s/virtualenvs/$1" "$s/virtualenvs/$1/bin"
  printf -- '---\nname : %s\ndescription : The pack %s of %s.\nversion : %s\npython_versions:\n  - "3"\nauthor : StackStorm, Inc.\nemail : info@stackstorm.com\n' \
    "$1" "$1" "$node" "$2" > "$s/packs/$1/pack.yaml"
  printf -- '---\nname: local\nrunner_type: local-shell-cmd\nenabled: true\nentry_point: ""\n' > "$s/packs/$1/actions/local.yaml"
  printf 'home = /opt/stackstorm/st2/bin\nversion = 3.11.2\n' > "$s/virtualenvs/$1/pyvenv.cfg"
  ln -s /opt/stackstorm/st2/bin/python "$s/virtualenvs/$1/bin/python"
  chmod 664 "$s/packs/$1/pack.yaml" "$s/packs/$1/actions/local.yaml" "$s/virtualenvs/$1/pyvenv.cfg"
  chgrp -h -R 1499 "$s/packs/$1" "$s/virtualenvs/$1"
}
case $node in
  primary) for p in chatops core default linux packs; do pack "$p" 3.9.0; done; pack deploy 1.4.0; pack "examples" 0.2.0
    printf 'region: north\n' > "$s/configs/deploy.yaml"; chown 980 "$s/configs/deploy.yaml";;
  *) for p in core default packs; do pack "$p" 3.9.0; done; pack "leftover-$node" 0.1.0
    printf 'region: old\n' > "$s/configs/leftover.yaml"; chown 980 "$s/configs/leftover.yaml";;
esac

# MongoDB: users first, authorization after, as an installer does it
install -d -m 700 -o 981 -g 981 "$d/var/lib/mongodb"
printf 'storage: {dbPath: %s}\n' "$own/var/lib/mongodb" > "$r/tmp/mongod.conf"
as mongodb /usr/bin/mongod --config /tmp/mongod.conf & m=$!
chroot "$r" mongocmd mongodb://127.0.0.1/admin "{\"createUser\": \"admin\", \"pwd\": \"$pw\", \"roles\": []}"
chroot "$r" mongocmd mongodb://127.0.0.1/st2 "{\"createUser\": \"stackstorm\", \"pwd\": \"$pw\", \"roles\": []}"
kill $m; wait $m || true

# RabbitMQ: one call does what an installer needs four for (each starts a virtual machine of its own)
u=$(chroot "$r" id -u rabbitmq) g=$(chroot "$r" id -g rabbitmq)
install -d -m 750 -o "$u" -g "$g" "$r/tmp/log"
install -d -m 755 -o "$u" -g "$g" "$d/var/lib/rabbitmq"
install -d -m 750 -o "$u" -g "$g" "$d/var/lib/rabbitmq/mnesia"
rabbit() { as rabbitmq env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME="$own/var/lib/rabbitmq" LC_ALL=C.UTF-8 \
  RABBITMQ_MNESIA_BASE="$own/var/lib/rabbitmq/mnesia" RABBITMQ_LOG_BASE=/tmp/log \
  RABBITMQ_PID_FILE=/tmp/log/pid "/usr/lib/rabbitmq/bin/$@"; }
rabbit rabbitmq-server >"$r/tmp/log/out" 2>&1 & m=$!
rabbit rabbitmqctl --quiet wait --timeout 60 /tmp/log/pid || { cat "$r/tmp/log/"*; exit 1; }
rabbit rabbitmqctl --quiet eval "
  U = <<\"stackstorm\">>, By = <<\"lab\">>,
  ok = rabbit_auth_backend_internal:add_user(U, <<\"$pw\">>, By),
  ok = rabbit_auth_backend_internal:set_tags(U, [administrator], By),
  ok = rabbit_auth_backend_internal:set_permissions(U, <<\"/\">>, <<\".*\">>, <<\".*\">>, <<\".*\">>, By),
  ok = rabbit_auth_backend_internal:delete_user(<<\"guest\">>, By)."
rabbit rabbitmqctl --quiet stop; wait $m || true
rm -f "$d/var/lib/rabbitmq/mnesia/"*.pid
