"""compare.py TITLE IMAGE PROGRAM RUNS FIRST: st2ha beside an Ansible playbook that does the same work, from this machine,
over SSH to two fresh nodes made from IMAGE: medians of FIRST first runs, which leave out the restarts of services, and of
RUNS runs with nothing to change."""
import atexit, glob, json, os, re, signal, statistics, subprocess, sys, tempfile, time

title, image, program, runs, first_runs = sys.argv[1:4] + [int(n) for n in sys.argv[4:6]]
key, known_hosts = image + ".key", image + ".known_hosts"
here = os.path.dirname(os.path.abspath(__file__))
primary, secondary, password = "192.168.0.100", "192.168.0.101", "bench-pass"
directories = ["/opt/stackstorm/" + d for d in ("packs", "virtualenvs", "configs")]
join = ["--primary=" + primary, "--secondaries=" + secondary]
steps = [s.replace("=P", "=" + primary).replace("=S", "=" + secondary).split() for s in (
    "configure_mongodb --host=P",
    "configure_st2 --host=P --role=primary --primary=P --restart=later",
    "configure_rabbitmq --host=P --secondaries=S",
    "export_nfs --host=P --secondaries=S",
    "configure_st2 --host=S --role=secondary --primary=P --restart=later",
    "mount_nfs --host=S --primary=P")]
temp = tempfile.TemporaryDirectory()
ssh_options = ["-o", "UserKnownHostsFile=" + known_hosts, "-o", "GlobalKnownHostsFile=/dev/null", "-o", "BatchMode=yes",
               "-o", "IdentitiesOnly=yes", "-o", "ControlMaster=auto", "-o", "ControlPersist=300s", "-o", "ControlPath=%s/%%r@%%h" % temp.name]


def hang_up():
    for kept in glob.glob(temp.name + "/*@*"):
        subprocess.run(["ssh", "-o", "ControlPath=" + kept, "-O", "exit", "node"], stderr=subprocess.DEVNULL)


atexit.register(hang_up)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def timed(argv, env, **more):
    began = time.monotonic()
    done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
    took = time.monotonic() - began
    if done.returncode:
        sys.exit("%s: %s%s" % (" ".join(argv[:3]), done.stdout, done.stderr))
    return took, done


def root(node, script):
    subprocess.run(["ssh", "-i", key] + ssh_options + ["root@" + node, "bash -es"], input=script, text=True, check=True, stdout=subprocess.DEVNULL)


def save():
    root(primary, "tar -C / -cf /root/before.tar etc/mongod.conf etc/rabbitmq etc/st2/st2.conf etc/exports")
    root(secondary, "tar -C / -cf /root/before.tar etc/fstab etc/st2/st2.conf")


def restore():
    root(secondary, """
        umount %s 2>/dev/null || true
        tar -C / -xf /root/before.tar; systemctl daemon-reload; rm -rf /var/lib/st2ha
        for d in %s; do [ ! -e $d.before-st2ha ] || { rmdir $d; mv $d.before-st2ha $d; }; done""" % (2 * (" ".join(directories),)))
    root(primary, """
        systemctl disable --now nfs-server 2>/dev/null
        rm -rf /etc/rabbitmq/rabbitmq.conf /var/lib/st2ha; tar -C / -xf /root/before.tar
        exportfs -ra; rabbitmqctl -q delete_user st2 || true
        systemctl restart mongod rabbitmq-server""")


class St2ha:
    env = dict(os.environ, ST2HA_RABBITMQ_PASSWORD=password)
    way = ["--ssh_key=" + key, "--known_hosts=" + known_hosts, "--verbose"]

    def first(self):
        """All steps; the log says how long each change took."""
        total = 0
        for step in steps:
            took, done = timed([program] + step + self.way, self.env)
            total += took - sum(seconds(t) for t in re.findall(r"msg=applied .*kind=restart .*took=(\S+)", done.stderr))
        return total

    def again(self):
        total, self.profile = 0, []
        for step in steps:
            took, done = timed([program] + step + self.way, self.env)
            total += took
            self.profile.append((" ".join(step[:2]), took, connected(done.stderr)))
            if json.loads(done.stdout)["changed"]:
                sys.exit("st2ha %s: changed something that was in place" % step[0])
        return total

    def restart(self):
        for node in (secondary, primary):
            timed([program, "restart_st2", "--host=" + node, "--restart=inline"] + self.way, self.env)

    def drift(self):
        took, done = timed([program, "drift"] + join + self.way, self.env)
        self.profile_of_drift = "drift", took, connected(done.stderr)
        return took


