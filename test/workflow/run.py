#!/usr/bin/env python3
"""Runs an action or a workflow of a pack as StackStorm would, without StackStorm; or inspects the pack.

    run.py --pack DIR [--config FILE.yaml] [--params JSON|-] [--exec 'ssh -F cfg primary sudo -n'] ACTION
    run.py --pack DIR --inspect

Progress goes to stderr, one JSON object to stdout. Exit code 0: succeeded, 1: failed, 2: wrong usage.
Needs the interpreter that setup.sh prints.
"""
import argparse
import json
import os
import shlex
import sys
import threading
import time
import warnings

warnings.filterwarnings("ignore", category=DeprecationWarning)  # orquesta's, about Pythons to come

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import engine as engines  # noqa: E402
import inspection  # noqa: E402
import pack as packs  # noqa: E402
import params  # noqa: E402
import runner  # noqa: E402


RUNNERS = "\0st2service/st2actionrunner.%d"


class Progress(engines.Report):
    """Tells people on stderr. Of the parameters only the host is shown, so no secret can be."""

    def __init__(self, verbose, stream=sys.stderr):
        super().__init__()
        self.verbose, self.stream, self.begin = verbose, stream, time.monotonic()
        self._write_lock, self._here = threading.Lock(), threading.local()

    def say(self, text):
        with self._write_lock:
            print("[%6.1fs] %s" % (time.monotonic() - self.begin, text), file=self.stream, flush=True)

    def started(self, record, given):
        self._here.name = record["name"]  # the task's thread is also the one that reads its stderr
        about = [record["action"].rpartition(".")[2]] if record["action"] else []
        about += ["%s %s" % (key, given[key]) for key in ("host",) if isinstance(given.get(key), str) and given[key]]
        self.say("start   %s%s" % (record["name"], "  (%s)" % ", ".join(about) if about else ""))

    def ended(self, record):
        word = "ok     " if record["status"] == "succeeded" else record["status"].upper().ljust(7)
        text = summary(record["status"], record["result"])
        self.say("%s %s  %.1fs%s" % (word, record["name"], record["seconds"], ": " + text if text else ""))

    def stderr(self, text):
        if self.verbose:
            self.say("        %s | %s" % (getattr(self._here, "name", ""), text.rstrip("\r\n")))


def summary(status, result):
    """One line about a result: what the action's own JSON says, or the best that can be found."""
    result = result if isinstance(result, dict) else {}
    said = result.get("stdout") if isinstance(result.get("stdout"), dict) else {}
    error = said.get("error")
    if isinstance(error, dict):
        hint = error.get("hint")
        return "%s: %s%s" % (error.get("code", "error"), error.get("message", ""), " (%s)" % hint if hint else "")
    if status != "succeeded":
        if result.get("errors"):
            return error_line(result["errors"][0])
        stderr = result.get("stderr")
        last = stderr.strip().rpartition("\n")[2] if isinstance(stderr, str) else ""
        return one_line(result.get("error") or last or "exit code %s" % result.get("return_code"))
    if "changed" in said:
        count = len(said.get("changes") or [])
        some = " (%d change%s)" % (count, "" if count == 1 else "s") if count else ""
        if said.get("dry_run"):
            return "would change" + some if count else "nothing to change"
        return "changed" + some if said["changed"] else "nothing to change"
    return ""


def error_line(error):
    """One line about an error of a workflow: the task and what it said, where orquesta only says that it failed."""
    task = "%s: " % error["task_id"] if error.get("task_id") else ""
    return task + (summary("failed", error["result"]) if error.get("result") else one_line(error.get("message", "")))


def one_line(text):
    return " ".join(str(text).split())


class UsageError(Exception):
    pass


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", required=True, metavar="DIR", help="the pack on this machine")
    parser.add_argument("--config", metavar="FILE", help="the pack's configuration, as in /opt/stackstorm/configs")
    parser.add_argument("--params", default="{}", metavar="JSON", help="the action's parameters, - reads stdin")
    parser.add_argument("--exec", dest="prefix", default="", metavar="CMD",
                        help="reaches the node that runs the actions, as root; `python3 -` is appended")
    parser.add_argument("--node-pack", metavar="DIR",
                        help="the pack on the node; with --exec /opt/stackstorm/packs/<name> if not given")
    parser.add_argument("--runner", action="store_true",
                        help="actions are the node's st2actionrunner's, which stores their output while they run (test/lab)")
    parser.add_argument("--without-sudo", action="store_true",
                        help="leave sudo away, on a machine that has none: actions run as the harness does")
    parser.add_argument("--verbose", action="store_true", help="show the tasks' stderr as it comes")
    parser.add_argument("--inspect", action="store_true", help="check the pack, run nothing")
    parser.add_argument("action", nargs="?", metavar="ACTION")
    arguments = parser.parse_args(argv)
    if bool(arguments.action) == arguments.inspect:
        parser.error("either ACTION or --inspect")
    return arguments


def read_params(text):
    try:
        given = json.loads(sys.stdin.read() if text == "-" else text)
    except ValueError as error:
        raise UsageError("--params: no JSON: %s" % error) from None
    if not isinstance(given, dict):
        raise UsageError("--params: must be an object")
    return given


def run(arguments, pack):
    given = read_params(arguments.params)
    progress = Progress(arguments.verbose)
    node_pack = arguments.node_pack or ("/opt/stackstorm/packs/" + pack.name if arguments.prefix else None)
    node = runner.Node(shlex.split(arguments.prefix), node_pack, not arguments.without_sudo, progress.stderr,
                       RUNNERS if arguments.runner else None)
    engine = engines.Engine(pack, pack.config(arguments.config), node, progress)
    context = {"user": runner.SYSTEM_USER, "pack": pack.name}
    try:
        prepared = engine.prepare(arguments.action, given, context)
    except params.ParamError as error:
        raise UsageError("%s: %s" % (arguments.action, error)) from None

    start = time.monotonic()
    if prepared[0].runner == "orquesta":
        status, result = engine.run(prepared, context)
        output, errors = result["output"], result.get("errors", [])
    else:
        record = {"id": prepared[0].name, "name": prepared[0].name, "route": 0, "item": None,
                  "action": prepared[0].ref, "status": "running", "result": None, "seconds": 0.0}
        progress.add(record)
        progress.started(record, prepared[2])
        status, result = engine.run(prepared, context)
        record.update(status=status, result=result, seconds=round(time.monotonic() - start, 3))
        progress.ended(record)
        output = result
        errors = [] if status == "succeeded" else [{"type": "error", "message": summary(status, result)}]
    seconds = round(time.monotonic() - start, 3)
    for error in errors:
        if error.get("task_id") != "fail":  # the command, not a task: it has nothing to say
            progress.say("error   " + error_line(error))
    progress.say("%s  %s  %.1fs" % (status, arguments.action, seconds))
    json.dump({"status": status, "output": output, "errors": errors, "tasks": progress.tasks, "seconds": seconds},
              sys.stdout, indent=2)
    print()
    return 0 if status == "succeeded" else 1


def main(argv):
    arguments = parse_arguments(argv)
    try:
        pack = packs.Pack(arguments.pack)
        if arguments.inspect:
            findings = inspection.inspect(pack)
            for finding in findings:
                print(finding)
            return 1 if findings else 0
        return run(arguments, pack)
    except (UsageError, packs.PackError) as error:
        print("run.py: %s" % error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
