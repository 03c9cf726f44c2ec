"""steps.py TITLE RUNS: on the primary of two nodes, runs all steps of the join once, then RUNS times with nothing to
change, one process a step as StackStorm does, and prints the times. The services' own restarts are in the first run's."""
import json, os, statistics, subprocess, sys, time

title, runs = sys.argv[1], int(sys.argv[2])
primary, secondary = "192.168.0.100", "192.168.0.101"
steps = """
configure_mongodb --host=P
configure_st2 --host=P --role=primary --primary=P --restart=later
configure_rabbitmq --host=P --secondaries=S
export_nfs --host=P --secondaries=S
configure_st2 --host=S --role=secondary --primary=P --restart=later
mount_nfs --host=S --primary=P
restart_st2 --host=S --restart=inline
restart_st2 --host=P --restart=inline
verify_node --host=S --role=secondary --primary=P
verify_node --host=P --role=primary
""".replace("=P", "=" + primary).replace("=S", "=" + secondary).split("\n")[1:-1]
program = "/opt/stackstorm/packs/st2ha/actions/st2ha"
env = dict(os.environ, ST2HA_RABBITMQ_PASSWORD="bench-pass")


def once(changed):
    times = []
    for step in steps:
        began = time.monotonic()
        done = subprocess.run([program] + step.split(), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        times.append(time.monotonic() - began)
        if done.returncode:
            sys.exit("%s: %s" % (step, done.stderr.decode()))
        if json.loads(done.stdout)["changed"] and not changed:
            sys.exit("%s: changed something that was in place: %s" % (step, done.stdout.decode()))
    return times


first = once(True)
again = [once(False) for _ in range(runs)]
row = "%-42s %8.3f s %8.3f s"
print("%-42s %10s %10s" % (title, "first run", "no change"))
for i, step in enumerate(steps):
    print(row % (" ".join(step.split()[:2]).replace("--host=", "on "), first[i], statistics.median(r[i] for r in again)))
print(row % ("all ten, median of %d" % runs, sum(first), statistics.median(sum(r) for r in again)))
