#!/usr/bin/env python3
"""Stands in for st2ha-watch: a real process that says what its settings say, and like the real one (cmd/st2ha-watch/sensor.go)
gives a line when the one before is acknowledged, and again what was not when it ended."""
import hashlib
import json
import os
import signal
import sys
import threading
import time

config = {name[len("watch_"):]: value for name, value in json.loads(os.environ["ST2HA_WATCH_CONFIG"]).items()}
if config.get("stubborn"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
acks = open(config["started"] + ".acks", "a+", encoding="ascii", buffering=1)
acks.seek(0)
acknowledged = set() if config.get("forgets") else set(acks.read().split())
more = threading.Semaphore(0)
with open(config["started"], "a", encoding="ascii") as file:
    file.write("%d\n" % os.getpid())


def parent():
    for line in sys.stdin:
        acknowledged.add(line.strip())
        acks.write(line)
        more.release()
    os._exit(0)


def give(text):
    """Writes it, and waits until each line that is complete now is acknowledged."""
    give.rest, lines = "", (give.rest + text).split("\n")
    *lines, give.rest = lines
    ids = {hashlib.sha256(line.encode("utf-8", "surrogateescape")).hexdigest()[:24] for line in lines}
    if lines and ids <= acknowledged:
        return
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()
    while not ids <= acknowledged:
        more.acquire()


give.rest = ""
if not config.get("deaf"):
    threading.Thread(target=parent, daemon=True).start()
for number in range(config.get("events", 0)):
    give(json.dumps({**config["event"], "seq": number}) + "\n")
for item in config.get("says", []):
    if "error" in item:
        sys.stderr.write(item["error"] * item.get("times", 1))
        sys.stderr.flush()
    else:
        give(item["line"])
    time.sleep(item.get("pause", 0))
if "said" in config:
    with open(config["said"], "w", encoding="ascii") as file:
        file.write("all\n")
if "ends" in config:
    sys.exit(config["ends"])
while True:
    time.sleep(60)
