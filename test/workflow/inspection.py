"""Checks a pack without running it: what StackStorm refuses at registration, and what it refuses only at run time."""
import copy
import os
import re

import jsonschema

import engine
import pack as packs
import params

_ACTION_KEYS = {"id", "ref", "uid", "name", "description", "enabled", "runner_type", "entry_point", "pack",
                "parameters", "output_schema", "output_key", "tags", "notify", "metadata_file"}


def _parameter_schema():
    """action_params.json: draft 4 with StackStorm's position, immutable, secret, and a boolean `required`."""
    schema = copy.deepcopy(jsonschema.Draft4Validator.META_SCHEMA)
    schema.pop("id", None), schema.pop("$id", None)  # so that "#" is this schema, not the official one
    schema["properties"].update({
        "required": {"type": "boolean"}, "secret": {"type": "boolean"}, "immutable": {"type": "boolean"},
        "position": {"type": "number", "minimum": 0}})
    schema["additionalProperties"] = False
    return schema


_PARAMETER = jsonschema.Draft4Validator(_parameter_schema())

# PackAPI of st2common/models/api/pack.py, without the keys that StackStorm fills in itself.
_PACK = params.Validator({
    "type": "object",
    "properties": {
        "name": {"type": "string", "required": True},
        "ref": {"type": "string", "pattern": r"^[a-z0-9_]+$"},
        "description": {"type": "string", "required": True},
        "keywords": {"type": "array", "items": {"type": "string"}},
        "version": {"type": "string", "required": True,
                    "pattern": r"^(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)"
                               r"(?:-[\da-z\-]+(?:\.[\da-z\-]+)*)?(?:\+[\da-z\-]+(?:\.[\da-z\-]+)*)?$"},
        "stackstorm_version": {"type": "string", "pattern": r"^((>?>|>=|=|<=|<?<)\s*[0-9]+\.[0-9]+\.[0-9]+?(\s*,)?\s*)+$"},
        "python_versions": {"type": "array", "items": {"type": "string", "enum": ["2", "3"]},
                            "minItems": 1, "maxItems": 2, "uniqueItems": True},
        "author": {"type": "string", "required": True},
        "email": {"type": "string", "pattern": "@"},
        "contributors": {"type": "array", "items": {"type": "string", "maxLength": 100}},
        "dependencies": {"type": "array", "items": {"type": "string"}},
    },
})

_TEXT, _MUST = {"type": "string"}, {"type": "string", "required": True}
_TYPES = [{"type": kind} for kind in ("array", "boolean", "integer", "number", "object", "string")]


def _model(**properties):
    """An API model: all of them refuse what they do not know, st2common/models/api. Each has these keys as well."""
    return params.Validator({"type": "object", "additionalProperties": False, "properties": {
        "id": _TEXT, "uid": _TEXT, "ref": _TEXT, "pack": _TEXT, "metadata_file": _TEXT, "description": _TEXT,
        "tags": {"type": "array", "items": {"type": "object"}}, "enabled": {"type": "boolean"}, **properties}})


_TRIGGER_TYPE = {"type": "object", "additionalProperties": False, "properties": {  # trigger.py:30
    "id": _TEXT, "ref": _TEXT, "uid": _TEXT, "name": _MUST, "pack": _TEXT, "description": _TEXT, "metadata_file": _TEXT,
    "payload_schema": {"type": "object"}, "parameters_schema": {"type": "object"},
    "tags": {"type": "array", "items": {"type": "object"}}}}
