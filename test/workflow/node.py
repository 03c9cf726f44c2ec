"""Runs one command on a node as StackStorm's action runner does: st2common/util/green/shell.py.

The harness sends this text to `python3 -`, followed by a call of main() with the command. So nothing but standard
library, and old Pythons must do. It answers in lines of JSON: {"stderr": text} as it comes, and {"result": {...}} last.

With "runner", the execution is one of the node's st2actionrunner (test/lab/st2service): that stores its status, and each
line while it runs. What cannot be stored fails the action, as [actionrunner] stream_output has it by default.
"""
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

TERM_GRACE = 20  # seconds a killed action has to end; StackStorm would wait forever
TAKEN_WITHIN = 60  # seconds until a runner takes the action; in StackStorm it would stay scheduled
WORKERS = 10


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


class NotStored(Exception):
    """The runner could not store something: what pymongo says, the text of the action's result."""


class Runner(object):
    """The action runner that has taken the execution; one without an address stores nothing."""

    def __init__(self, document):
        self.about, self.socket, self.lock = document.get("runner"), None, threading.Lock()
        self.gone = threading.Event()  # it was stopped, or died
        if self.about:
            self.take(time.time() + self.about.get("within", TAKEN_WITHIN))

    def take(self, end):
        while self.socket is None:
            for worker in range(1, WORKERS + 1):
                attempt = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    attempt.connect(self.about["address"] % worker)
                    self.socket = attempt
                    break
                except (IOError, OSError):
                    attempt.close()
            if self.socket is None:
                if time.time() > end:
                    raise NotStored("no st2actionrunner is there: the execution stays scheduled")
                time.sleep(0.5)
        self.answers = self.socket.makefile("r")
        self.store(Status="running")

    def store(self, **what):
        if self.socket is None:
            return
        what.update(Execution=self.about["execution"], Action=self.about["action"], Runner=self.about["type"])
        with self.lock:
            try:
                self.socket.sendall((json.dumps(what) + "\n").encode("utf-8"))
                answer = self.answers.readline()
            except (IOError, OSError):
                answer = ""
        if not answer:
            self.gone.set()
            raise NotStored("the action runner is gone")
        error = json.loads(answer).get("error")
        if error:
            raise NotStored(error)

    def watch(self, process):
        """Kills the action with its runner, as systemd does: they are in one control group."""
        if self.socket is None:
            return
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        while process.poll() is None and not self.gone.is_set():
            if poll.poll(200):
                self.gone.set()
        if self.gone.is_set() and process.poll() is None:
            kill_session(process.pid, signal.SIGTERM)


def main(document):
    try:
        runner = Runner(document)
    except NotStored as error:
        answer("result", {"exit_code": None, "stdout": "", "stderr": "", "timed_out": False, "error": str(error)})
        return
    if "note" in document:  # a workflow's
        result = {}
        if document["note"] != "running":
            try:
                runner.store(Status=document["note"])
            except NotStored as error:
                result["error"] = str(error)
        answer("result", result)
        return
    result = run(document, runner)
    if runner.gone.is_set():
        # services/executions.py:237 abandon_execution_if_incomplete
        answer("result", dict(result, abandoned=True))
        return
    try:
        failed = result.get("error") or result["timed_out"] or result["exit_code"] != 0
        runner.store(Status="failed" if failed else "succeeded")
    except NotStored as error:
        result["error"] = "its end cannot be stored, so the execution stays running: %s" % error
    answer("result", result)


def run(document, runner):
    env = dict(os.environ)
    env.update(document["env"])
    try:
        process = subprocess.Popen(document["command"], shell=True, cwd=document["cwd"], env=env,
                                   start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
    except Exception as error:
        return {"exit_code": None, "stdout": "", "stderr": "", "timed_out": False, "error": str(error)}
    collected, failures = {"stdout": [], "stderr": []}, []

    def read(name, pipe):
        """st2common/runners/utils.py, read_and_store_stream. What fails here is raised when the process has ended, and
        nobody reads the pipe meanwhile."""
        try:
            for line in iter(pipe.readline, b""):
                text = line.decode("utf-8")
                collected[name].append(text)
                if name == "stderr":
                    answer("stderr", text)
                runner.store(Stream=name, Line=text)
        except (NotStored, UnicodeDecodeError) as error:
            failures.append(str(error))

    readers = []
    for name in collected:
        reader = threading.Thread(target=read, args=(name, getattr(process, name)))
        reader.daemon = True  # an action may leave a process behind that holds the pipe
        reader.start()
        readers.append(reader)
    watcher = threading.Thread(target=runner.watch, args=(process,))
    watcher.daemon = True
    watcher.start()
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
    result = {"exit_code": process.returncode, "stdout": "".join(collected["stdout"]),
              "stderr": "".join(collected["stderr"]), "timed_out": timed_out}
    if failures:
        result["error"] = failures[0]
    return result
