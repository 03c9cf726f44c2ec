"""Prints what a join did, for people: summary.py RESULT.json SECONDS."""
import json
import sys

result = json.load(open(sys.argv[1]))
output = result.get("output") or {}
for host, lines in sorted((output.get("nodes") or {}).items()):
    print(host)
    for line in lines:
        print("  " + line)
for step in output.get("steps") or []:
    for change in step["changes"]:
        print("\n%s: %s %s" % (step["host"], change["kind"], change["target"]))
        for line in change["diff"]:
            if not line.startswith(("---", "+++", "@@")):
                print("  " + line)
for error in [] if result["status"] == "succeeded" else result["errors"]:
    print("error: %s" % error.get("message"))
print("\n%s in %s s" % ("joined" if result["status"] == "succeeded" else "NOT JOINED", sys.argv[2]))