_MODELS = {
    "sensors": _model(class_name=_MUST, artifact_uri=_TEXT, entry_point=_TEXT, poll_interval={"type": "number"},  # sensor.py:24
                      trigger_types={"type": "array", "items": _TRIGGER_TYPE}),
    "rules": _model(  # rule.py:88
        name=_MUST, type={"type": "object", "properties": {"ref": _MUST, "parameters": {"type": "object"}},
                          "additionalProperties": False},
        trigger={"type": "object", "required": True, "properties": {
            "type": _MUST, "description": _TEXT, "ref": _TEXT, "parameters": {"type": "object"}}},
        criteria={"type": "object"}, context={"type": "object"},
        action={"type": "object", "required": True, "additionalProperties": False, "properties": {
            "ref": _MUST, "description": _TEXT, "parameters": {"type": "object"}}}),
    "policies": _model(name=_MUST, resource_ref=_MUST, policy_type=_MUST, parameters={  # policy.py:68
        "type": "object", "patternProperties": {r"^\w+$": {"anyOf": _TYPES}}, "additionalProperties": False}),
    "aliases": _model(  # action.py:450
        name=_MUST, pack=_MUST, action_ref=_MUST, extra={"type": "object"}, immutable_parameters={"type": "object"},
        formats={"type": "array", "items": {"anyOf": [_TEXT, {"type": "object", "properties": {
            "display": _TEXT, "representation": {"type": "array", "items": _TEXT}}}]}},
        ack={"type": "object", "properties": {"enabled": {"type": "boolean"}, "format": _TEXT, "extra": {"type": "object"},
                                              "append_url": {"type": "boolean"}}},
        result={"type": "object", "properties": {"enabled": {"type": "boolean"}, "format": _TEXT, "extra": {"type": "object"}}}),
}
# st2common/policies/meta: the parameters of each policy type.
_CONCURRENCY = {"threshold": {"type": "integer", "required": True},
                "action": {"type": "string", "default": "delay", "enum": ["delay", "cancel"]}}
_POLICY_TYPES = {
    "action.concurrency": _CONCURRENCY,
    "action.concurrency.attr": {**_CONCURRENCY, "attributes": {
        "type": "array", "uniqueItems": True, "items": {"type": "string", "minLength": 1}}},
    "action.retry": {"retry_on": {"type": "string", "required": True, "enum": ["failure", "timeout"]},
                     "max_retry_count": {"type": "integer", "required": True, "minimum": 1, "maximum": 5, "default": 2},
                     "delay": {"type": "number", "minimum": 0, "maximum": 120}},
}


def check_rule(pack, meta):
    """What StackStorm says of a rule that is in no pack, of an action of this one or of StackStorm's own."""
    action = pack.action((meta.get("action") or {}).get("ref", ""))
    return _check_content(pack, "rules", {**meta, "pack": pack.name}, {action.ref: action} if action else {})


def _check_schema(where, schema):
    """custom.json: StackStorm looks at a payload's schema at every dispatch, and not before (validators/api/reactor.py:206)."""
    for error in _PARAMETER.iter_errors(schema):
        yield "%s: %s" % (".".join([where] + [str(part) for part in error.path]), error.message)


def _check_content(pack, kind, meta, actions):
    """What StackStorm says of a sensor, a rule, a policy or an alias when it registers it, and when it uses it."""
    yield from _boolean_keys(meta)
    errors = list(_MODELS[kind].iter_errors(meta))
    for error in errors:
        yield "%s: %s" % (".".join(str(part) for part in error.path) or "top level", error.message)
    if errors:
        return
    if meta.get("pack", pack.name) != pack.name:
        yield "pack: is %s, but the pack is %s" % (meta["pack"], pack.name)
    if kind == "sensors":
        if not os.path.isfile(os.path.join(pack.path, kind, meta.get("entry_point", ""))):
            yield "entry_point: no file %s" % meta.get("entry_point")
        for trigger in meta.get("trigger_types", []):
            for schema in ("payload_schema", "parameters_schema"):
                yield from _check_schema("%s.%s" % (trigger["name"], schema), trigger.get(schema, {}))
        return
    ref = {"rules": lambda: meta["action"]["ref"], "policies": lambda: meta["resource_ref"],
           "aliases": lambda: meta["action_ref"]}[kind]()
    if ref not in actions:
        yield 'there is no action "%s"' % ref
        return
    if kind == "rules":
        for finding in _check_task_input(actions[ref], meta["action"].get("parameters") or {}):
            yield "action.parameters: %s" % finding
    if kind == "aliases":  # what a command may give beside them is up to who types it
        for name in sorted(set(meta.get("immutable_parameters") or {}) - set(actions[ref].parameters)):
            yield 'immutable_parameters: action %s has no parameter "%s"' % (ref, name)
    if kind == "policies":
        schema = _POLICY_TYPES.get(meta["policy_type"])
        if schema is None:
            yield 'policy_type: there is no "%s"' % meta["policy_type"]
            return
        try:
            params.validate_object(meta.get("parameters", {}), schema)
        except params.ParamError as error:
            yield "parameters: %s" % error
        for attribute in meta.get("parameters", {}).get("attributes", []):
            if attribute not in actions[ref].parameters:
                yield 'parameters.attributes: action %s has no parameter "%s"' % (ref, attribute)


