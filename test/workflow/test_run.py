"""Tests of the harness itself: `$(./setup.sh) test_run.py`."""
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import pack as packs  # noqa: E402
import params  # noqa: E402
import runner  # noqa: E402
import sidebyside  # noqa: E402

FIXTURE = os.path.join(HERE, "testdata", "pack")
ENTRY = os.path.join(FIXTURE, "actions", "probe")


class Outcome:
    def __init__(self, process):
        self.code, self.stderr, self.text = process.returncode, process.stderr, process.stdout
        self.json = json.loads(process.stdout) if process.stdout.startswith("{") else None

    def tasks(self):
        return {task["name"]: task for task in self.json["tasks"]}


def run(*arguments, given=None, config=None, stdin=None, pack=FIXTURE, **env):
    command = [sys.executable, os.path.join(HERE, "run.py"), "--pack", pack]
    if given is not None:
        command += ["--params", json.dumps(given)]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        if config is not None:
            json.dump(config, file)
            file.flush()
            command += ["--config", file.name]
        path = os.path.join(HERE, "testdata", "bin") + os.pathsep + os.environ["PATH"]
        return Outcome(subprocess.run(command + list(arguments), input=stdin, capture_output=True, text=True,
                                      timeout=300, env={**os.environ, "PATH": path, **env}))


class CommandLine(unittest.TestCase):
    """The expectations of st2common/tests/unit/test_shell_action_system_model.py."""

    def script(self, sudo, user, named=None, positional=()):
        schema = {str(index): {"type": "string", "position": index} for index in range(len(positional))}
        values = {**(named or {}), **{str(index): value for index, value in enumerate(positional)}}
        arguments = runner.script_arguments(schema, values, "")
        line = "/tmp/foo.sh %s" % arguments if arguments else "/tmp/foo.sh"
        return runner.command_line(line, sudo, user, "root")

    def test_user(self):
        self.assertEqual(runner.command_line("ls -la", False, "root", "root"), "ls -la")
        self.assertEqual(runner.command_line("ls -la", False, "mauser", "root"),
                         "sudo -E -H -u mauser -- bash -c 'ls -la'")
        self.assertEqual(runner.command_line("ls -la", True, "mauser", "root"), "sudo -E -- bash -c 'ls -la'")
        self.assertEqual(self.script(False, "mauser"), "sudo -E -H -u mauser -- bash -c /tmp/foo.sh")

    def test_named_and_positional(self):
        named = {"key1": "value1", "key2": "value2", "key3": "value 3"}
        self.assertEqual(self.script(False, "root", named, ["ein", "zwei"]),
                         "/tmp/foo.sh key1=value1 key2=value2 key3='value 3' ein zwei")
        self.assertEqual(self.script(False, "mauser", named, ["ein"]),
                         "sudo -E -H -u mauser -- bash -c '/tmp/foo.sh key1=value1 key2=value2 "
                         "key3='\"'\"'value 3'\"'\"' ein'")
        self.assertEqual(self.script(False, "root", {}, ["ein", "mamma mia", "foo\nbar"]),
                         "/tmp/foo.sh ein 'mamma mia' 'foo\nbar'")

    def test_escaping(self):
        named = {"key1": "value foo bar", "key2": 'value "bar" foo', "key3": "date ; whoami"}
        self.assertEqual(self.script(False, "root", named),
                         "/tmp/foo.sh key1='value foo bar' key2='value \"bar\" foo' key3='date ; whoami'")
        self.assertEqual(self.script(False, "root", {"ｆｏｏ": "ｂａｒ"}), "/tmp/foo.sh 'ｆｏｏ'='ｂａｒ'")

    def test_default_values(self):
        schema = {
            "project": {"type": "string", "default": "st2", "position": 0},
            "version": {"type": "string", "position": 1, "required": True},
            "fork": {"type": "string", "position": 2, "default": "StackStorm"},
            "branch": {"type": "string", "position": 3, "default": "master"},
            "update_changelog": {"type": "boolean", "position": 4, "default": False},
            "local_repo": {"type": "string", "position": 5},
        }
        for update, text in ((None, "0"), (True, "1")):
            given = {"project": "p", "version": "3.2.0", "local_repo": "/tmp/r", "update_changelog": update}
            _, values = params.render({}, schema, given, {}, {})
            self.assertEqual(runner.script_arguments(schema, values), "p 3.2.0 StackStorm master %s /tmp/r" % text)

    def test_positional_types(self):
        for kind, value, text in (("array", ["a", 1], "a,1"), ("object", {"k": [1]}, '{"k":[1]}'), ("integer", 5, "5"),
                                  ("integer", 0, ""), ("number", 1.5, "1.5"), ("boolean", None, ""),
                                  ("string", None, ""), ("array", None, "")):
            self.assertEqual(runner.positional_text(kind, value), text, (kind, value))


