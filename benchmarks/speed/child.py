"""One system in a process of its own, for its peak memory: python -m benchmarks.speed.child step|training NAME CASE ROUNDS."""

from __future__ import annotations

import json
import sys

import diffusers

from .systems import Case, Systems
from .timing import by_turns, peak_memory, start_peak, synchronise
from .training import make_training


def main(kind: str, name: str, text: str, rounds: str) -> None:
    diffusers.utils.logging.set_verbosity_error()
    case = Case.from_json(text)
    start_peak(case.device)
    step = Systems(case, (name,)).steps()[name] if kind == "step" else make_training(name, case)
    # memory is at its most in a second step, where the first one's results are still there
    seconds = by_turns({name: step}, int(rounds), case.device)[name]
    synchronise(case.device)
    print(json.dumps({"peak_memory": peak_memory(case.device), "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
