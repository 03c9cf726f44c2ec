"""What a sensor sees of a StackStorm 3.9.0: trigger types, the broker, the rules engine and the database. Each of them can be
away, as seen on a real one (docs/stackstorm.md, "Sensors, triggers and rules")."""
import itertools
import json
import os
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "workflow"))
import pack as packs  # noqa: E402  pylint: disable=wrong-import-position
import params  # noqa: E402  pylint: disable=wrong-import-position


class Away(Exception):
    """The broker or the database does not answer."""


class TriggerInstance:
    def __init__(self, trigger, payload):
        self.trigger, self.payload, self.occurrence_time = trigger, payload, time.time()


class StackStorm:
    current = None

    def __init__(self, file=None):
        sensor = packs.load_yaml(os.path.join(HERE, "..", "..", "sensors", "backend_sensor.yaml"))
        self.schemas = {"st2ha." + trigger["name"]: trigger["payload_schema"] for trigger in sensor["trigger_types"]}
        self.broker = self.database = self.engine = True
        self.lose = 0  # messages that the broker's socket takes just before it dies
        self.tried = 0  # in vain
        self.published, self._queue, self._instances = [], [], []
        self._file = None  # which outlives the process
        if file is not None:
            self._file = open(file, "a+", encoding="utf-8", buffering=1)  # pylint: disable=consider-using-with
            self._file.seek(0)
            self._queue += [tuple(json.loads(line)) for line in self._file]
        self._lock = threading.Lock()
        StackStorm.current = self

    def validate(self, trigger, payload):
        """validators/api/reactor.py:165 validate_trigger_payload, with the trigger type from the database."""
        if not self.database:
            raise Away("No servers found yet")
        if trigger not in self.schemas:
            raise ValueError('Trigger type with reference "%s" doesn\'t exist in the database' % trigger)
        params.validate_payload(self.schemas[trigger], payload)

    def publish(self, trigger, payload):
        with self._lock:
            self.published.append((trigger, payload))
            if self.lose:
                self.lose -= 1
                return
            self._queue.append((trigger, json.loads(json.dumps(payload))))
            if self._file:
                self._file.write(json.dumps([trigger, payload]) + "\n")

    def newest(self, trigger, limit):
        with self._lock:
            if not self.database:
                raise Away("No servers found yet")
            if self.engine:  # the rules engine makes an instance of each message: st2reactor/rules/worker.py:47
                self._instances += [TriggerInstance(*message) for message in self._queue]
                self._queue.clear()
            return list(itertools.islice((i for i in reversed(self._instances) if i.trigger == trigger), limit))

    @property
    def instances(self):
        with self._lock:
            return [(instance.trigger, instance.payload) for instance in self._instances]