class Parameters(unittest.TestCase):
    def render(self, schema, given=None, config=None):
        return params.render({}, schema, given or {}, config or {}, {"user": "stanley"})[1]

    def test_templates_are_cast(self):
        schema = {"count": {"type": "integer", "default": "{{ config_context.n }}"},
                  "flag": {"type": "boolean", "default": "{{ config_context.flag }}"},
                  "items": {"type": "array", "default": "{{ config_context.items2 }}"},
                  "object": {"type": "object", "default": {"a": "{{count}}", "b": "{{ count }}"}},
                  "absent": {"type": "string", "default": "{{ st2kv.system.a.b }}"},
                  "who": {"type": "string", "default": "{{ action_context.user }}"}}
        values = self.render(schema, config={"n": 7, "flag": True, "items2": ["x", 1]})
        self.assertEqual(values, {"count": 7, "flag": True, "items": ["x", 1], "object": {"a": 7, "b": "7"},
                                  "absent": "", "who": "stanley"})

    def test_a_secret_in_env_survives(self):
        secret = "a'b\"c@d/e:f$g%h\\i\nj{{ k }}\""
        template = "{{ (config_context.password | default('', true) | to_json_string)[1:-1] }}"
        schema = {"env": {"type": "object", "immutable": True, "default": {"PW": template}}}
        for value in (secret, "", None):
            self.assertEqual(self.render(schema, config={"password": value}), {"env": {"PW": value or ""}})
        schema["env"]["default"]["PW"] = "{{ config_context.password }}"
        with self.assertRaisesRegex(params.ParamError, '^Failed to render parameter "env"') as caught:
            self.render(schema, config={"password": secret})
        self.assertNotIn("c@d", str(caught.exception))

    def test_refused(self):
        schema = {"mode": {"type": "string", "enum": ["a", "b"]}, "n": {"type": "integer"}, "must": {
            "type": "string", "required": True}, "fixed": {"type": "string", "immutable": True, "default": "x"},
            "pin": {"type": "integer", "secret": True}}
        for given, message in (({"must": "x", "mode": "c"}, '"mode": \'c\' is not one of'),
                               ({}, "'must' is a required property"),
                               ({"must": "x", "fixed": "y"}, "Override of immutable"),
                               ({"must": "x", "nope": 1}, "unknown parameter\\(s\\): nope"),
                               ({"must": "x", "n": "many"}, '"n" is not of type integer: '),
                               ({"must": "x", "pin": "hunter2"}, '^parameter "pin" is not of type integer$')):
            with self.assertRaisesRegex(params.ParamError, message):
                self.render(schema, given)

    def test_an_immutable_template_must_be_a_string(self):
        with self.assertRaises(params.ParamError):
            self.render({"n": {"type": "integer", "immutable": True, "default": "{{ config_context.n }}"}},
                        config={"n": 1})


