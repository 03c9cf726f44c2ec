"""Runs actions and workflows: orquesta's conductor, driven as st2common/services/workflows.py drives it.

What differs from StackStorm 3.9:
- orquesta is 1.2.0, not 1.6. A failed task whose transition leads into a join that can then never be met fails the
  workflow, where 1.6 goes on; a task's status functions, with items, `retry` and `delay` are the same.
- No policies, no scheduler, no pausing, no cancelling, no inquiries, no re-run, no notifications, no datastore.
- `delay` and the delay of `retry` sleep in this process.
- A nested workflow runs in this process; StackStorm hands it to any workflow engine of the cluster.
- After a failure that is the workflow's own (a wrong expression, a parameter refused), tasks still running are waited
  for; StackStorm reports the workflow failed at once and lets them run.
- ST2_ACTION_AUTH_TOKEN is no real token, and no API answers at ST2_ACTION_API_URL.
"""
import copy
import json
import queue
import secrets
import threading
import time

import orquesta_compat  # noqa: F401  before orquesta
from orquesta import constants as orquesta_constants
from orquesta import events, exceptions, statuses
from orquesta.expressions.functions import base as function_catalog

import pack as packs
import params

_SYSTEM_USER = "stanley"
# orquesta and its expression engines keep state outside the conductor (a parser, a cache): one conductor at a time.
_CONDUCTING = threading.RLock()
_task_executions = {}  # workflow execution id -> [task execution], for task() in expressions


# ---- functions StackStorm adds to orquesta's expressions

def _task(context, task_id=None, route=None):
    current = context["__current_task"] or {}
    task_id = task_id if task_id is not None else current["id"]
    route = route if route is not None else current.get("route", 0)
    state = context["__state"] or {}
    index = (state.get("tasks") or {}).get(orquesta_constants.TASK_STATE_ROUTE_FORMAT % (task_id, str(route)))
    if index is None and route > 0:
        own = set(state["routes"][route])
        for earlier in range(route - 1, -1, -1):
            if set(state["routes"][earlier]) <= own:
                return _task(context, task_id, earlier)
    if index is not None:
        route = state["sequence"][index]["route"]
        for execution in reversed(_task_executions[context["__vars"]["st2"]["workflow_execution_id"]]):
            if (execution["task_id"], execution["route"]) == (task_id, route):
                return copy.deepcopy(execution)
    raise exceptions.ExpressionEvaluationException('Unable to find task execution for "%s".' % task_id)


def _st2kv(context, key, **kwargs):
    if "default" in kwargs:
        return kwargs["default"]
    raise exceptions.ExpressionEvaluationException('The key "%s" does not exist in the StackStorm datastore.' % key)


_filters = {name: function for name, function in params.FILTERS.items() if name != "to_complex"}
function_catalog.load().update(
    _filters, task=_task, st2kv=_st2kv, json_dump=params.FILTERS["to_json_string"],
    json_parse=params.FILTERS["from_json_string"], yaml_dump=params.FILTERS["to_yaml_string"],
    yaml_parse=params.FILTERS["from_yaml_string"])
# The expression engines register the catalog when they are imported, and these import them: so only now.
from orquesta import conducting  # noqa: E402
from orquesta.specs.native.v1 import models  # noqa: E402


def new_id():
    return secrets.token_hex(12)  # as long as MongoDB's


def st2_context(pack, action, execution_id, context):
    return {"st2": {"action_execution_id": execution_id, "api_url": "http://127.0.0.1:9101/v1", "user": _SYSTEM_USER,
                    "pack": pack.name, "action": action.ref, "runner": action.runner},
            "parent": context}


class Report:
    """Collects the tasks' records, and tells of their start and end. The base class tells nobody."""

    def __init__(self):
        self.tasks = []
        self._lock = threading.Lock()

    def started(self, record, given):
        pass

    def ended(self, record):
        pass

    def add(self, record):
        with self._lock:
            self.tasks.append(record)


class Engine:
    def __init__(self, pack, config, node, report=None):
        self.pack, self.config, self.node, self.report = pack, config, node, report or Report()

    def prepare(self, ref, given, context):
        """Finds the action and renders its parameters; errors are ParamError and PackError."""
        action = self.pack.action(ref)
        if action is None:
            raise packs.PackError('Action "%s" cannot be found.' % ref)
        if action.meta.get("enabled", True) is False:
            raise packs.PackError('Unable to execute. Action "%s" is disabled.' % ref)
        runner_params, action_params = params.render(
            packs.RUNNERS[action.runner], action.parameters, given or {}, self.config, context)
        return action, runner_params, action_params

    def run(self, prepared, context, path=""):
        """Runs a prepared action; returns (status, result)."""
        action, runner_params, action_params = prepared
        execution_id = new_id()
        if action.runner == "noop":
            return "succeeded", {}
        if action.runner == "orquesta":
            # A nested one's end is nobody's to wait for.
            error = None if path else self.node.note(action, execution_id, "running")
            if error:
                return "failed", {"output": None, "errors": [{"message": error}]}
            status, result = _Workflow(self, action, action_params, execution_id, context, path).run()
            status, result = _checked(action, status, result, result["output"])
            error = None if path else self.node.note(action, execution_id, status)
            if error:
                error = "its end cannot be stored, so the execution stays running: %s" % error
                return "failed", dict(result, errors=result.get("errors", []) + [{"message": error}])
            return status, result
        try:
            status, result = self.node.run(action, runner_params, action_params, execution_id)
        except packs.PackError as error:
            return "failed", {"error": str(error), "traceback": ""}
        return _checked(action, status, result, result)


