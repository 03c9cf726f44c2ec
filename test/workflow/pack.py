"""A pack as StackStorm reads it: its metadata, its actions, its configuration."""
import copy
import os

import yaml

import params

# The runners' own parameters: contrib/runners/*/runner.yaml. An action's parameter of the same name is the runner's,
# and never reaches the command line.
_SHELL = {
    "cwd": {"type": "string"},
    "env": {"type": "object"},
    "kwarg_op": {"type": "string", "default": "--"},
    "sudo": {"type": "boolean", "default": False},
    "sudo_password": {"type": "string", "default": None, "secret": True, "required": False},
    "timeout": {"type": "integer", "default": 60},
}
RUNNERS = {
    "local-shell-cmd": {"cmd": {"type": "string"}, **_SHELL},
    "local-shell-script": {
        "debug": {"type": "boolean", "required": False, "default": False},
        "content_version": {"type": "string", "required": False}, **_SHELL},
    "orquesta": {
        "notify": {"type": "array", "uniqueItems": True, "default": [],
                   "items": {"type": "string", "minLength": 1, "pattern": r"^\w+$"}}},
    "noop": {},
    "announcement": {"experimental": {"type": "boolean", "required": True, "default": False},
                     "route": {"type": "string", "default": "general", "minLength": 1, "maxLength": 255}},
}
_CORE = {
    "core.local": {"name": "local", "runner_type": "local-shell-cmd", "entry_point": "",
                   "parameters": {"cmd": {"type": "string", "required": True}, "sudo": {"immutable": True}}},
    "core.local_sudo": {"name": "local_sudo", "runner_type": "local-shell-cmd", "entry_point": "",
                        "parameters": {"cmd": {"type": "string", "required": True},
                                       "sudo": {"default": True, "immutable": True}}},
    "core.noop": {"name": "noop", "runner_type": "noop", "entry_point": "", "parameters": {}},
    "chatops.post_message": {  # contrib/chatops/actions/post_message.yaml
        "name": "post_message", "runner_type": "announcement", "entry_point": "", "parameters": {
            "experimental": {"immutable": True, "default": True}, "route": {"default": "chatops"},
            "user": {"type": "string"}, "whisper": {"type": "boolean", "default": False},
            "message": {"type": "string", "required": True}, "channel": {"type": "string", "required": True},
            "context": {"type": "object", "required": False}, "extra": {"type": "object"}}},
}


class PackError(Exception):
    """The pack, or what was asked of it, is wrong."""


class _Loader(yaml.SafeLoader):
    """The safe loader, but a key given twice is an error, as it is for orquesta since 1.4."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                value = self.construct_object(key, deep=True)
                if value in seen:
                    raise yaml.constructor.ConstructorError(
                        "while constructing a mapping", node.start_mark, 'key "%s" is given twice' % value,
                        key.start_mark)
                seen.add(value)
        return super().construct_mapping(node, deep)


def load_yaml(path):
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.load(file, Loader=_Loader)
    except yaml.YAMLError as error:
        raise PackError("%s: %s" % (path, " ".join(str(error).split()))) from error
    except (OSError, UnicodeDecodeError) as error:
        raise PackError("%s: %s" % (path, getattr(error, "strerror", None) or error)) from error


class Action:
    def __init__(self, pack, ref, meta, path=None):
        self.pack, self.ref, self.meta, self.path = pack, ref, meta, path
        self.name, self.runner, self.parameters = meta["name"], meta["runner_type"], meta.get("parameters") or {}

    def entry_point(self, root=None):
        """The entry point below root, which is where the pack lies on the node."""
        relative = self.meta.get("entry_point") or ""
        if not relative:
            return None
        if os.path.isabs(relative):
            raise PackError("%s: the entry point must be relative to actions/" % self.ref)
        path = os.path.join("actions", relative)
        # StackStorm takes a path that normalises to something else for a traversal, wherever it ends.
        if os.path.normpath(path) != path:
            raise PackError('%s: invalid entry point "%s": path traversal' % (self.ref, relative))
        return os.path.join(root or self.pack.path, path)


class Pack:
    def __init__(self, path):
        self.path = os.path.abspath(path)
        if not os.path.isdir(os.path.join(self.path, "actions")):
            raise PackError("%s: no pack, it has no actions directory" % path)
        meta_path = os.path.join(self.path, "pack.yaml")
        meta = load_yaml(meta_path) if os.path.exists(meta_path) else None
        self.meta = meta if isinstance(meta, dict) else {}
        self.name = self.meta.get("ref") or self.meta.get("name") or os.path.basename(self.path)
        self._read = {}

    def action_files(self):
        directory = os.path.join(self.path, "actions")
        return [os.path.join(directory, name) for name in sorted(os.listdir(directory))
                if name.endswith((".yaml", ".yml"))]

    def action(self, ref):
        """Finds an action by its name in this pack, or by its full reference; None if there is none."""
        pack_name, _, name = ref.rpartition(".")
        if ref in _CORE:
            return Action(self, ref, copy.deepcopy(_CORE[ref]))
        if pack_name in ("", self.name):
            for path in self.action_files():
                if path not in self._read:
                    self._read[path] = load_yaml(path)
                meta = copy.deepcopy(self._read[path])
                if isinstance(meta, dict) and meta.get("name") == name:
                    if meta.get("runner_type") not in RUNNERS:
                        raise PackError("%s: the harness has no runner %s" % (path, meta.get("runner_type")))
                    return Action(self, "%s.%s" % (self.name, name), meta, path)
        return None

    def config_schema(self):
        path = os.path.join(self.path, "config.schema.yaml")
        schema = load_yaml(path) if os.path.exists(path) else {}
        return schema or {}

    def config(self, path=None):
        """config_context: the given file over the schema's defaults."""
        values = (load_yaml(path) if path else None) or {}
        if not isinstance(values, dict):
            raise PackError("%s: must be a mapping" % path)
        schema = self.config_schema()
        try:
            if path:
                params.validate_object(values, schema, additional=True, what="setting")
            config = _dynamic(copy.deepcopy(values))
        except params.ParamError as error:
            raise PackError("%s: %s" % (path, error)) from None
        _assign_defaults(schema, config)
        return config


def _dynamic(value):
    """Settings that are templates are looked up in the datastore, which is empty here."""
    if isinstance(value, dict):
        return {key: _dynamic(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_dynamic(item) for item in value]
    if params.is_template(value):
        return params.ENV.from_string(value).render(st2kv={"system": params.Datastore(),
                                                           "user": params.Datastore()}) or None
    return value


def _assign_defaults(schema, config):
    """config_loader.py, without patternProperties and additionalProperties: a container with a schema of its own
    becomes {} or [] when it has no value."""
    for key, meta in schema.items():
        if "default" in meta and key not in config:
            config[key] = copy.deepcopy(meta["default"])
        if meta.get("type") == "object" and meta.get("properties"):
            config[key] = config.get(key) or {}
            _assign_defaults(meta["properties"], config[key])
        elif meta.get("type") == "array" and isinstance(meta.get("items"), dict):
            config[key] = config.get(key) or []
            for item in config[key]:
                if isinstance(item, dict):
                    _assign_defaults(meta["items"].get("properties") or {}, item)