class Actions(unittest.TestCase):
    def test_arguments(self):
        outcome = run("probe", given={"zeta": "1", "alpha": "it's", "enabled": True, "object": {"k": [1, "b"]},
                                      "host": "", "dry_run": None})
        self.assertEqual(outcome.code, 0, outcome.stderr)
        self.assertEqual(outcome.json["output"]["stdout"]["argv"], [
            "--zeta=1", "--alpha=it's", "--enabled", "--object={'k': [1, 'b']}", "--count=3", "--port=27017",
            "--dirs=['/a', '/b']", "--token=none", "--mode=fast", "", "probe"])

    def test_environment(self):
        secret = "hun'ter\"2\n"
        outcome = run("probe", config={"password": secret, "dirs": ["/x"]}, given={"host": "h1"})
        output = outcome.json["output"]["stdout"]
        self.assertEqual(output["cwd"], "/")
        self.assertEqual(output["env"]["PROBE_PASSWORD"], secret)
        self.assertEqual(output["env"]["PROBE_DIRS"], '["/x"]')
        self.assertEqual(output["env"]["PROBE_KEY"], "")
        self.assertEqual(output["env"]["SUDO_OPTIONS"], "-E")
        self.assertEqual(output["env"]["ST2_ACTION_PACK_NAME"], "fixture")
        for name in ("API_URL", "AUTH_TOKEN", "EXECUTION_ID"):
            self.assertTrue(output["env"]["ST2_ACTION_" + name])
        self.assertNotIn("hun", outcome.stderr)
        self.assertIn("host h1", outcome.stderr)
        self.assertIn("changed (1 change)", outcome.stderr)

    def test_without_sudo_in_the_action_the_system_user_runs_it(self):
        outcome = run("slow", given={"sleep": 0})
        self.assertEqual(outcome.json["output"]["stdout"]["env"]["SUDO_OPTIONS"], "-E -H -u stanley")

    def test_without_sudo_on_the_machine(self):
        outcome = run("--without-sudo", "probe")
        self.assertNotIn("SUDO_OPTIONS", outcome.json["output"]["stdout"]["env"])

    def test_environment_must_be_text(self):
        outcome = run("slow", given={"env": {"A": 1}})
        self.assertEqual(outcome.code, 1)
        self.assertIn('env "A" is no string', outcome.json["output"]["error"])

    def test_failure(self):
        outcome = run("probe", "--verbose", given={"host": "h1", "fail_on": "h1"})
        self.assertEqual(outcome.code, 1)
        result = outcome.json["output"]
        self.assertEqual((outcome.json["status"], result["return_code"], result["failed"], result["succeeded"]),
                         ("failed", 1, True, False))
        self.assertIn("boom: it broke (mend it)", outcome.stderr)
        self.assertIn("probe | working on h1", outcome.stderr)

    def test_timeout(self):
        begin = time.monotonic()
        outcome = run("slow")
        self.assertLess(time.monotonic() - begin, 60)
        result = outcome.json["output"]
        self.assertEqual((outcome.json["status"], result["return_code"]), ("timeout", -9))
        self.assertEqual(result["error"], "Action failed to complete in 1 seconds")
        self.assertEqual(result["stderr"], "working on ")

    def test_json_is_decoded(self):
        result = run("plain").json["output"]
        self.assertEqual((result["stdout"], result["stderr"]), (5, "a b"))

    def test_exec_keeps_secrets_out_of_argv(self):
        with tempfile.TemporaryDirectory() as directory:
            spy = os.path.join(directory, "spy")
            with open(spy, "w") as file:
                file.write('#!/bin/sh\necho "$@" > %s/argv\nexec "$@"\n' % directory)
            os.chmod(spy, 0o755)
            outcome = run("probe", "--exec", spy + " env FROM=here", "--node-pack", FIXTURE,
                          config={"password": "hunter2"})
            with open(os.path.join(directory, "argv")) as file:
                self.assertEqual(file.read().strip(), "env FROM=here python3 -")
        self.assertEqual(outcome.json["output"]["stdout"]["env"]["PROBE_PASSWORD"], "hunter2")

    def test_node_away(self):
        outcome = run("probe", "--exec", "sh -c 'echo no route >&2; exit 255'")
        self.assertEqual(outcome.code, 1)
        self.assertRegex(outcome.json["output"]["error"], "no result from the node .*255.*no route")

    def test_usage(self):
        for arguments, given, message in ((["nope"], None, 'Action "nope" cannot be found'),
                                          (["strict"], {}, "'must' is a required property"),
                                          (["strict"], {"must": "1", "secret_number": "hunter2"}, "not of type"),
                                          (["probe", "--params", "{"], None, "no JSON"),
                                          (["probe", "--config", "/nowhere"], None, "No such file")):
            outcome = run(*arguments, given=given)
            self.assertEqual((outcome.code, outcome.text), (2, ""), arguments)
            self.assertIn(message, outcome.stderr)
            self.assertNotIn("hunter2", outcome.stderr)
            self.assertEqual(len(outcome.stderr.splitlines()), 1, outcome.stderr)
        self.assertEqual(run("strict", "--params", "-", stdin='{"must": "x"}').code, 0)


