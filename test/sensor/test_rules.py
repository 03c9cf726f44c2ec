"""Tests of the rules: which of them take an event, and what their actions get: `$(../workflow/setup.sh) test_rules.py`."""
import json
import os
import re
import subprocess
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
PACK = os.path.join(HERE, "..", "..")
sys.path.insert(0, os.path.join(HERE, "..", "workflow"))
import pack as packs  # noqa: E402  pylint: disable=wrong-import-position
import inspection  # noqa: E402  pylint: disable=wrong-import-position
import params  # noqa: E402  pylint: disable=wrong-import-position
import rules as engine  # noqa: E402  pylint: disable=wrong-import-position
import runner  # noqa: E402  pylint: disable=wrong-import-position
from stackstorm import StackStorm  # noqa: E402  pylint: disable=wrong-import-position

TIMER = "core.st2.IntervalTimer"


def event(backend, endpoint, state, reason="", probe="ping", previous="suspect", node="node2", **more):
    return {"event": "backend_changed", "id": "5c3f", "seq": 2, "backend": backend, "endpoint": endpoint, "node": node, "source": "sensor",
            "state": state, "previous": previous, "probe": probe, "reason": reason, "detected_at": "2026-03-01T12:00:00.000Z",
            "since": "2026-03-01T11:59:57.000Z", "after_ms": 3000, **more}


PACKS = "/opt/stackstorm/packs"
RUN = "2026-03-01T120"  # the ten minutes of the event
# An event, and each rule that takes it with what its action gets.
EVENTS = [
    (event("mount", PACKS, "down", "mount hung for 4.2 s", "mount"), {
        "mount_hung": {"host": "node2", "directory": PACKS, "wait": 120, "run": RUN},
        "mount_stuck": {"host": "node2", "directory": PACKS, "wait": 120, "run": RUN, "detach": True}}),
    (event("mount", PACKS, "down", "stale file handle: the export is withdrawn, or its directory was deleted or replaced on the server", "mount"), {
        "mount_stuck": {"host": "node2", "directory": PACKS, "wait": 120, "run": RUN, "detach": True}}),
    (event("mount", PACKS, "down", "not mounted", "mount"), {"mount_missing": {"host": "node2", "directory": PACKS, "wait": 120, "run": RUN}}),
    (event("mount", PACKS, "suspect", "mount hung for 1.0 s", "mount", "up"), {}),
    (event("nfs", "10.0.0.1:2049", "down", "export /opt/stackstorm/packs withdrawn", "export /opt/stackstorm/packs"), {
        "export_withdrawn": {"host": "10.0.0.1", "directory": PACKS, "wait": 120, "run": RUN}}),
    (event("nfs", "10.0.0.1:2049", "down", "export /opt/stackstorm/packs withdrawn: the server exports nothing to this node",
           "export /opt/stackstorm/packs"), {"export_withdrawn": {"host": "10.0.0.1", "directory": PACKS, "wait": 120, "run": RUN}}),
    (event("nfs", "10.0.0.1:2049", "down", "export /opt/stackstorm/packs: its directory was deleted or replaced on the server",
           "export /opt/stackstorm/packs"), {}),
    (event("nfs", "10.0.0.1:2049", "down", "connection refused", "connection"), {
        "backend_down": {"host": "10.0.0.1", "backend": "nfs", "endpoint": "10.0.0.1:2049", "wait": 120, "run": RUN}}),
    (event("redis", "127.0.0.1:6379", "down", "connection refused", "connection"), {
        "backend_down": {"host": "node2", "backend": "redis", "endpoint": "127.0.0.1:6379", "wait": 120, "run": RUN}}),
    (event("mongodb", "[2001:db8::1]:27017", "down", "no answer for 3.1 s"), {
        "backend_down": {"host": "2001:db8::1", "backend": "mongodb", "endpoint": "[2001:db8::1]:27017", "wait": 120, "run": RUN}}),
    (event("rabbitmq", "mq2.example:5672", "down", "no answer for 3.1 s", healed_by="watchdog"), {
        "backend_down": {"host": "mq2.example", "backend": "rabbitmq", "endpoint": "mq2.example:5672", "wait": 120, "run": RUN}}),
    (event("rabbitmq", "10.0.0.1:5672", "down", "memory alarm: publishers are blocked", "alarm"), {}),
    (event("mongodb", "10.0.0.1:27017", "down", "no primary in replica set rs0", "primary"), {}),
    (event("rabbitmq", "10.0.0.1:5672", "down", "login refused: user st2 deleted", "login"), {
        "login_refused": {"message": "rabbitmq at 10.0.0.1:5672, seen from node2: login refused: user st2 deleted"}}),
    (event("mongodb", "10.0.0.1:27017", "down", "login refused: {{ config_context.rabbitmq_password }}{% x %}", "login"), {
        "login_refused": {"message": "mongodb at 10.0.0.1:27017, seen from node2: login refused: (( config_context.rabbitmq_password }}(% x %}"}}),
    (event("st2", "st2workflowengine", "down", "st2workflowengine is active but nobody consumes st2.workflow.work", "consumers"), {
        "services_deaf": {"host": "node2", "wait": 120, "run": RUN}}),
    (event("rabbitmq", "10.0.0.1:5672", "up", "", previous="down", lasted_ms=9000), {"sweep_after_recovery": {"run": RUN}}),
    (event("st2", "st2actionrunner@1", "up", "", previous="down", lasted_ms=9000), {"sweep_after_recovery": {"run": RUN}}),
    (event("st2", "st2notifier", "up", "", previous="down", lasted_ms=9000), {}),
    (event("redis", "10.0.0.1:6379", "up", "", previous="flapping", lasted_ms=9000), {}),
    (event("rabbitmq", "10.0.0.1:5672", "up", "", previous="suspect", lasted_ms=400), {}),
    (event("rabbitmq", "10.0.0.1:5672", "up", "", previous="unknown"), {}),
    (event("rabbitmq", "10.0.0.1:5672", "flapping", "9 of 21 findings changed"), {}),
    (event("node", "node2", "cut_off", "none of 2 other hosts answers any more: this node is cut off", previous="up"), {}),
    (event("node", "node2", "up", "", previous="cut_off"), {}),
    ({"id": "1", "backend": "redis", "endpoint": "h:6379", "node": "n", "state": "down"}, {}),
    ({"event": "healing_gave_up", "target": "redis-server.service", "node": "node2", "heals": 3, "by": "watchdog",
      "reason": "healed 3 times within 10m0s, and down again: a person is needed", "at": "2026-03-01T12:00:00Z"}, {
          "healing_gave_up": {"message": "healing of redis-server.service on node2 gave up: healed 3 times within 10m0s, and down again: "
                                         "a person is needed"}}),
]
EVENTS.append(({"event": "backend_healed", "target": "redis-server.service", "node": "node2", "heals": 1, "by": "watchdog",
                "reason": "restarting redis-server.service: redis 127.0.0.1:6379: connection refused", "at": "2026-03-01T12:00:00Z"}, {}))
