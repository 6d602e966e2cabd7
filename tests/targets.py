"""Prints `--test NAME` for each test target of the workspace, except for those that are named: tests/targets.py NAME..."""

import json
import subprocess
import sys

command = ["cargo", "metadata", "--no-deps", "--format-version", "1"]
packages = json.loads(subprocess.check_output(command))["packages"]
tests = {
    target["name"]
    for package in packages
    for target in package["targets"]
    if target["kind"] == ["test"]
}
named = set(sys.argv[1:])
if missing := named - tests:
    sys.exit(f"no such test: {' '.join(sorted(missing))}")
print(*(f"--test {name}" for name in sorted(tests - named)))