class RunnerService:
    """A node's st2actionrunner as test/lab/st2service has it: stores what comes, and says what it could not."""

    def __init__(self, name):
        self.address, self.stored, self.refuse, self.ends_at = "\0%s.%%d" % name, [], {}, None
        self.then = lambda: None  # what follows each that is stored
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.server.bind(self.address % 2)
        self.server.listen()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self.store, args=(connection,), daemon=True).start()

    def store(self, connection):
        with connection, connection.makefile("r") as lines:
            for line in lines:
                what = json.loads(line)
                what = what["Status"] if "Status" in what else "%s: %s" % (what["Stream"], what["Line"].strip())
                if what == self.ends_at:
                    return  # as one that is stopped
                error = self.refuse.get(what)
                if not error:
                    self.stored.append(what)
                    self.then()
                connection.sendall((json.dumps({"error": error} if error else {}) + "\n").encode())


class Streaming(unittest.TestCase):
    """What the runner does while an action runs: contrib/runners/local_runner/local_runner/base.py, services/action.py:497."""

    def setUp(self):
        self.service = RunnerService("st2ha-test-%d-%s" % (os.getpid(), self.id()))
        self.addCleanup(self.service.server.close)

    def run_command(self, command, timeout=20):
        action = packs.Pack(FIXTURE).action("plain")
        node = runner.Node(with_sudo=False, address=self.service.address)
        return node.run(action, {"cmd": command, "timeout": timeout}, {}, "6527242448d1e4e9ef404ebb")

    def test_lines_are_stored_as_they_come(self):
        with tempfile.TemporaryDirectory() as directory:
            go_on = os.path.join(directory, "go-on")
            self.service.then = lambda: len(self.service.stored) == 3 and open(go_on, "w").close()
            status, result = self.run_command(
                "echo one; echo two >&2; until [ -e %s ]; do sleep 0.05; done; printf three" % go_on, timeout=100)
        self.assertEqual((status, result["stdout"], result["stderr"]), ("succeeded", "one\nthree", "two"))
        self.assertEqual(sorted(self.service.stored[:3]), ["running", "stderr: two", "stdout: one"])
        self.assertEqual(self.service.stored[-2:], ["stdout: three", "succeeded"])
        self.run_command("exit 3")
        self.assertEqual(self.service.stored[-1], "failed")

    def test_a_line_that_is_not_stored_fails_the_action(self):
        self.service.refuse["stderr: two"] = "connection closed"
        status, result = self.run_command("echo one; echo two >&2; echo three >&2; exit 0")
        self.assertEqual((status, result), ("failed", {"error": "connection closed", "traceback": ""}))
        self.assertEqual(self.service.stored[-1], "failed")
        self.assertNotIn("stderr: three", self.service.stored, "nobody reads on")

    def test_an_action_that_fills_the_pipe_then_is_timed_out(self):
        self.service.refuse["stdout: one"] = "connection closed"
        status, result = self.run_command("echo one; head -c 200000 /dev/zero", timeout=2)
        self.assertEqual((status, result["error"]), ("failed", "connection closed"))

    def test_output_has_to_be_utf8(self):
        status, result = self.run_command("printf '\\377\\n'; exit 0")
        self.assertEqual(status, "failed")
        self.assertIn("codec can't decode byte 0xff", result["error"])

    def test_an_end_that_is_not_stored(self):
        self.service.refuse["succeeded"] = "No servers found yet"
        status, result = self.run_command("true")
        self.assertEqual(status, "failed")
        self.assertIn("stays running: No servers found yet", result["error"])

    def test_a_runner_that_is_stopped_takes_its_action_with_it(self):
        self.service.ends_at = "stdout: restarting"
        begun = time.monotonic()
        status, result = self.run_command("echo restarting; sleep 100", timeout=100)
        self.assertEqual((status, result), ("abandoned", {}))
        self.assertLess(time.monotonic() - begun, 60)

    def test_a_workflows_end_is_stored(self):
        node = runner.Node(address=self.service.address)
        action = packs.Pack(FIXTURE).action("join")
        for status in ("running", "succeeded"):
            self.assertIsNone(node.note(action, "6527242448d1e4e9ef404ebb", status))
        self.assertEqual(self.service.stored, ["running", "running", "succeeded"])
        self.service.refuse["failed"] = "no"
        self.assertEqual(node.note(action, "6527242448d1e4e9ef404ebb", "failed"), "no")


