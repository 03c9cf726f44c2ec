"""Prints what a join did, for people: summary.py RESULT.json SECONDS."""
import json
import sys

result = json.load(open(sys.argv[1]))
output = result.get("output") or {}
nodes = output.get("nodes")
for host, node in sorted(nodes.items()) if isinstance(nodes, dict) else []:
    print(host)
    for name, said in node["steps"].items():
        print("  %-19s %s" % (name, said))
    for change in node["changes"]:
        lines = [l for l in change["diff"].splitlines() if not l.startswith(("---", "+++", "@@"))]
        print("    %s %s" % (change["kind"], change["target"]))
        for line in lines:
            print("      " + line)
    for finding in node["findings"]:
        print("  %s: %s -> %s" % (finding["severity"], finding["message"], finding["fix"]))
for error in [] if result["status"] == "succeeded" else result["errors"]:
    print("error: %s" % error.get("message"))
print("\n%s in %s s" % ("joined" if result["status"] == "succeeded" else "NOT JOINED", sys.argv[2]))
