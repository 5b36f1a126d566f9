"""A number of inputs and a seed in; what each door said to them out: ``make fuzz``.

Exit code 1 when anything but the stated errors came, or an input took longer than a second; the input is printed.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from tests.fuzz.targets import TARGETS, Target

_SLOW_S = 1.0
_MOST_MEMORY_BYTES = 2 << 30


@dataclass
class Result:
    """What became of one target's inputs. ``broken`` has inputs, and why they should not have ended so."""

    said: Counter[str] = field(default_factory=Counter)
    broken: list[tuple[object, str]] = field(default_factory=list)
    seconds: float = 0.0


def fuzz(target: Target, inputs: int, seed: int) -> Result:
    """Draw ``inputs`` and try them; the same seed draws the same."""
    chance, result, begun = Random(f"{seed} {target.name}"), Result(), time.perf_counter()
    for _ in range(inputs):
        given = target.make(chance)
        at = time.thread_time()  # of this thread alone: a loaded machine makes no input slow
        try:
            target.run(given)
            said = "understood"
        except target.allowed as error:
            said = type(error).__name__
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            said = f"BROKEN {type(error).__name__}"
            result.broken.append((given, f"{type(error).__name__}: {error}"))
        if (took := time.thread_time() - at) > _SLOW_S:
            result.broken.append((given, f"took {took:.1f} s"))
        result.said[said] += 1
    result.seconds = time.perf_counter() - begun
    return result


def main() -> int:
    """Fuzz all targets, or one."""
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    options.add_argument("--inputs", type=int, default=1_000_000, help="in all (default: a million)")
    options.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options.add_argument("--only", choices=[target.name for target in TARGETS])
    chosen = options.parse_args()
    resource.setrlimit(
        resource.RLIMIT_AS, (_MOST_MEMORY_BYTES, resource.RLIM_INFINITY)
    )  # what allocates by a length fails
    targets = [target for target in TARGETS if chosen.only in {None, target.name}]
    shares = sum(target.share for target in targets)
    print(f"seed {chosen.seed}\n")
    print(f"{'':18} {'inputs':>9} {'inputs/s':>9}  answers")
    total, broken = 0, 0
    for target in targets:
        inputs = -(-chosen.inputs * target.share // shares)
        result = fuzz(target, inputs, chosen.seed)
        said = ", ".join(f"{name} {count}" for name, count in result.said.most_common())
        print(f"{target.name:18} {inputs:9} {inputs / result.seconds:9.0f}  {said}", flush=True)
        for given, why in result.broken[:5]:
            print(f"    {why[:300]}\n    {given!r}")
        total, broken = total + inputs, broken + len(result.broken)
    print(f"\n{total} inputs, {broken} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