def _boolean_keys(value, path=""):
    """YAML 1.1 reads the keys yes, no, on, off (and numbers) as something else than a string."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield "%s: key %r is no string (YAML 1.1: quote it, or name it otherwise)" % (path or "top level", key)
            yield from _boolean_keys(item, "%s.%s" % (path, key) if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _boolean_keys(item, "%s[%d]" % (path, index))


def _check_parameters(meta, runner):
    parameters = meta.get("parameters") or {}
    if not isinstance(parameters, dict):
        yield "parameters: must be a mapping"
        return
    runner_parameters = packs.RUNNERS.get(runner, {})
    positions = {}
    for name, schema in parameters.items():
        where = "parameters.%s" % name
        if not isinstance(name, str):
            continue  # reported as a key
        if not re.match(r"^\w+$", name):
            yield "%s: valid characters for parameter name are [a-zA-Z0-9_]" % where
        if not isinstance(schema, dict):
            yield "%s: must be a mapping" % where
            continue
        bad = False
        for error in _PARAMETER.iter_errors(schema):
            bad = True
            yield "%s: %s" % (".".join([where] + [str(part) for part in error.path]), error.message)
        if isinstance(schema.get("type"), list):
            bad = True
            yield "%s: type must be one type, not a list" % where
        if bad:
            continue
        if name in runner_parameters:
            for attribute, value in schema.items():
                if attribute not in params.RUNNER_OVERRIDABLE and value != runner_parameters[name].get(attribute):
                    yield '%s: the attribute "%s" of a parameter of runner %s cannot be overridden' % (
                        where, attribute, runner)
        elif "type" not in schema and not {"anyOf", "oneOf", "enum"} & set(schema):
            yield "%s: has no type, so it is never cast" % where
        if schema.get("secret") and runner == "local-shell-script" and name not in runner_parameters:
            yield "%s: secret, but it would be on the command line: pass it by env" % where
        if "position" in schema:
            if schema["position"] in positions:
                yield "%s: has the same position %s as %s" % (where, schema["position"], positions[schema["position"]])
            positions[schema["position"]] = name
        if schema.get("immutable") is not None and "default" not in schema \
                and "default" not in runner_parameters.get(name, {}) and not schema.get("immutable") is False:
            yield "%s: immutable, so it requires a default value" % where
        yield from _check_default(where, schema, runner_parameters.get(name, {}))
    order = sorted(positions)
    if order and order != list(range(int(order[0]), int(order[-1]) + 1)):
        yield "parameters: positions %s are not contiguous" % order


def _check_default(where, schema, runner_schema):
    default = schema.get("default")
    kind = schema.get("type", runner_schema.get("type"))
    if default is None:
        return
    if params.is_template(default):
        try:
            params.ENV.parse(default)
        except Exception as error:
            yield "%s.default: %s" % (where, error)
        if schema.get("immutable") and kind not in (None, "string"):
            # The schema is checked before an immutable default is rendered.
            yield "%s.default: a template cannot be the default of an immutable %s: StackStorm checks the text" % (
                where, kind)
        return
    try:
        params.validate_object({"default": default}, {"default": {
            key: value for key, value in dict(runner_schema, **schema).items() if key not in ("required", "default")}})
    except params.ParamError as error:
        yield "%s: %s" % (where, error)


def _check_output_schema(meta):
    """action_output_schema.json is action_params.json. A schema without a type is the form before 3.8: ignored."""
    schema = meta.get("output_schema")
    if schema is None:
        return
    for error in _PARAMETER.iter_errors(schema):
        yield "%s: %s" % (".".join(["output_schema"] + [str(part) for part in error.path]), error.message)
    if not isinstance(schema, dict) or not isinstance(schema.get("type"), str):
        yield "output_schema: must be a schema with one type, or StackStorm ignores it"


def _check_action(pack, path):
    """Yields findings; the action's metadata is yielded last, when it can be used further."""
    meta = packs.load_yaml(path)
    if not isinstance(meta, dict):
        yield "must be a mapping"
        return
    yield from _boolean_keys(meta)
    for key in sorted(set(map(str, meta)) - _ACTION_KEYS):
        yield "%s: unknown key" % key
    for key, kind in (("name", str), ("runner_type", str)):
        if not isinstance(meta.get(key), kind):
            yield "%s: missing, or no %s" % (key, "string")
    for key, kind in (("description", str), ("entry_point", str), ("pack", str), ("enabled", bool), ("tags", list)):
        if key in meta and not isinstance(meta[key], kind):
            yield "%s: wrong type" % key
    runner, name = meta.get("runner_type"), meta.get("name")
    if meta.get("pack", pack.name) != pack.name:
        yield "pack: is %s, but the pack is %s" % (meta["pack"], pack.name)
    stem = os.path.splitext(os.path.basename(path))[0]
    if isinstance(name, str) and name != stem:
        yield "name: %s is in a file named %s" % (name, stem)
    if runner not in packs.RUNNERS:
        yield "runner_type: the harness does not know %s" % runner
        return
    yield from _check_parameters(meta, runner)
    yield from _check_output_schema(meta)
    if not isinstance(name, str):
        return
    try:
        action = packs.Action(pack, "%s.%s" % (pack.name, name), meta, path)
        entry_point = action.entry_point()
        if runner in ("local-shell-script", "orquesta"):
            if not entry_point:
                yield "entry_point: missing"
            elif not os.path.isfile(entry_point):
                yield "entry_point: no file %s" % os.path.relpath(entry_point, pack.path)
            elif runner == "local-shell-script" and not os.access(entry_point, os.X_OK):
                yield "entry_point: %s is not executable" % os.path.relpath(entry_point, pack.path)
        elif entry_point:
            yield "entry_point: only valid for another runner"
    except packs.PackError as error:
        yield str(error)
        return
    yield action


