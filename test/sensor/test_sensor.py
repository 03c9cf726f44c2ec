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
PATHS = [HERE, os.path.join(HERE, "..", "..", "sensors")]
sys.path[:0] = PATHS
import backend_sensor  # noqa: E402
from stackstorm import StackStorm  # noqa: E402

backend_sensor.LAUNCHER = os.path.join(HERE, "watcher.py")
backend_sensor.FIRST_DELAY, backend_sensor.LONGEST_DELAY, backend_sensor.LONGEST_WITHOUT = 0.2, 0.8, 1.6
backend_sensor.FIRST_RETRY, backend_sensor.LONGEST_RETRY, backend_sensor.PATIENCE = 0.1, 0.4, 1
SECRET, OTHER = "p'a\"s@s/w:o$r%d", "0ther-s3cret"


class Service:
    """Stands in for the sensor service (st2reactor/container/sensor_wrapper.py:67)."""

    def __init__(self):
        self.logged = []
        self.logger = logging.Logger("sensor")
        handler = logging.Handler()
        handler.emit = lambda record: self.logged.append(record.getMessage())
        self.logger.addHandler(handler)

    def get_logger(self, name):
        assert name == "BackendSensor", name
        return self.logger


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
        self.stackstorm = StackStorm()
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
            self.assertLess(time.monotonic(), end, "%s, logged: %s" % (self.stackstorm.instances[-20:], self.service.logged[-10:]))
            time.sleep(0.02)

    def all_said(self):
        return os.path.exists(self.path("said"))

    def names(self):
        """The ids of the trigger instances, in order."""
        return [payload["id"] for _, payload in self.stackstorm.instances]

    def test_dispatch(self):
        gave_up = {"event": "healing_gave_up", "target": "redis.service", "node": "n", "reason": "healed 3 times"}
        first, second = json.dumps(event(reason="größer")), json.dumps(event(state="up"))
        self.start({"line": first[:20], "pause": 0.2}, {"line": first[20:] + "\n" + second + "\n"}, line(gave_up))
        self.wait(self.all_said)
        self.assertEqual(self.stackstorm.instances, [
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
        # Each is set aside, said without its escape sequences, and does not come again.
        deep = '{"event": "backend_changed", "id": ' + "[" * 5000 + "]" * 5000 + "}\n"
        self.start({"line": "no json\x1b[31m\n[1]\nnull\n\udcff\n"}, line({"event": "pwned"}), line({"id": 1}), {"line": deep},
                   line(event(state=5)), line(event(state="broken")), line({"event": "backend_changed", "id": "1"}), line(event()),
                   {"error": "a word\x1b[2J\nof the watcher\n"})
        self.wait(lambda: self.all_said() and any("of the watcher" in said for said in self.service.logged))
        self.assertEqual(self.stackstorm.instances, [("st2ha.backend_changed", event())])
        self.assertEqual(self.stackstorm.published, self.stackstorm.instances)
        aside = [said for said in self.service.logged if "set aside" in said]
        self.assertEqual(len(aside), 10, self.service.logged)
        self.assertIn("10 so far", aside[-1])
        self.assertIn("st2ha-watch: a word [2J", self.service.logged)
        self.assertNotIn("\x1b", "".join(self.service.logged))
        self.assertLess(max(len(said) for said in aside), 1000)
        self.assertEqual(len(self.pids()), 1)

    def test_schema_that_is_refused(self):
        # The list form of draft 4 is registered, and refused at each dispatch: nothing is lost by that.
        schema = self.stackstorm.schemas["st2ha.backend_changed"]
        schema["required"] = ["id"]
        self.start(line(event()))
        self.wait(lambda: any("is not of type 'boolean'" in said for said in self.service.logged))
        self.assertEqual(self.stackstorm.published, [])
        del schema["required"]
        self.wait(self.all_said)
        self.assertEqual(self.names(), ["i1"])

    def test_killed(self):
        # What it says again is known, and one trigger instance.
        self.start(line(event()), forgets=True, said=self.path("said"))
        for count in (1, 2, 3):
            self.wait(lambda: len(self.pids()) == count and self.all_said())  # pylint: disable=cell-var-from-loop
            os.unlink(self.path("said"))
            os.kill(self.pids()[-1], signal.SIGKILL)
        self.wait(self.all_said)
        self.assertTrue(any("status -9" in said for said in self.service.logged), self.service.logged)
        self.assertEqual((len(self.stackstorm.published), self.names()), (1, ["i1"]))

    def test_crashes_at_once(self):
        begun = time.monotonic()
        self.start({"error": "make a directory\n"}, ends=3)
        self.wait(lambda: len(self.pids()) >= 5, 30)
        self.assertGreater(time.monotonic() - begun, 0.2 + 0.4 + 0.8 + 1.6)
        descriptors = len(os.listdir("/proc/self/fd"))
        count = len(self.pids())
        self.wait(lambda: len(self.pids()) > count + 1, 30)
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), descriptors + 4)
        self.assertEqual(self.service.logged, ["st2ha-watch: make a directory", "st2ha-watch: ended with status 3; it is started again"])

    def test_no_launcher(self):
        launcher, backend_sensor.LAUNCHER = backend_sensor.LAUNCHER, "/nonexistent"
        self.addCleanup(setattr, backend_sensor, "LAUNCHER", launcher)
        self.start()
        self.wait(lambda: any("/nonexistent" in said for said in self.service.logged))
        backend_sensor.LAUNCHER = launcher
        self.wait(self.pids)

    def away(self, **what):
        """Something is away for a second while three events happen; they are there afterwards, once and in order."""
        for name, value in what.items():
            setattr(self.stackstorm, name, value)
        self.start(line(event(id="1")), line(event(id="2")), line(event(id="3")))
        time.sleep(1.2)
        self.assertEqual(self.stackstorm.instances, [])
        self.assertFalse(self.all_said())
        for name in what:
            setattr(self.stackstorm, name, True)
        self.wait(self.all_said)
        self.assertEqual(self.names(), ["1", "2", "3"])

    def test_broker_away(self):
        self.away(broker=False)
        self.assertGreater(self.stackstorm.tried, 2)
        self.assertLess(self.stackstorm.tried, 12, "not at full speed")

    def test_database_away(self):
        self.away(database=False)

    def test_both_away(self):
        self.away(broker=False, database=False)

    def test_message_lost(self):
        # The socket had taken it, and the broker died: RabbitMQ confirms nothing to StackStorm (transport/publishers.py:70).
        self.stackstorm.lose = 1
        self.start(line(event(id="1")), line(event(id="2")))
        self.wait(self.all_said)
        self.assertEqual(self.names(), ["1", "2"])

    def test_rules_engine_hangs(self):
        # No load on top of a backlog: one event waits, and is repeated ever more rarely.
        self.stackstorm.engine = False
        self.start(*(line(event(id=str(n))) for n in range(20)))
        time.sleep(3.5)
        self.assertLessEqual(len(self.stackstorm.published), 2)
        self.stackstorm.engine = True
        self.wait(self.all_said)
        names = self.names()
        self.assertEqual(list(dict.fromkeys(names)), [str(n) for n in range(20)])
        self.assertLessEqual(len(names), 21)

    def test_restarted_in_an_outage(self):
        self.stackstorm.broker = False
        self.start(line(event(id="1")), line(event(id="2")))
        self.wait(lambda: self.stackstorm.tried)
        self.stop()
        self.start(line(event(id="1")), line(event(id="2")))
        self.wait(lambda: len(self.pids()) == 2)
        os.kill(self.pids()[-1], signal.SIGKILL)
        self.wait(lambda: len(self.pids()) == 3)
        self.stackstorm.broker = True
        self.wait(self.all_said)
        self.assertEqual(self.names(), ["1", "2"])

    def test_dispatch_blocks(self):
        # What the watcher says to stderr meanwhile does not block it, and other threads of the container run.
        ticks, publish = [], self.stackstorm.publish

        def slow(*message):
            time.sleep(3)
            publish(*message)

        def tick():
            while self.sensor is not None:
                ticks.append(time.monotonic())
                time.sleep(0.05)
        self.stackstorm.publish = slow
        self.start({"error": "y" * 999 + "\n", "times": 500}, line(event(id="1")))
        threading.Thread(target=tick, daemon=True).start()
        self.wait(self.all_said)
        self.assertEqual(self.names(), ["1"])
        self.assertLess(max(b - a for a, b in zip(ticks, ticks[1:])), 1)

    def test_idle_watcher_blocks_nobody(self):
        self.start()
        self.wait(self.pids)
        begun = time.monotonic()
        time.sleep(0.1)  # a green thread's sleep is late if another blocks
        self.assertLess(time.monotonic() - begun, 1)

    def test_cleanup_while_it_waits(self):
        self.stackstorm.broker = False
        self.start(line(event()))
        self.wait(lambda: self.stackstorm.tried)
        self.stop()

    def test_cleanup_of_a_stubborn_watcher(self):
        self.start(line(event()), stubborn=True, deaf=True)
        self.wait(lambda: self.stackstorm.instances)
        self.stop()

    def test_cleanup_twice_and_early(self):
        self.sensor = backend_sensor.BackendSensor(sensor_service=self.service)
        self.sensor.cleanup()
        self.sensor.cleanup()
        self.thread = threading.Thread(target=self.sensor.run)
        self.thread.start()

    def process(self, **config):
        """The sensor as a process of its own, in front of a StackStorm whose trigger instances outlive it."""
        config = {"watch_" + name: value for name, value in {"started": self.path("started"), **config}.items()}
        code = ("import sys; sys.path[:0] = %r\nimport logging, backend_sensor, stackstorm\nbackend_sensor.LAUNCHER = %r\n"
                "stackstorm.StackStorm(%r)\n"
                "class Service:\n  def get_logger(self, name): return logging.getLogger(name)\n"
                "backend_sensor.BackendSensor(Service(), %r).run()\n"
                % (PATHS, backend_sensor.LAUNCHER, self.path("instances"), config))
        return subprocess.Popen([sys.executable, "-c", code])

    def test_killed_sensor(self):
        with self.process() as process:
            self.wait(self.pids)
            process.kill()
        self.wait(lambda: not alive(self.pids()[0]), 3)

    def instances(self):
        try:
            with open(self.path("instances"), "rb") as file:
                return file.read().count(b"\n")
        except FileNotFoundError:
            return 0

    def test_killed_at_any_point(self):
        events, kills = 10000, 0
        while True:
            with self.process(events=events, event=event(), said=self.path("said")) as process:
                # After so many more instances, other ones each time: by time, a slow machine would get nowhere.
                enough = self.instances() + 50 + 317 * kills % 900
                self.wait(lambda: self.instances() >= min(enough, events) or self.all_said(), 60)
                if self.instances() >= events:
                    self.wait(self.all_said, 60)
                process.kill()
            self.wait(lambda: not any(map(alive, self.pids())), 5)
            if self.all_said():
                break
            kills += 1
            self.assertLess(kills, 100)
        self.assertGreater(kills, 2)
        with open(self.path("instances"), encoding="utf-8") as file:
            numbers = [json.loads(text)[1]["seq"] for text in file]
        self.assertEqual(numbers, list(range(events)), "each is there, once and in order, after %d kills" % kills)


if __name__ == "__main__":
    unittest.main()
