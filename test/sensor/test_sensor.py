"""Tests of the sensor, with StackStorm's eventlet patching if EVENTLET=1: `$(../workflow/setup.sh) test_sensor.py`."""
import os

PATCHED = os.environ.get("EVENTLET") == "1"
if PATCHED:
    import eventlet
    eventlet.monkey_patch(os=True, select=True, socket=True, thread=True, time=True)  # st2common/util/monkey_patch.py

# pylint: disable=wrong-import-position
import json  # noqa: E402
import logging  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
import unittest  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "..", "sensors")]
import backend_sensor  # noqa: E402

backend_sensor.LAUNCHER = os.path.join(HERE, "watcher.py")
backend_sensor.FIRST_DELAY = 0.2
backend_sensor.LONGEST_DELAY = 0.8
SECRET, OTHER = "p'a\"s@s/w:o$r%d", "0ther-s3cret"


class Service:
    """Stands in for the sensor service: dispatch blocks, as the real one does while the broker is away."""

    def __init__(self):
        self.dispatched, self.blocked, self.logged = [], 0, []
        self.logger = logging.Logger("sensor")
        handler = logging.Handler()
        handler.emit = lambda record: self.logged.append(record.getMessage())
        self.logger.addHandler(handler)

    def get_logger(self, name):
        assert name == "BackendSensor", name
        return self.logger

    def dispatch(self, trigger, payload=None, trace_tag=None):
        time.sleep(self.blocked)
        if payload.get("id") == "refused":
            raise ValueError("no such trigger")
        self.dispatched.append((trigger, payload))


def event(**fields):
    return {"event": "backend_changed", "id": "i1", "backend": "redis", "endpoint": "h:6379", "node": "n", "state": "down", **fields}


def line(value):
    return {"line": json.dumps(value) + "\n"}


