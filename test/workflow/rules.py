#!/usr/bin/env python3
"""Which rules of a pack take an event, and what their actions get, as StackStorm's rules engine would decide.

    rules.py --pack DIR < LINES

Reads one JSON object a line, {"trigger": "st2ha.backend_changed", "payload": {…}}, and answers each with one line: the
rules that take it, [{"rule": "mount_missing", "action": "st2ha.recover_nfs_mount", "parameters": {…}}, …]. One that is
refused, as it is in StackStorm when it is dispatched, is {"refused": why}: no trigger instance is made of it.
Needs the interpreter that setup.sh prints.
"""
import argparse
import json
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import jsonschema  # noqa: E402
import pack as packs  # noqa: E402
import params  # noqa: E402

# What st2common/operators.py makes of a value and a pattern, as far as the rules use it.
OPERATORS = {
    "equals": lambda value, pattern: value == pattern,
    "inside": lambda value, pattern: value in pattern,
    "startswith": lambda value, pattern: value.startswith(pattern),
    "contains": lambda value, pattern: pattern in value,
    "regex": lambda value, pattern: re.search(pattern, value) is not None,
}


def load(directory):
    """The rules of a pack's directory, by their files' names."""
    directory = os.path.join(directory, "rules")
    return {name[:-5]: packs.load_yaml(os.path.join(directory, name)) for name in sorted(os.listdir(directory))}


def schemas(directory):
    """The payload schemas of a pack's trigger types."""
    directory, found = os.path.join(directory, "sensors"), {}
    for name in sorted(os.listdir(directory)):
        if name.endswith(".yaml"):
            for trigger in packs.load_yaml(os.path.join(directory, name))["trigger_types"]:
                found["st2ha." + trigger["name"]] = trigger["payload_schema"]
    return found


def refusal(known, event):
    """What StackStorm logs of an event that it does not dispatch, or None: services/trigger_dispatcher.py:92-117."""
    try:
        if event["trigger"] not in known:
            raise ValueError('Trigger type with reference "%s" doesn\'t exist in the database' % event["trigger"])
        params.validate_payload(known[event["trigger"]], event["payload"])
        return None
    except (jsonschema.ValidationError, jsonschema.SchemaError, ValueError) as error:
        return 'Trigger payload validation failed and validation is enabled, not dispatching a trigger "%s" (%s): %s' % (
            event["trigger"], event["payload"], getattr(error, "message", error))


def takes(rule, payload):
    """st2reactor/rules/filter.py: a rule takes an event that meets all its criteria. A value that is absent is None, and
    an operator that fails on it is a criterion that is not met."""
    for key, criterion in (rule.get("criteria") or {}).items():
        prefix, name = key.split("#")[0].split(".")
        assert prefix == "trigger", key
        try:
            met = OPERATORS[criterion["type"]](payload.get(name), criterion["pattern"])
        except (AttributeError, TypeError):
            met = False
        if not met:
            return False
    return True


def rendered(rule, payload):
    """st2common/util/jinja.py, render_values: strings are templates, and what is none keeps its type."""
    out = {}
    for name, value in rule["action"].get("parameters", {}).items():
        text = params.ENV.from_string(str(value)).render(trigger=payload, st2kv={"system": params.Datastore()})
        out[name] = value if text == str(value) else text
    return out


def matching(rules, event):
    return [{"rule": name, "action": rule["action"]["ref"], "parameters": rendered(rule, event["payload"])}
            for name, rule in rules.items()
            if rule["enabled"] and rule["trigger"]["type"] == event["trigger"] and takes(rule, event["payload"])]


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", required=True, metavar="DIR", help="the pack on this machine")
    directory = parser.parse_args(argv).pack
    rules, known = load(directory), schemas(directory)
    for line in sys.stdin:
        event = json.loads(line)
        why = refusal(known, event)
        print(json.dumps({"refused": why} if why else matching(rules, event)), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