def _checked(action, status, result, output):
    """st2common/util/output_schema.py: a success whose output is not what the schema says is a failure.

    StackStorm does so with [system] validate_output_schema, and only for runners with an output_key, which the local
    ones have not: here their results are checked as well, so that what the schemas tell people is true.
    """
    schema = action.meta.get("output_schema")
    if status == "succeeded" and schema:
        for error in params.Validator(schema).iter_errors(output):
            path = ".".join(str(part) for part in error.path)
            return "failed", {"output": None, "error": "%s: %s" % (path, error.message),
                              "message": "Error validating output. See error output for more details."}
    return status, result


def load_workflow(action):
    """Returns orquesta's specification of a workflow action."""
    path = action.entry_point()
    if not path:
        raise packs.PackError("%s: Missing entry_point action metadata attribute" % action.ref)
    packs.load_yaml(path)  # for its errors, duplicate keys among them, which orquesta 1.2.0 lets pass
    with open(path, encoding="utf-8") as file:
        return models.WorkflowSpec(file.read())


def inspection_errors(spec, context):
    """orquesta's own inspection as StackStorm lists it."""
    category = {"contents": "content", "expressions": "expression", "semantics": "semantic"}
    errors = []
    for name, entries in spec.inspect(app_ctx=context, raise_exception=False).items():
        for entry in entries:
            if name in ("context", "expressions"):
                entry["language"] = entry.pop("type", None)
            errors.append(dict(entry, type=category.get(name, name)))
    return sorted(errors, key=lambda entry: (entry["type"], entry.get("schema_path") or ""))


