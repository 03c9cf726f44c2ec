"""Stands in for StackStorm's sensor container on a lab node: runs the pack's sensor until stdin is closed, and prints
each trigger that it dispatches as one line of JSON. What a real one refuses, test/sensor does; here the trigger instance
is there at once, and workflow/rules.py, to which the line goes, says what StackStorm would have refused."""
import json
import logging
import os
import sys
import threading
import types

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)), "/opt/stackstorm/packs/st2ha/sensors"]


class TriggerInstance:
    """Of st2common/persistence/trigger.py: the newest of a trigger."""
    made = []

    def __init__(self, trigger, payload):
        self.trigger, self.payload = trigger, payload

    @classmethod
    def query(cls, trigger, order_by, limit):
        assert order_by == ["-occurrence_time"], order_by
        return [i for i in reversed(cls.made) if i.trigger == trigger][:limit]


class TriggerDispatcherService:
    """Of st2common/services/trigger_dispatcher.py."""

    def __init__(self, logger):
        pass

    def dispatch(self, trigger, payload=None, trace_tag=None, throw_on_validation_error=False):
        print(json.dumps({"trigger": trigger, "payload": payload}), flush=True)
        TriggerInstance.made = TriggerInstance.made[-1000:] + [TriggerInstance(trigger, payload)]


def module(name, **names):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(names)


module("jsonschema", ValidationError=type("ValidationError", (Exception,), {}))
for package in ("st2common", "st2common.persistence", "st2common.services"):
    module(package, __path__=[])
module("st2common.persistence.trigger", TriggerInstance=TriggerInstance)
module("st2common.services.trigger_dispatcher", TriggerDispatcherService=TriggerDispatcherService)
from backend_sensor import BackendSensor  # noqa: E402


class Service:
    def get_logger(self, name):
        return logging.getLogger(name)


def end_with_stdin():
    sys.stdin.read()
    sensor.cleanup()


logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
sensor = BackendSensor(Service(), {"watch_suspect_events": True})  # their times are measured
sensor.setup()
threading.Thread(target=end_with_stdin, daemon=True).start()
sensor.run()
