"""Tests of this pack as StackStorm runs it: `$(./setup.sh) test_pack.py`."""
import os
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import pack as packs  # noqa: E402
import aliases  # noqa: E402
import engine  # noqa: E402
import params  # noqa: E402
import runner  # noqa: E402
import sidebyside  # noqa: E402

PACK = packs.Pack(os.path.join(HERE, "..", ".."))
CONFIG = {**PACK.config(), "primary": "192.0.2.1", "secondaries": ["192.0.2.2"], "rabbitmq_password": "s3cret'\"\n"}


def actions():
    for path in PACK.action_files():
        yield PACK.action(packs.load_yaml(path)["name"])


def rendered(action, given):
    return params.render(packs.RUNNERS[action.runner], action.parameters, given, CONFIG, {"pack": PACK.name})


def needed(action):
    """What an action has to be given."""
    return {name: (meta.get("enum") or ["192.0.2.1"])[0] for name, meta in action.parameters.items()
            if meta.get("required") and "default" not in meta}


class Arguments(unittest.TestCase):
    """What a user gives is one argument of the program, and nothing else to the shells before it."""

    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        os.mkdir(os.path.join(self.directory.name, "actions"))
        entry = os.path.join(self.directory.name, "actions", "st2ha")
        with open(entry, "w", encoding="utf-8") as file:
            file.write("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
        self.node = runner.Node(pack_path=self.directory.name)

    def argv(self, action, given):
        """The program's arguments: the runner's command line, taken apart by the shells that it goes through."""
        runner_params, action_params = rendered(action, given)
        env = {**os.environ, "PATH": os.path.join(HERE, "testdata", "bin") + os.pathsep + os.environ["PATH"]}
        done = subprocess.run(self.node.command(action, runner_params, action_params), shell=True, check=True, env=env,
                              cwd=self.directory.name, capture_output=True, text=True, timeout=20)
        self.assertEqual(os.listdir(self.directory.name), ["actions"], action.ref)
        return action_params, done.stdout.split("\0")[:-1]

    def test_text_is_one_argument(self):
        for action in actions():
            if action.runner != "local-shell-script":
                continue
            texts = [name for name, meta in action.parameters.items()
                     if meta.get("type") == "string" and not meta.get("immutable") and not meta.get("enum")]
            for text in ("x; touch out; :", "$(touch out)`touch out`", "a'b\"c\\d", "a\nb\ttouch out\n", "--help", " ", "*",
                         "ü\u2028 & | < > ! # ~"):
                with self.subTest(action.ref, text=text):
                    given = {**needed(action), **{name: text for name in texts}}
                    values, argv = self.argv(action, given)
                    self.assertEqual(argv[-1], action.name)
                    for name in texts:
                        self.assertEqual(values[name], text)
                        self.assertIn("--%s=%s" % (name, text), argv)

    def test_secret_parameters_are_in_the_environment_alone(self):
        for action in actions():
            secret = [name for name, meta in action.parameters.items() if meta.get("secret") and name != "sudo_password"]
            if not secret:
                continue
            self.assertEqual(action.runner, "local-shell-cmd")
            for text in ("s3cret'\"\\ $(x) ü", "-----BEGIN\nline\n"):
                with self.subTest(action.ref, text=text):
                    given = {**needed(action), **{name: text for name in secret}, "dry_run": True, "wait": 5}
                    runner_params, action_params = rendered(action, given)
                    line = self.node.command(action, runner_params, action_params)
                    self.assertNotIn("s3cret", line)
                    self.assertTrue(line.endswith("'exec /opt/stackstorm/packs/st2ha/actions/st2ha %s'" % action.name), line)
                    for name in secret:
                        self.assertEqual(runner_params["env"]["ST2HA_" + name.upper()], text)
                    for name, want in {"host": "192.0.2.1", "dry_run": "True", "wait": "5", "run": ""}.items():
                        self.assertEqual(runner_params["env"]["ST2HA_GIVEN_" + name.upper()], want)

    def test_the_runners_own_parameters_are_refused(self):
        hostile = {"cmd": "touch out", "kwarg_op": "x; touch out; : --", "cwd": "/tmp", "env": {"PATH": "/tmp"}, "content_version": "HEAD~1",
                   "debug": True, "sudo": False, "sudo_password": "x", "notify": ["x"]}
        for action in actions():
            for name in set(packs.RUNNERS[action.runner]) - {"timeout"}:
                with self.subTest(action.ref, parameter=name), self.assertRaisesRegex(params.ParamError, "immutable"):
                    rendered(action, {**needed(action), name: hostile[name]})

    def test_an_open_kwarg_op_is_a_shell(self):
        """Why the runner's parameters are fixed, and that the runner here would show it."""
        action = PACK.action("verify_node")
        action.parameters = {name: meta for name, meta in action.parameters.items() if name != "kwarg_op"}
        with self.assertRaisesRegex(AssertionError, "out"):
            self.argv(action, {**needed(action), "verbose": True, "kwarg_op": "x; touch out; : --"})


HOSTILE = "{{ config_context.rabbitmq_password }} {% x %} <% ctx().st2 %> ```<!channel> @all " + "x" * 5000


class Aliases(unittest.TestCase):
    """What people type in chat, and what they are told."""

    COMMANDS = {
        "st2ha status": ("status", {}),
        "  st2ha   status": None,  # blanks between words count
        "st2ha join": ("join", {}),
        "st2ha join 192.0.2.2": ("join", {"secondaries": ["192.0.2.2"]}),
        "st2ha join 192.0.2.2, 192.0.2.3 dry_run=true": ("join", {"secondaries": ["192.0.2.2", "192.0.2.3"], "dry_run": True}),
        "st2ha maintenance on 192.0.2.2": ("maintenance_on", {"host": "192.0.2.2", "lasts": 7200, "mode": "on"}),
        "st2ha maintenance on 192.0.2.2 600 reason='new disk'": (
            "maintenance_on", {"host": "192.0.2.2", "lasts": 600, "mode": "on", "reason": "new disk"}),
        "st2ha maintenance off 192.0.2.2": ("maintenance_off", {"host": "192.0.2.2", "mode": "off"}),
        "st2ha heals 192.0.2.2": ("heals", {"host": "192.0.2.2"}),
        "st2ha": None, "st2ha heals": None, "st2ha maintenance 192.0.2.2": None, "run st2ha status": None,
    }

    def setUp(self):
        self.aliases = aliases.load(PACK.path)

    def test_commands(self):
        for command, wanted in self.COMMANDS.items():
            with self.subTest(command):
                found = aliases.matching(self.aliases, command)
                self.assertEqual(len(found), 1 if wanted else 0, found)
                for name, given in found:
                    action = PACK.action(self.aliases[name]["action_ref"])
                    given = aliases.execution_parameters(self.aliases[name], action, given)
                    self.assertEqual((name, given), wanted)
                    rendered(action, given)
        self.assertEqual({wanted[0] for wanted in self.COMMANDS.values() if wanted}, set(self.aliases), "each is shown")
        with self.assertRaisesRegex(ValueError, "Immutable"):
            alias = self.aliases["maintenance_on"]
            aliases.execution_parameters(alias, PACK.action("maintenance"), {"host": "192.0.2.2", "mode": "off"})

    def test_names(self):
        """persistence/actionalias.py: StackStorm finds aliases by name alone, whatever their pack."""
        for name, alias in self.aliases.items():
            self.assertEqual(alias["name"], "st2ha_" + name)
            for form in alias["formats"]:
                self.assertRegex(form["display"], "^st2ha ")

    def test_what_is_said(self):
        error = {"code": "immutable", "message": HOSTILE, "hint": HOSTILE}
        finding = {"severity": "warning", "host": HOSTILE, "check": "healed", "message": HOSTILE, "fix": ""}
        step = {"findings": [finding], "changes": [{"kind": "file", "target": HOSTILE, "diff": ""}], "error": error}
        workflow = {"nodes": {HOSTILE: [HOSTILE]}, "failure": {"code": "x", "host": HOSTILE, "message": HOSTILE, "hint": ""}}
        results = [None, {}, {"error": HOSTILE, "traceback": ""}, {"stdout": HOSTILE}, {"stdout": step}, {"output": None},
                   {"output": workflow}, {"stdout": {"findings": [], "changes": []}}, {"output": {"nodes": {}, "failure": {}}}]
        for name, alias in self.aliases.items():
            for result in results:
                with self.subTest(name, result=result):
                    text = aliases.message(alias, {"id": "5c3f", "status": "failed", "result": result})
                    self.assertRegex(text.split("\n")[0], "^[A-Z][a-z ]+: failed$")
                    self.assertLess(len(text), 1600)
                    self.assertEqual(text.count("```"), 2)
                    self.assertNotRegex(text, "[{}<@]")
            ack = packs.yaml.safe_dump(alias["ack"])
            self.assertNotIn("{", ack, "what was typed is not said again")
        said = aliases.message(self.aliases["heals"], {"status": "succeeded", "result": {"stdout": {
            "changes": [], "findings": [{**finding, "host": "192.0.2.2", "message": "heals of redis-server.service: 1"}]}}})
        self.assertEqual(said, "Heals: succeeded\n```warning 192.0.2.2 healed: heals of redis-server.service: 1```")
        said = aliases.message(self.aliases["join"], {"status": "failed", "result": {"output": {
            "nodes": {PRIMARY: ["preflight: in order"]}, "failure": {
                "code": "x", "host": PRIMARY, "message": "it was away", "hint": "start it"}}}})
        self.assertEqual(said, "Join: failed\n```192.0.2.1 preflight: in order\nx 192.0.2.1: it was away -> start it```")


PRIMARY, SECONDARIES = "192.0.2.1", ["192.0.2.2", "192.0.2.3"]
DIFF = "--- a/etc/x\n+++ b/etc/x\n@@ -1 +1 @@\n-a\n+\tb: c\n"


def printed(step, host, **more):
    """What a step prints; it changed one file."""
    return {"step": step, "host": host, "run": "r", "changed": True, "dry_run": False, "duration_ms": 1, "findings": [],
            "changes": [{"kind": "file", "target": "/etc/x", "diff": DIFF}], **more}


def shell(code, stdout="", stderr="", **more):
    """local_runner/base.py:249, the result of a process that ended."""
    return {"failed": code != 0, "succeeded": code == 0, "return_code": code, "stdout": stdout, "stderr": stderr, **more}


ERROR = {"code": "immutable", "message": "write /etc/x: operation not permitted", "hint": "chattr -i /etc/x"}
# Each way in which an action ends badly: its status and result in StackStorm, and what has to be said of it.
ENDS = {
    "its own error": (
        lambda step, host: ("failed", shell(1, printed(step, host, changed=False, changes=[], error=ERROR), "a log\n")),
        ERROR["code"], ERROR["message"]),
    # The launcher's, which does not know what it is called for.
    "no program": (lambda step, host: ("failed", shell(3, printed("", "", changed=False, changes=[], error=ERROR))),
                   ERROR["code"], ERROR["message"]),
    "no output at all": (lambda *_: ("failed", shell(1)), "no_result", "exit code 1"),
    "only a log": (lambda *_: ("failed", shell(127, "", "one\nbash: line 1: st2ha: not found")), "no_result",
                   "exit code 127: bash: line 1: st2ha: not found"),
    "no JSON": (lambda *_: ("failed", shell(2, "one\npanic: <% ctx(x) %> {{ y }}")), "no_result",
                "exit code 2: panic: <% ctx(x) %> {{ y }}"),
    "other JSON": (lambda *_: ("failed", shell(2, 5, [1])), "no_result", "exit code 2: 5"),
    "a result, and a bad end after it": (lambda step, host: ("failed", shell(137, printed(step, host), "Killed")),
                                         "no_result", "exit code 137: Killed"),
    # local_runner/base.py:227
    "a time-out": (lambda *_: ("timeout", shell(-9, "", "", error="Action failed to complete in 720 seconds")),
                   "no_result", "Action failed to complete in 720 seconds"),
    "killed": (lambda *_: ("abandoned", shell(-15)), "no_result", "exit code -15"),
    # st2common/services/executions.py:237: the runner was shut down.
    "abandoned": (lambda *_: ("abandoned", {}), "no_result", "its action runner was stopped or restarted meanwhile"),
    # st2actions/container/base.py:158
    "an exception in the runner": (
        lambda *_: ("failed", {"error": "primary:27017: connection closed", "traceback": "  File x\n"}), "no_result",
        "primary:27017: connection closed"),
}


class Node:
    """A node on which all goes well, but for one action on one host."""

    def __init__(self, step="", host="", end=None):
        self.step, self.host, self.end, self.ran = step, host, end, []

    def run(self, action, _, given, __):
        host = given.get("host", given.get("primary"))
        self.ran.append((action.name, host))
        if (action.name, host) == (self.step, self.host):
            return self.end(action.name, host)
        return "succeeded", shell(0, printed(action.name, host))

    def note(self, *_):
        return None


class Engine(engine.Engine):
    """Lets a nested workflow end otherwise than by its own tasks, and an action be disabled."""

    workflow_end = disabled = None

    def prepare(self, ref, given, context):
        if ref == "st2ha.%s" % self.disabled:
            # st2common/services/action.py:95
            raise ValueError('Unable to execute. Action "%s" is disabled.' % ref)
        return super().prepare(ref, given, context)

    def run(self, prepared, context, path=""):
        if path and prepared[0].runner == "orquesta" and self.workflow_end:
            return self.workflow_end
        return super().run(prepared, context, path)


def join(node, workflow_end=None, disabled=None, name="join_secondary", **given):
    config = {**CONFIG, "primary": PRIMARY, "secondaries": SECONDARIES}
    run = Engine(PACK, config, node)
    run.workflow_end, run.disabled = workflow_end, disabled
    context = {"user": "stanley", "pack": PACK.name}
    return run.run(run.prepare(name, {"run": "r", **given}, context), context)


# The tasks of a join in their order: (the action, the host) where it may fail.
STEPS = [("preflight", PRIMARY), ("configure_mongodb", PRIMARY), ("configure_st2", PRIMARY), ("configure_rabbitmq", PRIMARY),
         ("export_nfs", PRIMARY), ("configure_st2", SECONDARIES[1]), ("mount_nfs", SECONDARIES[0]),
         ("restart_st2", SECONDARIES[1]), ("verify_node", SECONDARIES[0]), ("restart_st2", PRIMARY), ("verify_node", PRIMARY),
         ("install_watchdog", SECONDARIES[1])]


NOTHING = ("succeeded", {"output": {"changed": False, "failure": {}, "nodes": {}, "run": "r", "steps": []}})


class Result(unittest.TestCase):
    """What a join returns, however it ends."""

    def failure(self, result, step, host, code, reason):
        output = result["output"]
        self.assertEqual(list(output), ["changed", "failure", "nodes", "run", "steps"])
        self.assertEqual(sorted(output), list(output), "st2 execution get sorts them")
        failure = output["failure"]
        self.assertEqual((failure["step"], failure["host"], failure["code"]), (step, host, code), failure)
        self.assertIn(reason, failure["message"])
        self.assertGreater(len(failure["hint"]), 10)
        for error in result["errors"]:
            self.assertNotIn("Evaluation", error["message"])
        return output

    def failed(self, number, kind, keep):
        step, host = STEPS[number]
        end, code, reason = ENDS[kind]
        with self.subTest(step=step, host=host, end=kind, keep_on_failure=keep):
            node = Node(step, host, end)
            # What comes after the nested workflow does not depend on it, and it takes its time here.
            status, result = join(node, workflow_end=NOTHING if number > 4 else None, keep_on_failure=keep)
            self.assertEqual(status, "failed")
            output = self.failure(result, step, host, code, reason)
            lines = [line for line in output["nodes"][host] if line.startswith(step + ": failed: ")]
            self.assertEqual(len(lines), 1, output["nodes"])
            self.assertIn(reason, lines[0])
            undone = [at for name, at in node.ran if name == "rollback"]
            if keep or number == 0:
                self.assertEqual(undone, [])
            elif number <= 4:
                self.assertEqual(undone, [PRIMARY])
            else:
                self.assertEqual((sorted(undone[:-1]), undone[-1]), (SECONDARIES, PRIMARY))
            for at in undone:
                self.assertIn("rollback: 1 change made: /etc/x", output["nodes"][at])

    def test_each_step_says_why(self):
        for number in range(len(STEPS)):
            self.failed(number, "its own error", number % 2 == 1)
            self.failed(number, "abandoned", number % 2 == 0)

    def test_each_way_to_fail_is_said(self):
        for number in (0, 1, 5):  # of the workflow's own, of a nested one's, of a list's
            for kind in ENDS:
                self.failed(number, kind, False)

    def test_a_nested_workflow_that_ends_by_itself(self):
        for end, reason in (
                (("abandoned", {}), "its action runner was stopped"),
                (("failed", {"output": None, "errors": [{"message": "database is away"}]}), "database is away"),
                (("failed", {"output": {"steps": [], "failure": {}}, "errors": [
                    {"type": "error", "message": "Execution failed. See result for details.", "task_id": "configure_mongodb",
                     "result": {"error": "connection closed", "traceback": ""}}]}), "configure_mongodb: connection closed")):
            with self.subTest(reason):
                node = Node()
                status, result = join(node, workflow_end=end)
                self.assertEqual(status, "failed")
                self.failure(result, "prepare_primary", PRIMARY, "no_result", reason)
                self.assertIn(("rollback", PRIMARY), node.ran, "it may not have come to undo anything")

    def test_undoing_fails(self):
        node = Node("rollback", SECONDARIES[0], ENDS["abandoned"][0])
        run = node.run

        def both(action, *rest):
            if action.name == "mount_nfs":
                return ENDS["its own error"][0](action.name, rest[1]["host"])
            return run(action, *rest)
        node.run = both
        _, result = join(node)
        output = self.failure(result, "mount_nfs", SECONDARIES[0], ERROR["code"], ERROR["message"])
        self.assertRegex(" ".join(output["nodes"][SECONDARIES[0]]), "rollback: failed: .*its action runner was stopped")

    def test_what_was_not_run(self):
        """services/workflows.py, request_next_tasks: a task that cannot be requested fails the workflow, and no more."""
        for step, name in (("preflight", "preflight"), ("mount_nfs", "mount_nfs"), ("verify_node", "verify_secondaries"),
                           ("configure_rabbitmq", "prepare_primary")):
            with self.subTest(step):
                node = Node()
                status, result = join(node, disabled=step)
                self.assertEqual(status, "failed")
                if name == "prepare_primary":  # what it did is undone by the workflow around it
                    self.failure(result, name, PRIMARY, "no_result", 'Action "st2ha.configure_rabbitmq" is disabled')
                    self.assertIn(("rollback", PRIMARY), node.ran)
                    continue
                output = self.failure(result, name, "", "not_run", "errors beside this")
                self.assertRegex(output["failure"]["hint"], "rollback host=HOST only=RUN .* the id of this execution")
                self.assertIn("is disabled", str(result["errors"]))

    def test_cancelled(self):
        for number, (step, host) in enumerate(STEPS):
            with self.subTest(step=step, host=host):
                node = Node(step, host, lambda *_: ("canceled", {}))
                status, result = join(node, workflow_end=NOTHING if number > 4 else None)
                self.assertEqual(status, "canceled")
                self.assertEqual(result["output"]["failure"]["code"], "not_run")
                self.assertTrue(result["output"]["failure"]["step"])
                self.assertRegex(result["output"]["failure"]["hint"], "RUN r$")

    def test_at_a_glance(self):
        """A line for each step of a node, in its order, and every detail once."""
        finding = {"severity": "warning", "host": SECONDARIES[0], "check": "clock", "message": "2 s ahead", "fix": "ntp"}
        node = Node("preflight", PRIMARY, lambda step, host: (
            "succeeded", shell(0, printed(step, host, changed=False, changes=[], findings=[finding]))))
        status, result = join(node)
        self.assertEqual(status, "succeeded")
        output = result["output"]
        self.assertEqual((output["changed"], output["failure"], output["run"]), (True, {}, "r"))
        changed = ": 1 change made: /etc/x"
        self.assertEqual(output["nodes"][PRIMARY], ["preflight: in order"] + [step + changed for step in (
            "configure_mongodb", "configure_st2", "configure_rabbitmq", "export_nfs", "restart_st2", "verify_node",
            "install_watchdog", "restart_st2")])
        self.assertEqual(output["nodes"][SECONDARIES[0]], ["warning clock: 2 s ahead -> ntp"] + [step + changed for step in (
            "configure_st2", "sync_keys", "mount_nfs", "restart_st2", "verify_node", "install_watchdog", "restart_st2")])
        self.assertEqual(len(output["steps"]), 23)
        self.assertEqual(output["steps"][1]["changes"], [{"kind": "file", "target": "/etc/x", "diff": DIFF.strip().split("\n")}])
        text = shown(result)
        head = text[:text.index("    steps:")]
        self.assertLess(head.count("\n"), 40, head)
        self.assertNotIn("@@", head)
        self.assertIn("      - '@@ -1 +1 @@'\n", text, "diffs are lines, not one long text")

    def test_sensors_are_shared(self):
        """Only if asked for, and on the primary first: until its agent is there, it runs all of them."""
        node = Node()
        _, result = join(node, sensors="shared")
        shared = [("share_sensors", at) for at in [PRIMARY] + SECONDARIES]
        self.assertEqual([ran for ran in node.ran if ran[0] == "share_sensors"], shared)
        self.assertTrue(any(line.startswith("share_sensors") for line in result["output"]["nodes"][SECONDARIES[1]]))
        node = Node("share_sensors", SECONDARIES[1], ENDS["abandoned"][0])
        status, result = join(node, sensors="shared")
        self.assertEqual((status, result["output"]["failure"]["step"]), ("failed", "share_sensors"))
        self.assertEqual([at for name, at in node.ran if name == "rollback"], SECONDARIES + [PRIMARY])
        node = Node()
        join(node)
        self.assertNotIn("share_sensors", [name for name, _ in node.ran])

    def test_dry_run(self):
        node = Node()
        node.run = lambda action, _, given, __: ("succeeded", shell(0, printed(
            action.name, given.get("host", given.get("primary")), changed=False, dry_run=True)))
        _, result = join(node, dry_run=True)
        self.assertFalse(result["output"]["changed"])
        self.assertIn("configure_mongodb: 1 change to make: /etc/x", result["output"]["nodes"][PRIMARY])

    def test_a_dry_run_shows_the_restarts(self):
        """Nothing is owed after a dry run: restart_st2 is told of what it would have to make up for."""
        def run(action, _, given, __):
            out = printed(action.name, given.get("host", given.get("primary")), changed=False, dry_run=True, changes=[])
            if action.name == "configure_st2" or action.name == "restart_st2" and given.get("force"):
                out["changes"] = [{"kind": "restart_st2", "target": "st2", "diff": "st2ctl restart"}]
            return "succeeded", shell(0, out)
        node = Node()
        node.run = run
        _, result = join(node, dry_run=True)
        for host in [PRIMARY] + SECONDARIES:
            self.assertIn("restart_st2: 1 change to make: st2", result["output"]["nodes"][host], host)

    def test_nothing_is_healed_meanwhile(self):
        for step, host in ((None, None), ("mount_nfs", SECONDARIES[0])):
            node = Node(step, host, ENDS["abandoned"][0])
            join(node)
            everybody = [("maintenance", at) for at in [PRIMARY] + SECONDARIES]
            self.assertEqual(sorted(node.ran[1:4]), everybody, "before anything is changed")
            self.assertEqual(sorted(node.ran[-3:]), everybody, "it ends a minute after the workflow")
            self.assertEqual(sum(name == "maintenance" for name, _ in node.ran), 6)
        node = Node()
        join(node, dry_run=True)
        self.assertNotIn("maintenance", [name for name, _ in node.ran])

    def test_prepare_primary_alone(self):
        status, result = join(Node(), name="prepare_primary")
        self.assertEqual((status, result["output"]["failure"]), ("succeeded", {}))
        for step in ("configure_mongodb", "restart_st2"):
            node = Node(step, PRIMARY, ENDS["abandoned"][0])
            status, result = join(node, name="prepare_primary")
            self.assertEqual(status, "failed")
            self.failure(result, step, PRIMARY, "no_result", "its action runner was stopped")
            self.assertEqual(node.ran[-1], ("rollback", PRIMARY))


def shown(result):
    """st2client/formatters/execution.py:88, how st2 run and st2 execution get print a result."""
    text = packs.yaml.dump({"result": result}, default_flow_style=False, width=2 ** 31 - 1, indent=2,
                           Dumper=packs.yaml.SafeDumper)
    return text.replace("\n\n", "\n").replace("\\n", "\n").replace('\\"', '"')


if __name__ == "__main__":
    sidebyside.main()