class Workflows(unittest.TestCase):
    def join(self, fail_on):
        with tempfile.TemporaryDirectory() as meet:  # each secondary waits for the other: one after the other they never end
            return run("join", given={"primary": "a", "secondaries": ["b", "c"], "fail_on": fail_on, "meet": meet})

    def test_succeeds(self):
        outcome = self.join("")
        self.assertEqual(outcome.code, 0, outcome.stderr)
        nodes = outcome.json["output"]["nodes"]
        self.assertEqual(nodes["a"], {"host": "a", "steps": 2, "changed": True, "error": None})
        self.assertEqual({host: node["host"] for host, node in nodes.items()}, {"a": "a", "b": "b", "c": "c"})
        self.assertEqual(outcome.json["output"]["undone"], {})
        self.assertEqual(sorted(outcome.tasks()), ["join[0]", "join[1]", "preflight", "prepare", "prepare/checked",
                                                   "prepare/first", "prepare/second"])
        self.assertEqual(outcome.tasks()["prepare"]["result"], {"output": {"node": nodes["a"]}})

    def test_a_secondary_fails(self):
        outcome = self.join("c")
        self.assertEqual((outcome.code, outcome.json["status"]), (1, "failed"))
        output, tasks = outcome.json["output"], outcome.tasks()
        self.assertEqual(output["nodes"]["c"]["error"]["code"], "boom")
        self.assertTrue(output["nodes"]["b"]["changed"])
        self.assertEqual(output["undone"], {"a": True, "b": True, "c": True})
        undone = [tasks[name]["result"]["stdout"] for name in ("undo_secondaries[0]", "undo_primary")]
        self.assertLess(undone[0]["end"], undone[1]["begin"])
        self.assertIn("join: boom: it broke (mend it)", outcome.stderr)

    def test_the_nested_workflow_fails(self):
        outcome = self.join("a")
        self.assertEqual(outcome.json["status"], "failed")
        self.assertEqual(outcome.json["output"]["undone"], {"a": True})
        self.assertEqual(outcome.json["output"]["nodes"]["a"]["error"]["code"], "boom")
        self.assertNotIn("join[0]", outcome.tasks())
        self.assertIn("prepare: second: boom: it broke (mend it)", outcome.stderr)

    def test_concurrency(self):
        with tempfile.TemporaryDirectory() as meet:
            outcome = run("parallel", given={"items": ["a", "b", "c"], "concurrency": 2, "meet": meet})
        self.assertEqual(outcome.code, 0, outcome.stderr)
        spans = outcome.json["output"]["spans"]
        self.assertGreaterEqual(spans[2][0], min(end for _, end in spans[:2]))

    def test_branches_join_and_context(self):
        with tempfile.TemporaryDirectory() as meet:
            outcome = run("branches", given={"meet": meet})
        self.assertEqual(outcome.code, 0, outcome.stderr)
        output = outcome.json["output"]
        self.assertEqual((output["both"], output["status"], output["absent"]), ({"ok": True}, 0, "none"))
        self.assertRegex(" ".join(output["ids"]), "^[0-9a-f]{24} [0-9a-f]{24} fixture stanley$")

    def test_timeout_is_a_failure_without_an_error(self):
        outcome = run("timed_out")
        self.assertEqual(outcome.json["status"], "failed")
        self.assertEqual(outcome.json["errors"], [])
        self.assertEqual(outcome.json["output"]["seen"], ["failed", -9, "Action failed to complete in 1 seconds"])

    def test_wrong_expression(self):
        outcome = run("wrong_expression", given={"x": "1"})
        self.assertEqual((outcome.code, outcome.json["output"]), (1, {"x": "1"}))
        self.assertIn("Unable to resolve key 'nothing'", outcome.json["errors"][0]["message"])
        self.assertNotIn("two", outcome.tasks())

    def test_a_refused_parameter_fails_the_workflow(self):
        outcome = run("wrong_parameter", given={"x": "1"})
        self.assertEqual(outcome.code, 1)
        self.assertIn("is not one of", outcome.json["errors"][0]["message"])

    def test_output_schema(self):
        with tempfile.TemporaryDirectory() as directory:
            copy = os.path.join(directory, "pack")
            shutil.copytree(FIXTURE, copy, symlinks=True)
            for kind, code in (("integer", 0), ("string", 1)):
                with open(os.path.join(copy, "actions", "plain.yaml"), "w") as file:
                    file.write("name: plain\nrunner_type: local-shell-cmd\nparameters:\n  cmd: {default: echo 5}\n"
                               "output_schema: {type: object, properties: {stdout: {type: %s}, more: {type: string}}}\n"
                               % kind)
                outcome = run("--without-sudo", "plain", pack=copy)
                self.assertEqual(outcome.code, code, outcome.stderr)
        self.assertEqual(outcome.json["output"]["error"], "stdout: 5 is not of type 'string'")

    def test_retry(self):
        with tempfile.TemporaryDirectory() as directory:
            outcome = run("--without-sudo", "retried", given={"file": directory + "/f"})
        self.assertEqual(outcome.code, 0, outcome.stderr)
        self.assertEqual([task["status"] for task in outcome.json["tasks"]], ["failed", "failed", "succeeded"])

    def test_no_items_and_delay(self):
        outcome = run("with_delay")
        self.assertEqual((outcome.code, outcome.json["output"]), (0, {"results": []}))
        self.assertGreaterEqual(outcome.json["seconds"], 1)