def _check_task_input(action, given):
    parameters = params.merged_schema(packs.RUNNERS[action.runner], action.parameters)
    for name in sorted(set(given) - set(parameters)):
        yield 'action %s has no parameter "%s"' % (action.ref, name)
    for name, schema in sorted(parameters.items()):
        if schema.get("required") and "default" not in schema and name not in given:
            yield 'action %s is missing required parameter "%s"' % (action.ref, name)
        if schema.get("immutable") and name in given:
            yield 'action %s: parameter "%s" is immutable' % (action.ref, name)


def _is_expression(value):
    return isinstance(value, str) and ("<%" in value or params.is_template(value))


def _check_workflow(pack, action, actions):
    path = action.entry_point()
    definition = packs.load_yaml(path)
    if not isinstance(definition, dict):
        yield "must be a mapping"
        return
    yield from _boolean_keys(definition)
    try:
        spec = engine.load_workflow(action)
        errors = engine.inspection_errors(spec, engine.st2_context(pack, action, engine.new_id(), {}))
    except Exception as error:
        yield "%s: %s" % (type(error).__name__, error)
        return
    for error in errors:
        expression = " in %s" % error["expression"] if error.get("expression") else ""
        yield "%s: %s%s (%s)" % (error.get("spec_path") or "", error["message"], expression, error["type"])

    names = {next(iter(entry)) if isinstance(entry, dict) else entry for entry in definition.get("input") or []}
    for name in sorted(names - set(action.parameters)):
        yield 'input "%s" is no parameter of action %s, so it can never be given' % (name, action.ref)
    for name in sorted(set(action.parameters) - names - set(packs.RUNNERS["orquesta"])):
        yield 'parameter "%s" of action %s is no input, so the workflow cannot see it' % (name, action.ref)

    tasks = definition.get("tasks")
    for task_name, task in (tasks.items() if isinstance(tasks, dict) else ()):
        ref = task.get("action") if isinstance(task, dict) else None
        if not isinstance(ref, str):
            continue
        where = "tasks.%s" % task_name
        if _is_expression(ref):
            continue
        if " " in ref.strip():
            yield '%s.action: inline parameters are not accepted, use "input"' % where
            continue
        if "." not in ref:
            yield '%s.action: "%s" is no reference, it lacks the pack' % (where, ref)
            continue
        target = actions.get(ref) or (pack.action(ref) if ref.startswith("core.") else None)
        if target is None:
            yield '%s.action: there is no action "%s"' % (where, ref)
        elif isinstance(task.get("input", {}), dict):
            for finding in _check_task_input(target, task.get("input") or {}):
                yield "%s.input: %s" % (where, finding)


