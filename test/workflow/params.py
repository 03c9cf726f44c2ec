"""The parameters of an action, from what the user gave to what the runner gets: st2common/util/param.py.

Two passes, as in StackStorm. The live pass renders what was given and those defaults that are templates, casts, and
checks the result against the schema; the final pass adds the remaining defaults. The order of the final parameters
decides the order of the arguments on the command line, and it comes from the dependency graph: hence the same graph.
"""
import ast
import copy
import json
import re

import jinja2
import jinja2.meta
import jinja2.sandbox
import jsonschema
import jsonschema.validators
import networkx
import yaml

# What an action's parameter of the same name may change in a runner's parameter.
RUNNER_OVERRIDABLE = ("default", "description", "enum", "immutable", "required")
_NONE = "%*****__%NONE%__*****%"  # what use_none turns None into


class ParamError(Exception):
    """The parameters cannot be used. The message carries no value of a secret."""


class Datastore:
    """st2kv.system and st2kv.user without any key: every lookup is the empty string."""

    def __getitem__(self, name):
        return self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __str__(self):
        return ""


# ---- Jinja as StackStorm has it

def to_json_string(value, indent=None, sort_keys=False, separators=(",", ": ")):
    return json.dumps(value, indent=indent, sort_keys=sort_keys, separators=separators)


def to_yaml_string(value, indent=None, allow_unicode=True):
    return yaml.safe_dump(value, indent=indent, allow_unicode=allow_unicode, default_flow_style=False)


FILTERS = {
    "from_json_string": lambda value: json.loads(str(value)),
    "from_yaml_string": lambda value: yaml.safe_load(str(value)),
    "json_escape": lambda value: json.dumps(value).strip('"'),
    "to_complex": json.dumps,
    "to_json_string": to_json_string,
    "to_yaml_string": to_yaml_string,
    "use_none": lambda value: _NONE if value is None else value,
    "basename": lambda path: path.rpartition("/")[2],
    "dirname": lambda path: path.rpartition("/")[0],
    "regex_match": lambda value, pattern="": re.match(pattern, value) is not None,
    "regex_replace": lambda value, pattern="", replacement="": re.sub(pattern, replacement, value),
    "regex_search": lambda value, pattern="": re.search(pattern, value) is not None,
}


def environment():
    env = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters.update(FILTERS)
    env.tests["in"] = lambda item, items: item in items
    return env


ENV = environment()


def is_template(value):
    return isinstance(value, str) and ("{{" in value or "{%" in value)


# ---- casts: st2common/util/casts.py

def _cast_object(value):
    value = _cast_none(value)
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return ast.literal_eval(value)
    return value


def _cast_boolean(value):
    value = _cast_none(value)
    return ast.literal_eval(value.capitalize()) if isinstance(value, str) else value


def _cast_string(value):
    if value is not None and not isinstance(value, str):
        raise ValueError("must be a string, got %s" % type(value).__name__)
    return _cast_none(value)


def _cast_none(value):
    return None if value == _NONE else value


CASTS = {
    "array": _cast_object,
    "boolean": _cast_boolean,
    "integer": lambda value: int(_cast_none(value)),
    "number": lambda value: float(_cast_none(value)),
    "object": _cast_object,
    "string": _cast_string,
}


def _cast(name, value, schema):
    cast = CASTS.get((schema or {}).get("type"))
    if value is None or cast is None:
        return value
    try:
        return cast(value)
    except Exception as error:
        # The error of a failed cast quotes the value.
        detail = "" if schema.get("secret") else ": %s" % error
        raise ParamError('parameter "%s" is not of type %s%s' % (name, schema["type"], detail)) from None


# ---- rendering

def _add(graph, name, value):
    if not is_template(value) and not (isinstance(value, (list, dict)) and is_template(str(value))):
        graph.add_node(name, value=value)
        return
    try:
        parsed = ENV.parse(str(value))
    except jinja2.TemplateSyntaxError:
        graph.add_node(name, value=value)
        return
    graph.add_node(name, template=value)
    for dependency in jinja2.meta.find_undeclared_variables(parsed):
        graph.add_edge(dependency, name)


def _render(node, context):
    # A node may have both, where the action's default is a template and the runner has one too: the template wins.
    if "template" not in node:
        return node["value"]
    template = node["template"]
    if not isinstance(template, (list, dict)):
        return ENV.from_string(str(template)).render(context)
    # Rendered as the text of a JSON document: a value with a quote in it breaks the document, unless the whole string
    # is exactly "{{name}}", which StackStorm turns into {{name | to_complex}}.
    text = json.dumps(template, separators=(",", ":"), ensure_ascii=False)
    text = re.sub(r'"{{([A-z0-9_-]+)}}"', r"{{\1 | to_complex}}", text)
    return json.loads(ENV.from_string(text).render(context))


def _resolve(given, schemas, contexts, as_values):
    graph = networkx.DiGraph()
    for name, value in contexts.items():
        graph.add_node(name, value=value)
    for name, value in given.items():
        if as_values:
            graph.add_node(name, value=value)
        else:
            _add(graph, name, value)
    for schema in schemas:
        for name, meta in schema.items():
            if name not in graph or graph.nodes[name].get("value") is None or meta.get("immutable"):
                _add(graph, name, meta.get("default"))
    for name in graph:
        if "value" not in graph.nodes[name] and "template" not in graph.nodes[name]:
            raise ParamError('Dependency unsatisfied in variable "%s"' % name)
    if not networkx.is_directed_acyclic_graph(graph):
        names = sorted(cycle[0] for cycle in networkx.simple_cycles(graph))
        raise ParamError("Cyclic dependency found in the following variables: %s" % ", ".join(names))
    context = {}
    for name in networkx.topological_sort(graph):
        try:
            context[name] = _render(graph.nodes[name], context)
        except ValueError as error:
            # A JSON document broken by a value: the decoder's message has a position, the document has the secret.
            raise ParamError('Failed to render parameter "%s": %s' % (name, error)) from None
        except Exception as error:
            raise ParamError('Failed to render parameter "%s": %s' % (name, error)) from error
    return context


