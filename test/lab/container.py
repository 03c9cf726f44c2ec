"""Stands in for StackStorm's sensor container on a lab node: runs the pack's sensor until stdin is closed, and prints
each trigger that it dispatches as one line of JSON."""
import json
import logging
import os
import sys
import threading

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)), "/opt/stackstorm/packs/st2ha/sensors"]
from backend_sensor import BackendSensor  # noqa: E402


class Service:
    def get_logger(self, name):
        return logging.getLogger(name)

    def dispatch(self, trigger, payload=None, trace_tag=None):
        print(json.dumps({"trigger": trigger, "payload": payload}), flush=True)


def end_with_stdin():
    sys.stdin.read()
    sensor.cleanup()


logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
sensor = BackendSensor(Service(), {})
sensor.setup()
threading.Thread(target=end_with_stdin, daemon=True).start()
sensor.run()