class _Workflow:
    """One execution of a workflow. The conductor is touched by this object's thread alone."""

    def __init__(self, engine, action, inputs, execution_id, context, path):
        self.engine, self.action, self.inputs, self.id = engine, action, inputs, execution_id
        self.context, self.path = context, path
        self.workflow_id = new_id()
        self.done = queue.Queue()
        self.running = 0
        self.executions = {}  # (task, route) -> the task execution of a with-items task that still runs

    def run(self):
        try:
            with _CONDUCTING:
                spec = load_workflow(self.action)
                context = st2_context(self.engine.pack, self.action, self.id, self.context)
                errors = inspection_errors(spec, context)
                if not errors:
                    self._start(spec, context)
        except Exception as error:
            errors = [{"message": str(error)}]
        if errors:
            return "failed", {"output": None, "errors": errors}
        while self.running:
            completed = self.done.get()
            with _CONDUCTING:
                self._complete(*completed)
                self._request_next()
        with _CONDUCTING:
            if self.conductor.get_workflow_status() not in statuses.COMPLETED_STATUSES:
                # StackStorm would show it running for ever.
                self.conductor.request_workflow_status(statuses.FAILED)
                self.conductor.log_entry("error", "The workflow is stuck: no task is running and none is next.")
            self._settle()
            status, output = self.conductor.get_workflow_status(), self.conductor.get_workflow_output()
            result = {"output": output or None}
            if status in statuses.ABENDED_STATUSES:
                result["errors"] = copy.deepcopy(self.conductor.errors)
        _task_executions.pop(self.workflow_id, None)
        return status, result

    def _start(self, spec, context):
        self.conductor = conducting.WorkflowConductor(spec, context=context, inputs=self.inputs)
        _task_executions[self.workflow_id] = []
        self.conductor.serialize()  # initialises it
        if self.conductor.get_workflow_status() not in statuses.COMPLETED_STATUSES:
            self.conductor.request_workflow_status(statuses.REQUESTED)
            self.conductor._parent_ctx["st2"]["workflow_execution_id"] = self.workflow_id
            self.conductor.workflow_state.contexts[0]["st2"]["workflow_execution_id"] = self.workflow_id
            self._store()
            self.conductor.request_workflow_status(statuses.RUNNING)
            self._request_next()
        self._settle()

    def _store(self):
        """StackStorm keeps the conductor in the database between any two events: what JSON loses is lost here too."""
        self.conductor = conducting.WorkflowConductor.deserialize(json.loads(json.dumps(self.conductor.serialize())))

    def _settle(self):
        if self.conductor.get_workflow_status() in statuses.COMPLETED_STATUSES:
            self.conductor.render_workflow_output()
        self._store()

    def _fail(self, error, task):
        self.conductor.request_workflow_status(statuses.FAILED)
        self.conductor.log_error(error, task_id=task["id"], route=task["route"])
        self._settle()

    # -- asking for tasks

    def _request_next(self):
        while True:
            tasks = self.conductor.get_next_tasks()
            if not tasks:
                self._settle()
                return
            for task in tasks:
                if task["spec"].has_items() and task.get("items_count") == 0:
                    self._update(task["id"], task["route"], events.ActionExecutionEvent(statuses.RUNNING))
                for action in task["actions"]:
                    item = action.get("item_id")
                    event = events.ActionExecutionEvent(statuses.RUNNING) if item is None else \
                        events.TaskItemActionExecutionEvent(item, statuses.RUNNING)
                    self._update(task["id"], task["route"], event)
            self._settle()
            for task in tasks:
                try:
                    self._request(task)
                except Exception as error:
                    self._fail(error, task)
                    return

    def _update(self, task_id, route, event):
        self.conductor.update_task_state(task_id, route, event)

    def _request(self, task):
        key, spec = (task["id"], task["route"]), task["spec"]
        execution = self.executions.get(key)
        if execution is None:
            execution = {"task_execution_id": new_id(), "workflow_execution_id": self.workflow_id,
                         "task_name": task["id"], "task_id": task["id"], "route": task["route"], "result": None,
                         "status": statuses.RUNNING, "start_timestamp": _now(), "end_timestamp": "None"}
            _task_executions[self.workflow_id].append(execution)
            if spec.has_items():
                execution["result"] = {"items": [None] * task["items_count"]}
                self.executions[key] = execution
        if spec.action is None or (spec.has_items() and task["items_count"] == 0):
            record = self._record(task, None, None)
            self.engine.report.started(record, {})
            record.update(status=statuses.SUCCEEDED, result=None, seconds=0.0)
            self.engine.report.ended(record)
            self.executions.pop(key, None)
            execution.update(status=statuses.SUCCEEDED, end_timestamp=_now())
            self._update(task["id"], task["route"], events.ActionExecutionEvent(statuses.SUCCEEDED))
            self._store()
            return
        for action in task["actions"]:
            self._launch(task, action, execution)

    def _record(self, task, item, ref):
        name = task["id"] if item is None else "%s[%d]" % (task["id"], item)
        record = {"id": task["id"], "name": self.path + name, "route": task["route"], "item": item, "action": ref,
                  "status": statuses.RUNNING, "result": None, "seconds": 0.0}
        self.engine.report.add(record)
        return record

    def _launch(self, task, action, execution):
        item, ref = action.get("item_id"), action["action"]
        parent = {"execution_id": self.id, "user": _SYSTEM_USER, "pack": self.engine.pack.name}
        context = {"pack": ref.split(".")[0], "user": _SYSTEM_USER, "parent": parent,
                   "orquesta": {"workflow_execution_id": self.workflow_id,
                                "task_execution_id": execution["task_execution_id"], "task_name": task["id"],
                                "task_id": task["id"], "task_route": task["route"]}}
        if item is not None:
            context["orquesta"]["item_id"] = item
        prepared = self.engine.prepare(ref, action["input"], context)
        record = self._record(task, item, ref)
        delay, concurrency = task.get("delay") or 0, task.get("concurrency")
        if item is not None and concurrency and item >= concurrency:
            delay = 0  # only the first batch waits

        def work():
            time.sleep(delay)
            self.engine.report.started(record, prepared[2])
            start = time.monotonic()
            try:
                status, result = self.engine.run(prepared, context, record["name"] + "/")
            except Exception as error:  # a bug of the harness must not leave the workflow waiting
                status, result = "failed", {"error": "%s: %s" % (type(error).__name__, error), "traceback": ""}
            record.update(status=status, result=result, seconds=round(time.monotonic() - start, 3))
            self.engine.report.ended(record)
            self.done.put((task["id"], task["route"], item, status, result, execution))

        self.running += 1
        threading.Thread(target=work, daemon=True).start()

    # -- taking results

    def _complete(self, task_id, route, item, status, result, execution):
        self.running -= 1
        if item is None:
            execution.update(status=status, result=result, end_timestamp=_now())
            event = events.ActionExecutionEvent(status, result=result)
        else:
            items = execution["result"]["items"]
            items[item] = {"status": status, "result": result}
            event = events.TaskItemActionExecutionEvent(
                item, status, result=result, accumulated_result=[entry and entry["result"] for entry in items])
            if all(entry and entry["status"] in statuses.COMPLETED_STATUSES for entry in items):
                succeeded = all(entry["status"] == statuses.SUCCEEDED for entry in items)
                execution.update(status=statuses.SUCCEEDED if succeeded else statuses.FAILED, end_timestamp=_now())
                self.executions.pop((task_id, route), None)
        try:
            self._update(task_id, route, event)
        except Exception as error:
            self._fail(error, {"id": task_id, "route": route})
            return
        self._settle()


def _now():
    return time.strftime("%Y-%m-%d %H:%M:%S+00:00", time.gmtime())
