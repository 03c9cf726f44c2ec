"""Action aliases as StackStorm reads them: which command is which alias, what its action is given, what chat is told."""
import os
import re

import jinja2

import pack as packs
import params

# st2common/models/utils/action_alias_utils.py:63, generate_snippets.
_KEY, _QUOTED = r"\s*(\S+?)\s*", r'""|\'\'|"(.+?)"|\'(.+?)\'|({.+?})|'
_OPTIONAL, _REQUIRED = "{{" + _KEY + r"\s*=\s*(?:" + _QUOTED + r"(.+?))\s*" + "}}", "{{" + _KEY + "}}"
_PAIRS = r"(?:^|\s+)" + _KEY + "=(" + _QUOTED + r"(\S+))"
_PARAMETER = r'\1["\']?(?P<\2>(?:(?<=\').+?(?=\')|(?<=").+?(?=")|{.+?}|.+?))["\']?'


def load(directory):
    """The aliases of a pack's directory, by their files' names."""
    directory = os.path.join(directory, "aliases")
    return {name[:-5]: packs.load_yaml(os.path.join(directory, name)) for name in sorted(os.listdir(directory))}


def extract(representation, command):
    """action_alias_utils.py:40: the parameters that a command has, or None where it is another one's."""
    ending, pairs = re.match(r".*?((" + _PAIRS + r"\s*)*)$", command, re.DOTALL), []
    if ending and ending.group(1):
        pairs = re.findall(_PAIRS, ending.group(1), re.DOTALL)
        command = command.replace(ending.group(1), "")
    regex = re.sub(r"(\s*)" + _OPTIONAL, "(?:" + _PARAMETER + ")?", representation)
    regex = r"^\s*" + re.sub(r"(\s*)" + _REQUIRED, _PARAMETER, regex) + r"\s*$"
    found = re.search(regex, " %s " % command, re.DOTALL)
    if not found:
        return None
    given = found.groupdict()
    for default in re.findall(_OPTIONAL, representation, re.DOTALL):
        given[default[0]] = given[default[0]] or "".join(default[1:])
    given.update({pair[0]: "".join(pair[2:]) for pair in pairs})
    return given


def matching(aliases, command):
    """util/actionalias_matching.py:113: all aliases that a command is one of, each with its parameters. StackStorm takes a
    command only if that is exactly one."""
    return [(name, given) for name, alias in aliases.items() for form in alias["formats"]
            for representation in form["representation"]
            for given in [extract(representation, command)] if given is not None]


def execution_parameters(alias, action, given):
    """services of st2api/controllers/v1/aliasexecution.py:245: what is immutable is added, and given nowhere else; a list
    comes as text with commas; then each is cast as its parameter says."""
    fixed = alias.get("immutable_parameters") or {}
    if set(fixed) & set(given):
        raise ValueError("Immutable arguments cannot be overriden: " + ",".join(sorted(set(fixed) & set(given))))
    out = {}
    for name, value in {**given, **fixed}.items():
        kind = action.parameters.get(name, {}).get("type")
        if kind == "array":
            out[name] = [part.strip() for part in value.split(",")]
        else:
            out[name] = params.CASTS[kind](value) if kind in params.CASTS else value
    return out


def _environment():
    env = jinja2.sandbox.SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # util/jinja.py:98, allow_undefined
    env.filters.update(params.FILTERS)
    return env


_ENV = _environment()


def message(alias, execution):
    """contrib/chatops/actions/format_execution_result.py:64: what is said in chat of an execution that ended."""
    return _ENV.from_string(alias["result"]["format"]).render(execution=execution, alias=alias)