DISABLED = {"mount_stuck"}
FIELDS = {"name", "pack", "description", "enabled", "trigger", "criteria", "action"}


class RulesTest(unittest.TestCase):
    def setUp(self):
        self.pack = packs.Pack(PACK)
        self.rules = engine.load(PACK)
        sensor = packs.load_yaml(os.path.join(PACK, "sensors", "backend_sensor.yaml"))
        self.triggers = {"st2ha." + trigger["name"]: trigger for trigger in sensor["trigger_types"]}
        self.sensor = sensor

    def test_metadata(self):
        for name, rule in self.rules.items():
            with self.subTest(name):
                self.assertLessEqual(set(rule), FIELDS)
                self.assertEqual((rule["name"], rule["pack"]), (name, "st2ha"))
                self.assertGreater(len(rule["description"].split()), 15, "a stranger understands it")
                self.assertEqual(rule["enabled"], name not in DISABLED)
                self.assertIn(rule["trigger"]["type"], [*self.triggers, TIMER])
                properties = self.triggers.get(rule["trigger"]["type"], {}).get("payload_schema", {}).get("properties", {})
                for key, criterion in (rule.get("criteria") or {}).items():
                    field = properties[key.split("#")[0].partition(".")[2]]
                    self.assertIn(criterion["type"], engine.OPERATORS)
                    for value in criterion["pattern"] if isinstance(criterion["pattern"], list) else [criterion["pattern"]]:
                        self.assertIn(value, field.get("enum", [value]), key)

    def test_sensor(self):
        with open(os.path.join(PACK, "sensors", "backend_sensor.py"), encoding="utf-8") as file:
            events = re.search(r"^EVENTS = (.*)$", file.read(), re.M).group(1)
        self.assertTrue(os.path.exists(os.path.join(PACK, "sensors", self.sensor["entry_point"])))
        self.assertTrue(os.access(os.path.join(PACK, "actions", "st2ha-watch"), os.X_OK))
        self.assertEqual(set(self.triggers), {"st2ha." + name for name in re.findall(r'"([a-z_]+)"', events)})

    def test_events(self):
        taken, stackstorm = set(), StackStorm()
        for payload, wanted in EVENTS:
            trigger = "st2ha." + payload.get("event", "backend_changed")
            schema = self.triggers[trigger]["payload_schema"]
            stackstorm.validate(trigger, payload)
            self.assertLessEqual(set(payload), set(schema["properties"]))
            found = {name: engine.rendered(rule, payload) for name, rule in self.rules.items()
                     if rule["trigger"]["type"] == trigger and engine.takes(rule, payload)}
            self.assertEqual(found, wanted, payload.get("reason"))
            taken |= set(found)
            for name, given in found.items():
                self.check_action(self.rules[name], given)
        timed = {name for name, rule in self.rules.items() if rule["trigger"]["type"] == TIMER}
        self.assertEqual(taken | timed, set(self.rules), "every rule is shown to take something")
        for name in timed:
            self.check_action(self.rules[name], engine.rendered(self.rules[name], {"executed_at": "2026-03-01 12:00:00.1+00:00"}))

    def test_run_of_a_sweep(self):
        """Whoever asks for a sweep within the same ten minutes names the same run, by which the policy takes them for doubles."""
        timed = engine.rendered(self.rules["sweep_regularly"], {"executed_at": "2026-03-01 12:07:00.100000+00:00"})
        event = engine.rendered(self.rules["sweep_after_recovery"], {"detected_at": "2026-03-01T12:01:59.000Z"})
        self.assertEqual(timed["run"], event["run"])

    def test_descriptions(self):
        """What a rule's text says of time is what its action does."""
        patience = self.pack.action("st2ha.sweep_executions").parameters["patience"]["default"]
        self.assertEqual(patience, 15 * 60)
        text = " ".join(self.rules["sweep_regularly"]["description"].split())
        self.assertIn("fifteen minutes", text)
        self.assertNotIn("five minutes", text.replace("fifteen minutes", ""))

    def test_refused_events(self):
        """What StackStorm does not dispatch, the lab's rules are not asked about: they say why."""
        down = event("redis", "10.0.0.1:6379", "down", "connection refused", "connection")
        lines = [{"trigger": "st2ha.backend_changed", "payload": payload} for payload in (
            down, {**down, "state": "broken"}, {**down, "reason": None}, {**down, "after_ms": "3"}, {"event": "backend_changed"})]
        lines.append({"trigger": "st2ha.nothing", "payload": {}})
        said = subprocess.run([sys.executable, engine.__file__, "--pack", PACK], input="".join(json.dumps(line) + "\n" for line in lines),
                              capture_output=True, text=True, check=True).stdout
        answers = [json.loads(line) for line in said.splitlines()]
        self.assertEqual([answer[0]["rule"] for answer in answers[:1]], ["backend_down"])
        self.assertIsInstance(answers[2], list, "None is taken for what is optional")
        for answer, why in zip((answers[1], answers[3], answers[4], answers[5]), (
                "'broken' is not one of", "'3' is not", "is a required property", "doesn't exist in the database")):
            self.assertIn("Trigger payload validation failed and validation is enabled, not dispatching a trigger", answer["refused"])
            self.assertIn(why, answer["refused"])
        schema = json.loads(json.dumps(self.triggers["st2ha.backend_changed"]["payload_schema"]))
        schema["required"] = ["id"]
        self.assertIn("is not of type 'boolean'", engine.refusal({"st2ha.backend_changed": schema}, lines[0]))

    def test_forged_events(self):
        """What comes over a queue may be anybody's: no rule hands on an address, a name or a path that is none."""
        for text in ("{{ config_context.rabbitmq_password }}", "a;id", "a b", "-x", "a\nb", "a\n", "", "{% x %}", "$(id)"):
            for payload in (
                    event("redis", text, "down", "connection refused", "connection"),
                    event("redis", text + ":6379", "down", "connection refused", "connection"),
                    event("redis", "10.0.0.1:6379" + text, "down", "connection refused", "connection") if text else {},
                    event("redis", "10.0.0.1:6379", "down", "connection refused", "connection", node=text),
                    event("mount", text, "down", "not mounted", "mount"),
                    event("mount", "/" + text, "down", "not mounted", "mount") if "{" in text or "\n" in text else {},
                    event("mount", PACKS, "down", "mount hung", "mount", node=text),
                    event("nfs", "10.0.0.1:2049", "down", "export x withdrawn", "export " + text),
                    event("st2", "st2api", "down", node=text)):
                found = [name for name, rule in self.rules.items()
                         if rule["trigger"]["type"] == "st2ha.backend_changed" and engine.takes(rule, payload)]
                self.assertEqual(found, [], payload)
        forged = event("redis", "10.0.0.1:6379", "down", "connection refused", "connection", detected_at="{{ x }}; id\n20")
        given = engine.rendered(self.rules["backend_down"], forged)
        self.assertNotRegex(given["run"], "[^0-9T-]")

    def test_example_for_chat(self):
        """examples/rules: StackStorm takes the rule as it is, and what it says in chat has nothing that is rendered again."""
        examples = engine.load(os.path.join(PACK, "examples"))
        self.assertEqual(list(examples), ["healing_gave_up_chat"])
        rule = examples["healing_gave_up_chat"]
        self.assertEqual(list(inspection.check_rule(self.pack, rule)), [])
        wrong = {**rule, "action": {**rule["action"], "parameters": {"channel": "ops", "text": "x"}}}
        self.assertEqual(len(list(inspection.check_rule(self.pack, wrong))), 2, "another's parameter, and none that is needed")
        payload = [payload for payload, _ in EVENTS if payload.get("event") == "healing_gave_up"][0]
        self.assertTrue(engine.takes(rule, payload) and rule["trigger"]["type"] == "st2ha.healing_gave_up")
        for reason in ("a person is needed", "{{ config_context.x }} {% x %} <!channel> @all ```"):
            given = engine.rendered(rule, {**payload, "reason": reason})
            self.check_action(rule, given)
            self.assertEqual(given["channel"], "ops")
            self.assertRegex(given["message"], "^healing of redis-server.service on node2 gave up: [^{}<@`]+$")

    def test_policies(self):
        """Each action that a rule heals with is done once at a time; what blocks is a matter of ten minutes."""
        policies = {name[:-5]: packs.load_yaml(os.path.join(PACK, "policies", name)) for name in os.listdir(os.path.join(PACK, "policies"))}
        healing = {rule["action"]["ref"].split(".")[1]: rule["action"]["parameters"] for rule in self.rules.values()}
        del healing["report"]
        self.assertEqual(set(policies), set(healing))
        for name, policy in policies.items():
            self.assertEqual((policy["resource_ref"], policy["enabled"]), ("st2ha." + name, True))
            self.assertEqual((policy["parameters"]["threshold"], policy["parameters"]["action"]), (1, "cancel"))
            self.assertIn("run", policy["parameters"]["attributes"])
            self.assertLessEqual(set(policy["parameters"]["attributes"]), set(healing[name]), "what the rules give")

    def check_action(self, rule, given):
        """The action exists, takes the parameters, and its own templates resolve to the end."""
        action = self.pack.action(rule["action"]["ref"])
        self.assertIsNotNone(action, rule["action"]["ref"])
        config = {**self.pack.config(), "primary": "10.0.0.1", "secondaries": ["10.0.0.2"], "rabbitmq_password": "s3cret"}
        _, final = params.render(packs.RUNNERS[action.runner], action.parameters, given, config, {"pack": "st2ha"})
        arguments = runner.script_arguments(action.parameters, final)
        self.assertNotIn("s3cret", json.dumps(arguments))
        self.assertNotIn("{{", json.dumps(arguments))
        if "nodes" in action.parameters:
            self.assertEqual(final["nodes"], "10.0.0.1,10.0.0.2")
        if "maintenance" in action.parameters:
            self.assertEqual(final["maintenance"], "")


if __name__ == "__main__":
    unittest.main()