def inspect(pack):
    """Returns all findings, each "file: what"."""
    findings = []

    def check(path, found):
        usable = []
        try:
            for finding in found:
                if isinstance(finding, packs.Action):
                    usable.append(finding)
                else:
                    findings.append("%s: %s" % (os.path.relpath(path, pack.path), finding))
        except packs.PackError as error:
            findings.append(str(error).replace(pack.path + os.sep, ""))
        return usable

    def check_config_schema():
        schema = pack.config_schema()
        if not isinstance(schema, dict):
            yield "must be a mapping"
            return
        yield from _boolean_keys(schema)
        for name, meta in schema.items():
            for error in _PARAMETER.iter_errors(meta):
                yield "%s: %s" % (".".join([str(name)] + [str(part) for part in error.path]), error.message)

    def check_pack():
        for error in _PACK.iter_errors(pack.meta):
            yield "%s: %s" % (".".join(str(part) for part in error.path) or "top level", error.message)

    check(os.path.join(pack.path, "pack.yaml"), check_pack())
    check(os.path.join(pack.path, "config.schema.yaml"), check_config_schema())
    actions = {}
    for path in pack.action_files():
        for action in check(path, _check_action(pack, path)):
            if action.ref in actions:
                findings.append("%s: name %s is taken by %s" % (
                    os.path.relpath(path, pack.path), action.name, os.path.basename(actions[action.ref].path)))
            actions[action.ref] = action
    if not actions and not findings:
        findings.append("actions: none")
    for kind in _MODELS:
        directory = os.path.join(pack.path, kind)
        for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
            if name.endswith((".yaml", ".yml")):
                try:
                    meta = packs.load_yaml(os.path.join(directory, name))
                except packs.PackError as error:
                    findings.append(str(error).replace(pack.path + os.sep, ""))
                    continue
                check(os.path.join(directory, name), _check_content(pack, kind, meta, actions))
    for action in actions.values():
        if action.runner == "orquesta":
            path = action.entry_point()
            if path and os.path.isfile(path):
                check(os.path.realpath(path) if os.path.realpath(path).startswith(pack.path) else path,
                      _check_workflow(pack, action, actions))
    return findings
