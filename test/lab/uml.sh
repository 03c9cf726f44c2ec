# uml.sh: what lab.sh does in its own way for nodes that are User-Mode Linux, each with a kernel and a disk of its own.
kernel() { "$here/kernel.sh"; }
link() { # NODE: its cable
  ip -n "$NS" tuntap add dev "tap-$1" mode tap
  ip -n "$NS" link set "tap-$1" master br0 up
}
relink() { ip -n "$NS" link set "tap-$1" master br0; }
pids() { # NODE: of its kernel's processes and of its supervisor
  local lab; lab=$(escaped)
  pgrep -f -- " umid=$1 uml_dir=$lab/run/ | _node $1 $lab\$" || true
}
running() { # NODE: the number of its kernel, the one its supervisor started
  local p; p=$(cat "$LAB/$1.uml" 2>/dev/null) || return 1
  case $(tr '\0' ' ' <"/proc/$p/cmdline" 2>/dev/null) in *" umid=$1 uml_dir=$LAB/run/ "*) echo "$p";; *) return 1;; esac
}
launch() { # NODE: what its supervisor is started with
  # All of a node on ONE cpu: UML hands over between its kernel and its user processes at every system call and
  # page fault; waking another (virtual) cpu costs about four times a switch on the same one.
  local cpus=($(taskset -cp $$ | sed 's/.*: //' | tr ',' '\n' | while IFS=- read -r a b; do seq "$a" "${b:-$a}"; done))
  echo "taskset -c ${cpus[$(( ${ADDR[$1]##*.} % ${#cpus[@]} ))]}"
}
node() { # NODE: the supervisor. noreboot: UML's own reboot (it executes itself again) finds its tap busy
  local x=$1 preload=("$CACHE"/xstate-*.so) kernel mac
  mapfile -t kernel <"$LAB/kernel"
  printf -v mac 52:54:00:98:00:%02x "${ADDR[$x]##*.}"
  while :; do
    # No BSD ptys: systemd has two units for each of the 512, and looks at them at every boot and daemon-reload.
    # gro=1: without it UML drops the big segments that the host's TCP hands to the tap, and transfers stall.
    LD_PRELOAD=${preload[0]} "${kernel[1]}" noreboot ${kernel[3]:-} \
      mem="$MEM" pty.legacy_count=0 umid="$x" uml_dir="$LAB/run/" hostfs="${kernel[2]}" \
      ubd0="$LAB/$x.cow,$(base)" root=/dev/ubda rw \
      vec0:transport=tap,ifname="tap-$x",depth=128,gro=1,mac="$mac" \
      con0=null,fd:1 con=null ssl=null quiet loglevel=4 systemd.machine_id="$(machine_id "$x")" $(identity "$x") &
    echo $! > "$LAB/$x.uml"; wait $! || true
    tail -c 300 "$LAB/$x.console" | grep -q 'reboot: Restarting system' || break
    echo "reboot: again"
  done
}
gone() { rm -rf "$LAB/$1.uml" "$LAB/run/$1"; } # NODE, when it is off