def alive(pid):
    try:
        with open("/proc/%d/stat" % pid, encoding="ascii") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class SensorTest(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.dir)
        self.service, self.sensor, self.thread = Service(), None, None
        self.addCleanup(self.stop)

    def start(self, *says, **config):
        config = {"started": self.path("started"), "said": self.path("said"), "says": list(says), "mongodb_uri": SECRET, **config}
        config = {"watch_" + name: value for name, value in config.items()}
        config["rabbitmq_password"] = OTHER  # of the actions
        self.sensor = backend_sensor.BackendSensor(sensor_service=self.service, config=config)
        self.sensor.setup()
        self.thread = threading.Thread(target=self.sensor.run, daemon=True)
        self.thread.start()

    def stop(self):
        if self.sensor is None:
            return
        begun = time.monotonic()
        self.sensor.cleanup()
        took = time.monotonic() - begun
        self.thread.join(10)
        self.assertFalse(self.thread.is_alive())
        self.sensor = None
        self.assertLess(took, 1)
        self.assertEqual([pid for pid in self.pids() if alive(pid)], [])

    def path(self, name):
        return os.path.join(self.dir, name)

    def pids(self):
        try:
            with open(self.path("started"), encoding="ascii") as file:
                return [int(text) for text in file]
        except FileNotFoundError:
            return []

    def wait(self, what, seconds=20):
        end = time.monotonic() + seconds
        while not what():
            self.assertLess(time.monotonic(), end, "%s, logged: %s" % (self.service.dispatched, self.service.logged))
            time.sleep(0.02)

    def test_dispatch(self):
        gave_up = {"event": "healing_gave_up", "target": "redis.service", "node": "n", "reason": "healed 3 times"}
        first, second = json.dumps(event(reason="größer")), json.dumps(event(state="up"))
        self.start({"line": first[:20], "pause": 0.2}, {"line": first[20:] + "\n" + second + "\n"}, line(gave_up))
        self.wait(lambda: len(self.service.dispatched) == 3)
        self.assertEqual(self.service.dispatched, [
            ("st2ha.backend_changed", event(reason="größer")), ("st2ha.backend_changed", event(state="up")),
            ("st2ha.healing_gave_up", gave_up)])
        # Nobody sees settings in ps, and the watcher gets no others than its own.
        with open("/proc/%d/cmdline" % self.pids()[0], "rb") as file:
            self.assertNotIn(SECRET.encode(), file.read())
        with open("/proc/%d/environ" % self.pids()[0], "rb") as file:
            environment = file.read()
        self.assertIn(json.dumps(SECRET).encode(), environment)
        self.assertNotIn(OTHER.encode(), environment)

    def test_what_is_no_event(self):
        self.start({"line": "no json\n[1]\nnull\n\xff\n"}, line({"event": "pwned"}), line({"id": 1}), line(event(id="refused")), line(event()),
                   {"error": "a word\nof the watcher\n"})
        self.wait(lambda: self.service.dispatched and any("of the watcher" in said for said in self.service.logged))
        self.assertEqual(self.service.dispatched, [("st2ha.backend_changed", event())])
        self.assertEqual(sum("no event" in said for said in self.service.logged), 6, self.service.logged)
        self.assertEqual(sum("no such trigger" in said for said in self.service.logged), 1, self.service.logged)
        self.assertIn("st2ha-watch: a word", self.service.logged)

    def test_killed(self):
        self.start(line(event()))
        for count in (1, 2, 3):
            self.wait(lambda: len(self.service.dispatched) == count)  # pylint: disable=cell-var-from-loop
            os.kill(self.pids()[-1], signal.SIGKILL)
        self.wait(lambda: len(self.service.dispatched) == 4)
        self.assertTrue(any("status -9" in said for said in self.service.logged), self.service.logged)

    def test_crashes_at_once(self):
        begun = time.monotonic()
        self.start(ends=3)
        self.wait(lambda: len(self.pids()) >= 4, 30)
        self.assertGreater(time.monotonic() - begun, 0.2 + 0.4 + 0.8)
        descriptors = len(os.listdir("/proc/self/fd"))
        count = len(self.pids())
        self.wait(lambda: len(self.pids()) > count + 1, 30)
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), descriptors + 4)

    def test_no_launcher(self):
        launcher, backend_sensor.LAUNCHER = backend_sensor.LAUNCHER, "/nonexistent"
        self.addCleanup(setattr, backend_sensor, "LAUNCHER", launcher)
        self.start()
        self.wait(lambda: any("/nonexistent" in said for said in self.service.logged))
        backend_sensor.LAUNCHER = launcher
        self.wait(self.pids)

    def test_broker_away(self):
        # What the watcher says to stderr meanwhile does not block it, and other threads of the container run.
        self.service.blocked = 4
        ticks = []

        def tick():
            while self.sensor is not None:
                ticks.append(time.monotonic())
                time.sleep(0.05)
        self.start(line(event(id="1")), {"error": "y" * 999 + "\n", "times": 500}, line(event(id="2")))
        threading.Thread(target=tick, daemon=True).start()
        self.wait(lambda: os.path.exists(self.path("said")))
        self.assertEqual(self.service.dispatched, [])
        self.wait(lambda: len(self.service.dispatched) == 2)
        self.assertEqual([payload["id"] for _, payload in self.service.dispatched], ["1", "2"])
        self.assertLess(max(b - a for a, b in zip(ticks, ticks[1:])), 1)

    def test_idle_watcher_blocks_nobody(self):
        self.start()
        self.wait(self.pids)
        begun = time.monotonic()
        time.sleep(0.1)  # a green thread's sleep is late if another blocks
        self.assertLess(time.monotonic() - begun, 1)

    def test_cleanup_while_dispatch_blocks(self):
        self.service.blocked = 3
        self.start(line(event()))
        self.wait(lambda: os.path.exists(self.path("said")))
        self.stop()

    def test_cleanup_of_a_stubborn_watcher(self):
        self.start(line(event()), stubborn=True, deaf=True)
        self.wait(lambda: self.service.dispatched)
        self.stop()

    def test_cleanup_twice_and_early(self):
        self.sensor = backend_sensor.BackendSensor(sensor_service=self.service)
        self.sensor.cleanup()
        self.sensor.cleanup()
        self.thread = threading.Thread(target=self.sensor.run)
        self.thread.start()

    def test_killed_sensor(self):
        code = ("import sys; sys.path[:0] = %r\nimport logging, backend_sensor\nbackend_sensor.LAUNCHER = %r\n"
                "class Service:\n  def get_logger(self, name): return logging.getLogger(name)\n"
                "backend_sensor.BackendSensor(Service(), {'watch_started': %r}).run()\n"
                % (sys.path[:2], backend_sensor.LAUNCHER, self.path("started")))
        with subprocess.Popen([sys.executable, "-c", code]) as process:
            self.wait(self.pids)
            process.kill()
        self.wait(lambda: not alive(self.pids()[0]), 3)


if __name__ == "__main__":
    unittest.main()
