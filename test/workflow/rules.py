#!/usr/bin/env python3
"""Which rules of a pack take an event, and what their actions get, as StackStorm's rules engine would decide.

    rules.py --pack DIR < LINES

Reads one JSON object a line, {"trigger": "st2ha.backend_changed", "payload": {…}}, and answers each with one line: the
rules that take it, [{"rule": "mount_missing", "action": "st2ha.recover_nfs_mount", "parameters": {…}}, …].
Needs the interpreter that setup.sh prints.
"""
import argparse
import json
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
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
    rules = load(parser.parse_args(argv).pack)
    for line in sys.stdin:
        print(json.dumps(matching(rules, json.loads(line))), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
