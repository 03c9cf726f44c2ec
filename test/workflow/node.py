"""Runs one command on a node as StackStorm's action runner does: st2common/util/green/shell.py.

The harness sends this text to `python3 -`, followed by a call of main() with the command. So nothing but standard
library, and old Pythons must do. It answers in lines of JSON: {"stderr": text} as it comes, and {"result": {...}} last.
"""
import json
import os
import signal
import subprocess
import sys
import threading
import time

TERM_GRACE = 20  # seconds a killed action has to end; StackStorm would wait forever


def answer(kind, value, lock=threading.Lock()):
    with lock:
        try:
            sys.stdout.write(json.dumps({kind: value}) + "\n")
            sys.stdout.flush()
        except (IOError, OSError):
            pass  # nobody listens any more, the action goes on as it would under StackStorm


def session_members(session):
    members = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name) as file:
                    # The name in parentheses may hold blanks; the session is the fourth field after it.
                    if int(file.read().rpartition(")")[2].split()[3]) == session:
                        members.append(int(name))
            except (IOError, OSError, ValueError, IndexError):
                pass  # it has ended meanwhile
    return members


def kill_session(session, signal_number):
    """What `sudo pkill -TERM -s` does; without sudo where that is not needed."""
    for pid in session_members(session):
        try:
            os.kill(pid, signal_number)
        except OSError:
            subprocess.call(["sudo", "-n", "kill", "-%d" % signal_number, str(pid)],
                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main(document):
    env = dict(os.environ)
    env.update(document["env"])
    try:
        process = subprocess.Popen(document["command"], shell=True, cwd=document["cwd"], env=env,
                                   start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
    except Exception as error:
        answer("result", {"exit_code": None, "stdout": "", "stderr": "", "timed_out": False, "error": str(error)})
        return
    collected = {"stdout": [], "stderr": []}

    def read(name, pipe):
        for line in iter(pipe.readline, b""):
            text = line.decode("utf-8", "replace")
            collected[name].append(text)
            if name == "stderr":
                answer("stderr", text)

    readers = []
    for name in collected:
        reader = threading.Thread(target=read, args=(name, getattr(process, name)))
        reader.daemon = True  # an action may leave a process behind that holds the pipe
        reader.start()
        readers.append(reader)
    deadline = time.time() + document["timeout"]
    timed_out = False
    try:
        process.wait(document["timeout"])
        for reader in readers:
            reader.join(max(1.0, deadline - time.time()))
    except subprocess.TimeoutExpired:
        timed_out = True
        kill_session(process.pid, signal.SIGTERM)
        try:
            process.wait(TERM_GRACE)
        except subprocess.TimeoutExpired:
            kill_session(process.pid, signal.SIGKILL)
            process.wait()
        for reader in readers:
            reader.join(1.0)
    answer("result", {"exit_code": process.returncode, "stdout": "".join(collected["stdout"]),
                      "stderr": "".join(collected["stderr"]), "timed_out": timed_out})
