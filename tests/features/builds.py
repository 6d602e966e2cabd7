"""Prints the features that `make features` builds together, one build a line; with `--all`, every feature instead.

For any two features, one of the builds has the first without the second, unless the first enables the second. So code of a
feature that needs another one fails to compile, as it would if each feature were built alone, in a sixth of the builds.

Each feature is in a few of the builds. One feature is without another somewhere if its builds are not all among those of the
other (Sperner): of 9 builds there are 126 choices of 4, and none of them contains another. A feature is also in the builds of
those that enable it, so the choices are made one by one, each so that the promise is kept.
"""

import itertools
import json
import random
import subprocess
import sys

PACKAGE = "tower-storage-guard"


def features():
    """Each feature, with those that it enables."""
    metadata = json.loads(subprocess.check_output(["cargo", "metadata", "--no-deps", "--format-version=1"]))
    [package] = [package for package in metadata["packages"] if package["name"] == PACKAGE]
    direct = {name: set(enabled) & package["features"].keys() for name, enabled in package["features"].items()}
    del direct["default"]

    def closure(name):
        return set().union(*({enabled} | closure(enabled) for enabled in direct[name]))

    return {name: closure(name) for name in direct}


def choose(enabled, count, seed):
    """The builds of each feature as bits, or None if this order of the choices has none that fits."""
    choices = [sum(1 << build for build in some) for some in itertools.combinations(range(count), count // 2)]
    random.Random(seed).shuffle(choices)
    chosen, within = {}, dict.fromkeys(enabled, 0)
    # What enables others is the hardest to place, and then what is enabled.
    shared = set().union(*enabled.values())
    by_need = sorted(enabled, key=lambda name: (-len(enabled[name]), name not in shared, name))
    for name in by_need:
        # As few new builds as possible for what it enables.
        for choice in sorted(choices, key=lambda choice: sum((within[other] | choice).bit_count() for other in enabled[name])):
            also = {other: within[other] | choice for other in {name} | enabled[name]}
            if holds(enabled, chosen | {name: choice}, within | also, also):
                chosen[name] = choice
                within |= also
                break
        else:
            return None
    return chosen


def holds(enabled, chosen, within, changed):
    """Whether each chosen feature is somewhere without each other one, as far as a change can have changed that."""
    return all(
        chosen[one] & ~within[other]
        for one in chosen
        for other in (chosen if one in changed else changed)
        if one != other and other not in enabled[one]
    )


if __name__ == "__main__":
    enabled = features()
    if "--all" in sys.argv:
        print(*enabled)
    else:
        # Random choices have less in common than those in order, and so leave more room for the next ones.
        tries = ((count, seed) for count in itertools.count(6) for seed in range(20))
        count, chosen = next((count, chosen) for count, seed in tries if (chosen := choose(enabled, count, seed)))
        for build in range(count):
            print(",".join(f"{PACKAGE}/{name}" for name in chosen if chosen[name] >> build & 1))
