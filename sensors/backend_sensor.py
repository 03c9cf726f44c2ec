"""Runs the watcher st2ha-watch, and makes each of its lines a trigger instance."""
import hashlib
import json
import logging
import os
import select
import signal
import subprocess
import threading
import time

from jsonschema import ValidationError
from st2common.persistence.trigger import TriggerInstance
from st2common.services.trigger_dispatcher import TriggerDispatcherService
from st2reactor.sensor.base import Sensor

LAUNCHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "actions", "st2ha-watch")
EVENTS = ("backend_changed", "backend_healed", "healing_gave_up")
FIRST_DELAY, LONGEST_DELAY = 1, 60  # seconds until a watcher that has ended is started again
NO_PROGRAM, LONGEST_WITHOUT = 3, 600  # the launcher's status where there is none, and that delay's bound then
STEADY = 60  # seconds after which one is no longer taken for one that crashes at once
FIRST_RETRY, LONGEST_RETRY = 1, 30  # seconds after a dispatch that failed
FIRST_LOOK, LONGEST_LOOK = 0.02, 1  # seconds between looks for a trigger instance
PATIENCE, LONGEST_PATIENCE = 20, 600  # seconds for one to be there until it is dispatched again
AGAIN = 100  # lines after a start that may be there already: more than the watcher had given and not heard of
NEWEST = 100  # trigger instances among which a new one is


class BackendSensor(Sensor):
    def __init__(self, sensor_service, config=None):
        super().__init__(sensor_service=sensor_service, config=config)
        self._log = sensor_service.get_logger(name=self.__class__.__name__)
        self._watcher = None
        self._stopped = False
        self._dispatcher = None
        self._lines = 0  # of this watcher
        self._aside = 0  # lines that were no events
        self._said, self._repeated = set(), set()  # by this watcher; by one before that crashed at once

    def setup(self):
        pass

    def run(self):
        # The container gives up on a sensor after two respawns, so a watcher that ends is started again here.
        delay = FIRST_DELAY
        while not self._stopped:
            started = time.monotonic()
            self._watcher, self._said = None, set()
            try:
                self._watch()
            except OSError as error:
                self._say(str(error), logging.ERROR)
            if self._stopped:
                return
            status = self._watcher and self._watcher.returncode
            self._say("ended with status %s; it is started again" % status, logging.ERROR)
            self._repeated = self._said
            if time.monotonic() - started > STEADY:
                delay, self._repeated = FIRST_DELAY, set()
            self._sleep(delay)
            delay = min(2 * delay, LONGEST_WITHOUT if status == NO_PROGRAM else LONGEST_DELAY)

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
                                   start_new_session=True, bufsize=0)
        self._watcher, self._lines = watcher, 0
        log = threading.Thread(target=self._each_line, args=(watcher.stderr, self._hear), daemon=True)
        log.start()
        try:
            self._each_line(watcher.stdout, self._take)
        finally:
            self._end(watcher)
            log.join(1)
            for pipe in (watcher.stdin, watcher.stdout, watcher.stderr):
                pipe.close()

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
                take(line)

    def _hear(self, line):
        self._say(line.decode("utf-8", "replace"))

    def _say(self, line, level=logging.INFO):
        """Logs a line of the watcher or the launcher, but for those of the one before if that ended soon."""
        line = "".join(c if c.isprintable() else " " for c in line)
        if line not in self._repeated:
            self._log.log(level, "st2ha-watch: %s", line)
        if len(self._said) < 1000:
            self._said.add(line)

    def _take(self, line):
        """Acknowledges a line when its trigger instance is there, or if it can never become one."""
        self._lines += 1
        try:
            event = json.loads(line)
            if event["event"] not in EVENTS:
                raise ValueError("there is no such event")
            taken = self._deliver("st2ha." + event["event"], event)
        except Exception as error:  # pylint: disable=broad-except # RecursionError, too
            self._aside += 1
            self._log.warning("st2ha-watch: no event, set aside, %d so far: %r: %s", self._aside, line[:200], str(error)[:200])
            taken = True
        if taken:
            try:
                self._watcher.stdin.write(hashlib.sha256(line).hexdigest()[:24].encode() + b"\n")
            except OSError:
                pass  # the watcher has ended, and the next one gives the line again

    def _deliver(self, trigger, event):
        """Says whether the trigger instance is there. Ends with ValidationError for what no schema will ever take."""
        sent, patience, retry, look = None, PATIENCE, FIRST_RETRY, FIRST_LOOK
        unsure, waits_for = self._lines <= AGAIN, None
        while self._is_watched():
            try:
                if (unsure or sent) and self._is_there(trigger, event):
                    return True
                unsure = False
                if sent and time.monotonic() - sent < patience:
                    self._sleep(look)
                    look = min(2 * look, LONGEST_LOOK)
                    continue
                # dispatch() returns when the broker's socket has the message; what dies there is dispatched once more.
                patience = min(2 * patience, LONGEST_PATIENCE) if sent else patience
                self._dispatch(trigger, event)
                sent, look = time.monotonic(), FIRST_LOOK
            except ValidationError:
                raise
            except Exception as error:  # pylint: disable=broad-except
                reason = str(error.__context__ or error)[:200]  # StackStorm's own words begin with the whole payload
                self._log.log(logging.DEBUG if reason == waits_for else logging.WARNING, "st2ha-watch: events wait: %s", reason)
                waits_for = reason
                self._sleep(retry)
                unsure, retry = True, min(2 * retry, LONGEST_RETRY)
        return False

    def _is_watched(self):
        """Whether the watcher lives. It is left to _end() to take its status, for until then its group is its own."""
        try:
            return not self._stopped and os.waitid(os.P_PID, self._watcher.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def _dispatch(self, trigger, event):
        # Not sensor_service's dispatch(): its connection stays broken after the broker was away for some seconds
        # ('NoneType' object has no attribute 'channel'), and without the database it returns as if all were well.
        if self._dispatcher is None:
            self._dispatcher = TriggerDispatcherService(self._log)
        try:
            self._dispatcher.dispatch(trigger=trigger, payload=event, throw_on_validation_error=True)
        except Exception as error:
            self._dispatcher = None
            if isinstance(error.__context__, ValidationError):
                raise error.__context__
            raise

    @staticmethod
    def _is_there(trigger, event):
        newest = TriggerInstance.query(trigger=trigger, order_by=["-occurrence_time"], limit=NEWEST)
        return any(instance.payload == event for instance in newest)

    def _sleep(self, seconds):
        end = time.monotonic() + seconds
        while not self._stopped and time.monotonic() < end:
            time.sleep(min(0.1, seconds))

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
