#!/bin/bash
# check.sh: proves the lab, with times; the lab must be up and fresh. Ends at the first thing that does not hold, and
# leaves fresh nodes behind.
set -euo pipefail
here=$(dirname "$(realpath "$0")"); L=$here/lab.sh
out=$(mktemp); trap 'rm -f "$out"' EXIT
on() { local h=$1; shift; printf '%s\n' "set -e; $*" | "$L" ssh "$h" bash -s; }
step() {
  local s e name=$1; shift
  s=$(date +%s%N); "$@" >"$out" 2>&1 </dev/null || { echo "FAIL      $name"; cat "$out"; exit 1; }; e=$(date +%s%N)
  printf '%6d ms  %s\n' $(((e-s)/1000000)) "$name"
}
tree() { "$L" tree primary /etc /opt/stackstorm /var/lib/st2ha /home /root > "$1"; }
not() { ! "$@"; }
P=192.168.0.100 S=192.168.0.101 M=/opt/stackstorm/packs
U=mongodb://stackstorm:prim4ry-s3cret
t=$(mktemp -d); trap 'rm -rf "$out" "$t"' EXIT

"$L" kernel
step 'first ssh command'              on primary true
step 'next ssh command'               on primary true
step 'stanley and sudo'               "$L" ssh stanley@primary 'test "$(sudo -n id -u)" = 0'
step 'primary to secondary as stanley' "$L" ssh stanley@primary 'ssh -n -o BatchMode=yes -o StrictHostKeyChecking=yes -i .ssh/stanley_rsa stanley@192.168.0.101 sudo -n hostname | grep -x secondary'
step 'systemd runs, nothing failed'   on primary 'test "$(systemctl is-system-running)" = running'
step 'all st2 services are active'    on secondary 'test "$(systemctl is-active st2{api,auth,stream,garbagecollector,notifier,rulesengine,scheduler,sensorcontainer,timersengine,workflowengine,actionrunner,actionrunner@1,actionrunner@2} | sort -u)" = active'
step 'and consume (rabbitmqctl)'      on primary 'rabbitmqctl -q list_queues name consumers | grep -P "^st2.actionrunner.work\t2$"'
step 'and write to the database'      on primary "mongocmd '$U@127.0.0.1/st2?authSource=st2' '{\"count\": \"lab_heartbeat\"}' | grep '\"12\"'"
step 'mongod: no login, no data'      on primary 'mongocmd mongodb://127.0.0.1/admin "{\"listDatabases\": 1}" 2>&1 | grep "code 13:"'
step 'mongod: loopback only'          not "$L" exec nc -z -w1 $P 27017
step 'rabbitmq: loopback only'        not "$L" exec nc -z -w1 $P 5672
step 'tree'                           tree "$t/1"
step 'tree is stable'                 tree "$t/2"; cmp "$t/1" "$t/2"
step 'st2ctl restart'                 on primary 'st2ctl restart'
step 'services are up again'          "$L" ready primary
step 'mongod: an address not its own' on primary 'sed -i "s/bindIp: .*/bindIp: 127.0.0.1,10.9.9.9/" /etc/mongod.conf; ! systemctl restart mongod || sleep 1; ! systemctl is-active mongod'
step 'mongod: the primary address'    on primary "sed -i 's/bindIp: .*/bindIp: 127.0.0.1,$P/' /etc/mongod.conf; systemctl restart mongod; sleep 0.5; systemctl is-active mongod"
step 'login from the secondary'       on secondary "mongocmd '$U@$P/st2?authSource=st2' '{\"count\": \"lab_heartbeat\"}'"
step 'rabbitmq: all addresses'        on primary 'sed -i "s/^NODE_IP_ADDRESS/#&/" /etc/rabbitmq/rabbitmq-env.conf; systemctl restart rabbitmq-server'
step 'services are up again'          "$L" ready primary
step 'a wrong password ends the service' on secondary "cp -p /etc/st2/st2.conf /root/; sed -i 's,^url = amqp.*,url = amqp://stackstorm:wrong@$P:5672/,' /etc/st2/st2.conf; systemctl restart st2api; timeout 20 sh -c 'until systemctl show --property=SubState st2api | grep auto-restart; do sleep 0.5; done'"
step 'the right one does not'         on secondary "sed -i 's,^url = amqp.*,url = amqp://stackstorm:prim4ry-s3cret@$P:5672/,' /etc/st2/st2.conf; systemctl restart st2api; timeout 20 sh -c 'until grep -q st2service/st2api /proc/net/unix; do sleep 0.5; done'; ss -Htn dst $P:5672 | grep ESTAB"
step 'without timers their engine ends' on secondary "cp -p /etc/st2/st2.conf /root/timers; sed -i '/^.timersengine/a enable = False' /etc/st2/st2.conf; systemctl restart st2timersengine; timeout 20 sh -c 'while systemctl is-active st2timersengine; do sleep 0.5; done'; systemctl show --property=Result,ExecMainStatus st2timersengine | tr '\n' ' ' | grep -x 'Result=success ExecMainStatus=0 '; cp -p /root/timers /etc/st2/st2.conf; systemctl start st2timersengine"
step 'redis'                          on primary 'redis-cli ping | grep PONG'
step 'nfs server'                     on primary "echo '$M $S(rw,sync,no_subtree_check,anonuid=0,anongid=1499)' > /etc/exports; systemctl start nfs-kernel-server; exportfs -ra; exportfs -v | grep anongid=1499"
# both ways at once, so that neither node can be a mere reader
step 'network under load'             "$L" ssh stanley@primary 's="ssh -o BatchMode=yes -o StrictHostKeyChecking=yes -i .ssh/stanley_rsa stanley@192.168.0.101"
  set -e; head -c 32M /dev/urandom > there; sum=$(sha256sum < there); $s "head -c 32M /dev/urandom > back; sha256sum < back" </dev/null > back.sum
  $s cat back </dev/null | sha256sum | cmp - back.sum & b=$!; [ "$($s sha256sum < there)" = "$sum" ]; wait $b; rm there back.sum; $s rm back </dev/null'
