"""The local shell runners: from an action's parameters to its command line, and from its output to its result.

st2common/models/system/action.py and contrib/runners/local_runner, to the letter where a letter can be seen:
`chmod +x EP ; sudo -E -- bash -c 'EP --name=value ... positional'`, run by the service's user (root) with /bin/sh.
"""
import json
import os
import secrets
import shlex
import subprocess
import sys
import threading

import pack as packs

SYSTEM_USER, SERVICE_USER = "stanley", "root"  # [system_user] user, and the user of st2actionrunner
LOST_AFTER = 90  # seconds past an action's timeout after which the node counts as lost
_NODE_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "node.py")


quote = shlex.quote


def positional_text(kind, value):
    """A positional argument's text: action_db.serialize_positional_argument."""
    if kind in ("string", "number", "float"):
        return "" if value is None else str(value)
    if kind == "boolean":
        return "" if value is None else "1" if value else "0"
    if kind in ("array", "list"):
        return ",".join(map(str, value)) if value else ""
    if kind == "object":
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False) if value else ""
    if kind == "null":
        return ""
    return str(value) if value else ""


def script_arguments(schema, values, kwarg_op="--"):
    """Named arguments in the order of values, then positional ones by position."""
    by_position = {meta["position"]: name for name, meta in schema.items() if (meta or {}).get("position") is not None}
    positional = [name for _, name in sorted(by_position.items())]
    parts = []
    for name, value in values.items():
        if name in positional or value is None or value == "":
            continue
        if isinstance(value, bool):
            if value:
                parts.append(kwarg_op + name)
        else:
            parts.append("%s=%s" % (quote(kwarg_op + name), quote(str(value))))
    parts += [quote(positional_text(schema[name].get("type"), values.get(name))) for name in positional]
    return " ".join(parts)


def command_line(command, sudo, user=SYSTEM_USER, service_user=SERVICE_USER):
    if sudo:
        return "sudo -E -- bash -c %s" % quote(command)
    if user and user != service_user:
        return "sudo -E -H -u %s -- bash -c %s" % (quote(user), quote(command))
    return command


class Node:
    """Where actions run: this machine, or behind a command prefix such as `ssh -F cfg primary sudo -n`."""

    def __init__(self, prefix=(), pack_path=None, with_sudo=True, on_stderr=None, address=None):
        self.prefix, self.pack_path, self.with_sudo, self.on_stderr = list(prefix), pack_path, with_sudo, on_stderr
        self.address = address  # of the node's action runners, %d being a worker's number

    def command(self, action, runner_params, action_params):
        if runner_params.get("sudo_password"):
            raise packs.PackError("%s: the harness has no sudo_password" % action.ref)
        sudo, user = (runner_params.get("sudo"), SYSTEM_USER) if self.with_sudo else (False, SERVICE_USER)
        if action.runner == "local-shell-cmd":
            return command_line(runner_params.get("cmd") or "", sudo, user)
        path = action.entry_point(self.pack_path)
        if not path:
            raise packs.PackError("%s: Missing entry_point action metadata attribute" % action.ref)
        arguments = script_arguments(action.parameters, action_params, runner_params.get("kwarg_op") or "--")
        if sudo or user != SERVICE_USER:
            line = command_line("%s %s" % (path, arguments) if arguments else path, sudo, user)
        else:
            line = "%s %s" % (quote(path), arguments) if arguments else quote(path)
        return "chmod +x %s ; %s" % (path, line)

    def run(self, action, runner_params, action_params, execution_id):
        """Returns (status, result) as the runner hands them to StackStorm."""
        timeout = runner_params.get("timeout")
        env = dict(runner_params.get("env") or {})
        for name, value in env.items():
            if not isinstance(value, str):
                # StackStorm hands it to Popen, which raises.
                return "failed", {"error": 'env "%s" is no string' % name, "traceback": ""}
        env.update({
            "ST2_ACTION_PACK_NAME": action.ref.partition(".")[0],
            "ST2_ACTION_EXECUTION_ID": execution_id,
            "ST2_ACTION_API_URL": "http://127.0.0.1:9101/v1",
            "ST2_ACTION_DEBUG": str(bool(runner_params.get("debug"))),
            "ST2_ACTION_AUTH_TOKEN": secrets.token_hex(16),
        })
        answer = self._send({"command": self.command(action, runner_params, action_params), "env": env,
                             "cwd": runner_params.get("cwd") or "/", "timeout": timeout,
                             "runner": self._runner(action, execution_id)})
        if answer.get("abandoned"):
            return "abandoned", {}
        if answer.get("error"):
            # The runner itself failed, which StackStorm reports by error and traceback alone.
            return "failed", {"error": answer["error"], "traceback": ""}
        code = -9 if answer["timed_out"] else answer["exit_code"]
        result = {"failed": code != 0, "succeeded": code == 0, "return_code": code,
                  "stdout": _decoded(answer["stdout"]), "stderr": _decoded(answer["stderr"])}
        if answer["timed_out"]:
            result["error"] = "Action failed to complete in %s seconds" % timeout
        return {0: "succeeded", -9: "timeout", -15: "abandoned"}.get(code, "failed"), result

    def _runner(self, action, execution_id):
        return self.address and {"address": self.address, "execution": execution_id, "action": action.ref, "type": action.runner}

    def note(self, action, execution_id, status):
        """Has StackStorm store how it is with a workflow; returns what was wrong, if anything."""
        if not self.address:
            return None
        return self._send({"runner": self._runner(action, execution_id), "note": status}).get("error")

    def _send(self, document):
        with open(_NODE_PROGRAM, encoding="utf-8") as file:
            program = file.read()
        # The command and its secrets are in the program's text, which goes by stdin: argv is seen by everyone. Two
        # plain words are all that is appended to the prefix, so a remote shell has nothing to take apart.
        program += "\nmain(json.loads(%s))\n" % ascii(json.dumps(document))
        argv = self.prefix + ["python3", "-"] if self.prefix else [sys.executable, "-"]
        try:
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except OSError as error:
            return {"error": "%s: %s" % (argv[0], error.strerror)}
        noise = []

        def read_noise():
            with process.stderr:
                noise.append(process.stderr.read())

        drain = threading.Thread(target=read_noise, daemon=True)
        drain.start()
        watchdog = threading.Timer((document.get("timeout") or 0) + LOST_AFTER, process.kill)
        watchdog.start()
        result = None
        try:
            try:
                process.stdin.write(program.encode("utf-8"))
                process.stdin.close()
            except BrokenPipeError:
                pass  # it ended early: what it said follows
            for line in process.stdout:
                try:
                    message = json.loads(line)
                except ValueError:
                    continue  # a login shell's greeting
                if "stderr" in message and self.on_stderr:
                    self.on_stderr(message["stderr"])
                result = message.get("result", result)
            process.wait()
        finally:
            watchdog.cancel()
            process.stdout.close()
        if result is None:
            drain.join(1)
            said = b"".join(noise).decode("utf-8", "replace").strip()
            return {"error": "no result from the node (%s ended with %s): %s" % (argv[0], process.returncode, said)}
        return result


def _decoded(text):
    """One trailing line end off, and JSON turned into data: any JSON, so `5` becomes a number."""
    for char in "\n\r":
        if text.endswith(char):
            text = text[:-1]

    def refuse(constant):
        raise ValueError(constant)  # NaN and Infinity are none for orjson

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError:
        return text