def login():
    """What each process has to wait for before it can begin, by ssh itself."""
    return timed(["ssh", "-i", key, "-o", "ControlMaster=no", "-o", "ControlPath=none"] + ssh_options + ["stanley@" + primary, "sudo -n true"], None)[0]


def connected(log):
    """When the last host was connected: logged in, sudo and sftp-server running there."""
    return max(seconds(t) for t in re.findall(r"msg=connected .*after=(\S+)", log))


def seconds(duration):
    """Go's notation of a duration."""
    units = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}
    return sum(float(n) * units[u] for n, u in re.findall(r"([0-9.]+)(h|ms|m|s|µs|ns)", duration))


class Ansible:
    env = dict(os.environ, ANSIBLE_CONFIG=here + "/ansible/ansible.cfg", ANSIBLE_HOME=temp.name, ANSIBLE_NOCOLOR="1", LC_ALL="C.UTF-8",
               ANSIBLE_SSH_ARGS=" ".join(ssh_options), ANSIBLE_SSH_CONTROL_PATH_DIR=temp.name, ANSIBLE_CALLBACKS_ENABLED="ansible.posix.profile_tasks")

    def __init__(self):
        self.vars = temp.name + "/vars.json"
        self.inventory = temp.name + "/inventory"
        with open(self.inventory, "w") as f:
            for name, address in (("primary", primary), ("secondary", secondary)):
                f.write("%s ansible_host=%s ansible_ssh_private_key_file=%s\n" % (name, address, key))
        with open(self.vars, "w") as f:
            json.dump({"primary": primary, "secondary": secondary, "rabbitmq_password": password, "database_password": "prim4ry-s3cret",
                       "directories": directories}, f)

    def play(self, *more):
        return timed(["ansible-playbook", "-i", self.inventory, "-e", "@" + self.vars, *more, here + "/ansible/join.yml"], self.env)

    def first(self):
        took, done = self.play()
        self.play("--tags=restart")
        return took

    def again(self):
        took, done = self.play()
        self.last = done.stdout
        if re.search(r"changed=[1-9]", done.stdout):
            sys.exit("ansible: changed something that was in place:\n" + done.stdout)
        return took


st2ha, ansible = St2ha(), Ansible()
save()
times = {}
for tool in (ansible, st2ha):
    firsts = []
    for n in range(first_runs):
        if n or tool is not ansible:
            restore()
        firsts.append(tool.first())
    tool.again()  # connections are warm, caches too
    times[tool] = statistics.median(firsts), statistics.median(tool.again() for _ in range(runs))
st2ha.restart()
one = statistics.median(st2ha.drift() for _ in range(runs))
logins = len(steps) * statistics.median(login() for _ in range(runs))

print("\n%-58s %10s %10s" % (title, "first run", "no change"))
print("%-58s %8.2f s %8.3f s" % ("Ansible, ControlPersist and pipelining", *times[ansible]))
print("%-58s %8.2f s %8.3f s" % ("st2ha, the six steps, a process each as StackStorm does", *times[st2ha]))
print("%-58s %10s %8.3f s" % ("st2ha drift, the same and verify_node in one process", "", one))
print("%-58s %10s %8.3f s" % ("six logins with sudo alone, by ssh", "", logins))
print("%-58s %8.1f x %8.1f x" % ("Ansible : st2ha, the six steps", times[ansible][0] / times[st2ha][0], times[ansible][1] / times[st2ha][1]))
print("%-58s %10s %8.1f x" % ("Ansible : st2ha drift", "", times[ansible][1] / one))
print("medians of %d first runs, without the services' own restarts, and of %d with nothing to change" % (first_runs, runs))
print("\nwhere st2ha's last runs went %36s %12s" % ("connected after", "in all"))
for line in st2ha.profile + [st2ha.profile_of_drift]:
    print("%-48s %14.3f s %10.3f s" % (line[0], line[2], line[1]))
print("\nwhere Ansible's last run went:")
print("\n".join(l for l in ansible.last.split("\n") if re.search(r" -+ +[0-9.]+s$", l)))