for v in 4.2 3; do
step "nfs v$v mount by systemd"       on secondary "sed -i '/packs/d' /etc/fstab; echo '$P:$M $M nfs vers=$v,_netdev,nofail 0 0' >> /etc/fstab; systemctl daemon-reload; systemctl start opt-stackstorm-packs.mount; grep -q 'vers=$v' /proc/mounts; echo from-$v > $M/x; rm -f $M/y"
step "nfs v$v under load"             on secondary "head -c 32M /dev/urandom > $M/load; sync $M/load; sha256sum < $M/load > $M/sum; echo 3 > /proc/sys/vm/drop_caches; sha256sum < $M/load | cmp - $M/sum"
step 'whole on the primary'           on primary "sha256sum < $M/load | cmp - $M/sum; rm $M/load $M/sum"
step 'seen on the primary'            on primary "grep -x from-$v $M/x; echo there > $M/y"
step 'and back'                       on secondary "ls -l $M/; grep -x there $M/y; systemctl stop opt-stackstorm-packs.mount"
done
step 'without the mount'              on secondary 'sed -i /packs/d /etc/fstab; systemctl daemon-reload; umount -a -t nfs,nfs4; sync'
step 'part'                           "$L" part
step 'the nodes do not see each other' on secondary "! ping -c1 -W1 $P"
step 'join'                           "$L" join
step 'they do'                        on secondary "ping -c1 -W2 $P"
step 'cut'                            "$L" cut secondary
step 'gone from the host'             not "$L" exec nc -z -w1 $S 22
step 'heal'                           "$L" heal secondary
step 'back'                           "$L" exec nc -z -w3 $S 22
step 'freeze'                         "$L" freeze primary
step 'says nothing'                   not timeout 1 "$L" exec nc $P 22 # its kernel is not there to greet
step 'thaw'                           "$L" thaw primary
step 'answers'                        "$L" exec nc -z -w5 $P 22
step 'sync'                           on primary sync
step 'power cut'                      "$L" kill primary
step 'boot, to all services up'       "$L" start primary
step 'its disk survived'              on primary "grep -x there $M/y"
step 'reboot in order, to all services up' "$L" reboot secondary
step 'both nodes with fresh disks, to all services up' "$L" reset primary secondary
step 'tree'                           tree "$t/3"
step 'as in the beginning'            diff "$t/1" "$t/3"
