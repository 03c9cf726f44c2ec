"""Tests of this pack as StackStorm runs it: `$(./setup.sh) test_pack.py`."""
import os
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import pack as packs  # noqa: E402
import params  # noqa: E402
import runner  # noqa: E402

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
            if action.runner == "orquesta":
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

    def test_the_runners_own_parameters_are_refused(self):
        hostile = {"kwarg_op": "x; touch out; : --", "cwd": "/tmp", "env": {"PATH": "/tmp"}, "content_version": "HEAD~1",
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


if __name__ == "__main__":
    unittest.main()
