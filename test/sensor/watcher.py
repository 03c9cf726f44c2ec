#!/usr/bin/env python3
"""Stands in for st2ha-watch: a real process that does what its settings say."""
import json
import os
import signal
import sys
import threading
import time

config = {name[len("watch_"):]: value for name, value in json.loads(os.environ["ST2HA_WATCH_CONFIG"]).items()}
if config.get("stubborn"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(config["started"], "a", encoding="ascii") as file:
    file.write("%d\n" % os.getpid())


def parent():
    sys.stdin.buffer.read()
    os._exit(0)


if not config.get("deaf"):
    threading.Thread(target=parent, daemon=True).start()
for item in config.get("says", []):
    stream = sys.stderr if "error" in item else sys.stdout
    stream.write(item.get("error", item.get("line", "")) * item.get("times", 1))
    stream.flush()
    time.sleep(item.get("pause", 0))
if "said" in config:
    with open(config["said"], "w", encoding="ascii") as file:
        file.write("all\n")
if "ends" in config:
    sys.exit(config["ends"])
while True:
    time.sleep(60)
