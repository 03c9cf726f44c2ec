"""Runs the watcher st2ha-watch, and dispatches each of its lines as a trigger."""
import json
import os
import select
import signal
import subprocess
import threading
import time

from st2reactor.sensor.base import Sensor

LAUNCHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "actions", "st2ha-watch")
EVENTS = ("backend_changed", "backend_healed", "healing_gave_up")
FIRST_DELAY, LONGEST_DELAY = 1, 60  # seconds until a watcher that has ended is started again
STEADY = 60  # seconds after which one is no longer taken for one that crashes at once


class BackendSensor(Sensor):
    def __init__(self, sensor_service, config=None):
        super().__init__(sensor_service=sensor_service, config=config)
        self._log = sensor_service.get_logger(name=self.__class__.__name__)
        self._watcher = None
        self._stopped = False

    def setup(self):
        pass

    def run(self):
        # The container gives up on a sensor after two respawns, so a watcher that ends is started again here.
        delay = FIRST_DELAY
        while not self._stopped:
            started = time.monotonic()
            try:
                self._watch()
            except OSError as error:
                self._log.error("st2ha-watch: %s", error)
            if time.monotonic() - started > STEADY:
                delay = FIRST_DELAY
            end = time.monotonic() + delay
            while not self._stopped and time.monotonic() < end:
                time.sleep(0.1)
            delay = min(2 * delay, LONGEST_DELAY)

    def cleanup(self):
        self._stopped = True
        self._end(self._watcher)

    def add_trigger(self, trigger):
        pass

    def update_trigger(self, trigger):
        pass

    def remove_trigger(self, trigger):
        pass

    def _watch(self):
        # Settings may hold passwords, so they go by the environment. stdin stays open, and tells the watcher by its end
        # that this process is gone. A group of its own, for the launcher may have children while it builds the watcher.
        settings = {name: value for name, value in self.config.items() if name.startswith("watch_")}
        watcher = subprocess.Popen([LAUNCHER], env=dict(os.environ, ST2HA_WATCH_CONFIG=json.dumps(settings)),
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   start_new_session=True)
        self._watcher = watcher
        log = threading.Thread(target=self._each_line, args=(watcher.stderr, self._say), daemon=True)
        log.start()
        try:
            self._each_line(watcher.stdout, self._dispatch)
        finally:
            self._end(watcher)
            log.join(1)
            for pipe in (watcher.stdin, watcher.stdout, watcher.stderr):
                pipe.close()
        if not self._stopped:
            self._log.error("st2ha-watch ended with status %s; it is started again", watcher.returncode)

    def _each_line(self, pipe, take):
        # select(2) and read(2), for to iterate over the pipe would block all green threads of the container's eventlet.
        rest = b""
        while not self._stopped:
            ready, _, _ = select.select([pipe.fileno()], [], [], 0.5)
            if not ready:
                continue
            data = os.read(pipe.fileno(), 65536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                take(line.decode("utf-8", "replace"))

    def _say(self, line):
        self._log.info("st2ha-watch: %s", line)

    def _dispatch(self, line):
        try:
            event = json.loads(line)
            name = event["event"]
        except (ValueError, TypeError, KeyError):
            name = None
        if name not in EVENTS:
            self._log.error("st2ha-watch: no event: %s", line)
            return
        try:
            # Blocks while the broker is away. The watcher keeps what happens meanwhile.
            self.sensor_service.dispatch(trigger="st2ha." + name, payload=event)
        except Exception as error:  # pylint: disable=broad-except
            self._log.error("not dispatched: %s: %s", line, error)

    @staticmethod
    def _end(watcher):
        if watcher is None or watcher.returncode is not None:
            return
        try:
            os.killpg(watcher.pid, signal.SIGTERM)
            watcher.wait(0.5)
        except subprocess.TimeoutExpired:
            pass
        finally:
            try:
                os.killpg(watcher.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            watcher.wait()