def _cast_all(names, context, schemas, with_templates):
    def schema_of(name):
        found = {}
        for schema in schemas:
            found = schema.get(name, found)
        return found or {}

    result = {name: _cast(name, context[name], schema_of(name)) for name in names}
    if with_templates:
        for schema in schemas:
            for name, meta in schema.items():
                default = meta.get("default")
                if name in names or meta.get("immutable"):
                    continue
                if is_template(default) and default != context[name]:
                    result[name] = _cast(name, context[name], meta)
    return result


def contexts(config, action_context):
    return {"st2kv": {"system": Datastore(), "user": Datastore()}, "action_context": action_context,
            "config_context": config}


def render(runner_schema, action_schema, given, config, action_context):
    """Returns (runner parameters, action parameters), ready for the runner."""
    schemas = [action_schema, runner_schema]
    base = contexts(config, action_context)
    live = _cast_all(given, _resolve(given, schemas, base, as_values=False), schemas, with_templates=True)
    validate(live, runner_schema, action_schema)
    overridden = [name for name in live for schema in schemas if schema.get(name, {}).get("immutable")]
    if overridden:
        raise ParamError("Override of immutable parameter(s) %s is unsupported." % sorted(set(overridden)))
    context = _resolve(live, schemas, base, as_values=True)
    final = _cast_all(context, context, schemas, with_templates=False)
    return ({name: value for name, value in final.items() if name in runner_schema},
            {name: value for name, value in final.items() if name in action_schema and name not in runner_schema})


# ---- validation: st2common/util/schema

_draft3, _draft4 = jsonschema.Draft3Validator.VALIDATORS, jsonschema.Draft4Validator.VALIDATORS
# Draft 4, but `required` is a property's own boolean as in draft 3.
Validator = jsonschema.validators.create(
    meta_schema={}, type_checker=jsonschema.Draft4Validator.TYPE_CHECKER,
    validators={**{name: check for name, check in _draft4.items() if name != "required"},
                "properties": _draft3["properties"]})


def merged_schema(runner_schema, action_schema):
    merged = copy.deepcopy(runner_schema)
    for name, meta in action_schema.items():
        merged.setdefault(name, {}).update(meta)
    return merged


def _assign_defaults(instance, properties):
    for name, meta in properties.items():
        if "default" in meta and instance.get(name) is None:
            instance[name] = copy.deepcopy(meta["default"])
        if isinstance(instance.get(name), dict) and meta.get("properties"):
            _assign_defaults(instance[name], meta["properties"])


def _allow_none(properties):
    for meta in properties.values():
        kind = meta.get("type", "string")
        if isinstance(kind, str) and "anyOf" not in meta and "oneOf" not in meta and meta.get("default") is None \
                and ("default" in meta or not meta.get("required")):
            meta["type"] = [kind, "null"]
        for nested in (meta, meta.get("items")):
            if isinstance(nested, dict) and isinstance(nested.get("properties"), dict):
                _allow_none(nested["properties"])


def validate_object(instance, properties, additional=False, what="parameter"):
    properties = copy.deepcopy(properties)
    instance = copy.deepcopy(instance)
    _assign_defaults(instance, properties)
    _allow_none(properties)
    schema = {"type": "object", "properties": properties, "additionalProperties": additional}
    errors = sorted(Validator(schema).iter_errors(instance), key=lambda error: [str(part) for part in error.path])
    messages = []
    for error in errors:
        path = ".".join(str(part) for part in error.path)
        secret = properties.get(str(error.path[0]), {}).get("secret") if error.path else False
        if error.validator == "additionalProperties" and not error.path:
            unknown = sorted(set(instance) - set(properties))
            messages.append("unknown %s(s): %s" % (what, ", ".join(map(str, unknown))))
        elif secret:
            messages.append('%s "%s" does not meet its %s' % (what, path, error.validator))
        elif path:
            messages.append('%s "%s": %s' % (what, path, error.message))
        else:
            messages.append(error.message)
    if messages:
        raise ParamError("; ".join(messages))


def validate(live, runner_schema, action_schema):
    validate_object(live, merged_schema(runner_schema, action_schema))


# custom.json, with which a trigger's payload_schema is compared: `required` is a boolean of each property.
_METASCHEMA = copy.deepcopy(jsonschema.Draft4Validator.META_SCHEMA)
_METASCHEMA["properties"]["required"] = {"type": "boolean", "default": False}
_METASCHEMA.pop("id")  # else "#" would be the original


def validate_payload(schema, payload):
    """util/schema/__init__.py:355 validate, as at each dispatch of a trigger (validators/api/reactor.py:165): the schema
    against its metaschema, the payload with None for what is optional. Raises SchemaError or ValidationError."""
    for error in jsonschema.Draft4Validator(_METASCHEMA).iter_errors(schema):
        raise jsonschema.SchemaError(error.message)
    schema = copy.deepcopy(schema)
    _allow_none(schema.get("properties", {}))
    Validator(schema).validate(payload)