class Inspect(unittest.TestCase):
    def test_the_fixture_is_fine(self):
        outcome = run("--inspect")
        self.assertEqual((outcome.code, outcome.text), (0, ""))

    def test_findings(self):
        action = "name: bad\nrunner_type: local-shell-script\nentry_point: probe\nparameters:\n"
        workflow = "version: 1.0\ntasks:\n  one:\n    action: fixture.strict\n"
        sensor = "class_name: S\nentry_point: x.py\ntrigger_types:\n  - name: t\n    "
        policy = "name: bad\nresource_ref: fixture.strict\npolicy_type: action.concurrency.attr\nparameters: {%s}\n"
        cases = [
            ("bad.yaml", action + "  on: {type: string}\n", "key True is no string"),
            ("../sensors/bad.yaml", sensor + "payload_schema: {type: object, required: [a], properties: {a: {type: string}}}\n",
             "t.payload_schema.required: "),
            ("../sensors/bad.yaml", sensor + "payload_schema: {properties: {a: {properties: {b: {items: {required: [c]}}}}}}\n",
             "t.payload_schema.properties.a.properties.b.items: {'required': ['c']} is not valid"),
            ("../sensors/bad.yaml", sensor + "schema: {}\n", "'schema' was unexpected"),
            ("../sensors/bad.yaml", sensor.replace("x.py", "y.py") + "payload_schema: {}\n", "entry_point: no file y.py"),
            ("../rules/bad.yaml", "name: bad\ntrigger: {type: x.y}\naction: {ref: fixture.strict}\n", 'parameter "must"'),
            ("../rules/bad.yaml", "name: bad\ntrigger: {}\naction: {ref: fixture.strict}\n", "trigger.type: 'type' is a required"),
            ("../rules/bad.yaml", "name: bad\ntrigger: {type: x.y}\naction: {ref: fixture.gone}\n", 'no action "fixture.gone"'),
            ("../policies/bad.yaml", policy % "threshold: many", "'many' is not of type 'integer'"),
            ("../policies/bad.yaml", policy % "action: cancel", "'threshold' is a required property"),
            ("../policies/bad.yaml", policy % "threshold: 1, attributes: [nope]", 'no parameter "nope"'),
            ("../policies/bad.yaml", policy % "threshold: 1, action: drop", "'drop' is not one of"),
            ("../aliases/bad.yaml", "name: bad\naction_ref: fixture.strict\n", "'pack' is a required property"),
            ("bad.yaml", action + "  a: {type: strin}\n", "parameters.a.type: "),
            ("bad.yaml", action + "  a: {type: string, requird: true}\n", "'requird' was unexpected"),
            ("bad.yaml", action + "  a: {type: integer, default: many}\n", "parameters.a: "),
            ("bad.yaml", action + "  a: {type: string, position: 1}\n  b: {type: string, position: 1}\n",
             "same position"),
            ("bad.yaml", action + "  a: {type: string, position: 0}\n  b: {type: string, position: 2}\n",
             "not contiguous"),
            ("bad.yaml", action + "  a: {type: string, immutable: true}\n", "requires a default value"),
            ("bad.yaml", action + "  a: {type: integer, immutable: true, default: '{{ config_context.n }}'}\n",
             "template cannot be the default"),
            ("bad.yaml", action + "  a: {type: string, secret: true}\n", "would be on the command line"),
            ("bad.yaml", action + "  timeout: {type: string}\n", "cannot be overridden"),
            ("bad.yaml", action + "  a: {type: string}\n  a: {type: string}\n", 'key "a" is given twice'),
            ("bad.yaml", action + "  a: {type: string}\noutput_schema: {stdout: {type: object}}\n",
             "'stdout' was unexpected"),
            ("bad.yaml", action + "  a: {type: string}\noutput_schema: {properties: {}}\n", "a schema with one type"),
            ("bad.yaml", action + "  a: {type: string}\noutput_schema: {type: object, required: [stdout]}\n",
             "output_schema.required: "),
            ("../pack.yaml", "name: fixture\ndescription: d\nauthor: a\nversion: '1'\n", "version: '1' does not match"),
            ("../pack.yaml", "name: fixture\nversion: 0.1.0\nauthor: a\n", "description"),
            ("bad.yaml", action.replace("entry_point: probe", "entry_point: ../workflows/join.yaml"),
             "path traversal"),
            ("bad.yaml", action.replace("entry_point: probe", "entry_point: gone"), "no file actions/gone"),
            ("bad.yaml", action.replace("name: bad", "name: other"), "in a file named bad"),
            ("branches.yaml", "name: branches\nrunner_type: orquesta\nentry_point: workflows/branches.yaml\n"
                              "parameters:\n  extra: {type: string}\n",
             'parameter "extra" of action fixture.branches is no input'),
            ("workflows/branches.yaml", workflow, 'missing required parameter "must"'),
            ("workflows/branches.yaml", workflow + "    input: {must: x, nope: 1, cmd: y}\n",
             'has no parameter "nope"'),
            ("workflows/branches.yaml", workflow + "    input: {must: x, cmd: y}\n", '"cmd" is immutable'),
            ("workflows/branches.yaml", workflow.replace("strict", "gone"), 'no action "fixture.gone"'),
            ("workflows/branches.yaml", workflow.replace("strict", "strict must=x"), "inline parameters"),
            ("workflows/branches.yaml", workflow + "    input: {must: <% ctx(gone) %>}\n",
             'Variable "gone" is referenced'),
            ("workflows/branches.yaml", workflow + "    input: {must: '<% 1 + %>'}\n", "(expression)"),
            ("workflows/branches.yaml", workflow + "    input: {must: x}\n    next: [{do: two}]\n",
             '"two" is not defined'),
            ("workflows/branches.yaml", "version: 1.0\ninput: [x]\n" + workflow[13:] + "    input: {must: x}\n",
             'input "x" is no parameter'),
        ]
        with tempfile.TemporaryDirectory() as directory:
            for number, (name, text, message) in enumerate(cases):
                copy = os.path.join(directory, str(number))
                shutil.copytree(FIXTURE, copy, symlinks=True)
                os.makedirs(os.path.dirname(os.path.join(copy, "actions", name)), exist_ok=True)
                if "sensors" in name:
                    open(os.path.join(copy, "sensors", "x.py"), "w").close()
                with open(os.path.join(copy, "actions", name), "w") as file:
                    file.write(text)
                with self.subTest(message):
                    findings = inspect(copy)
                    self.assertTrue(any(message in finding for finding in findings), findings)


def inspect(path):
    import inspection
    return inspection.inspect(packs.Pack(path))


if __name__ == "__main__":
    sidebyside.main()
