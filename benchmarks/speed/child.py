"""One system in a process of its own, for its peak memory."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import diffusers

from livephoto_core.commands.process import keep_freed_memory, take_huge_pages
from livephoto_core.errors import LivePhotoError

from .systems import Case, Systems
from .timing import by_turns, peak_memory, start_peak, synchronise
from .training import make_training

# a fork server imports these once, its children start with nothing but them; none makes a tensor, before which a child is set up
PRELOADED = [__name__, "diffusers", "transformers.models.clip.modeling_clip", "torch._dynamo"]
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def measure_alone(kind: str, name: str, case: Case, rounds: int) -> dict[str, Any]:
    """Peak memory in bytes and seconds of "step" or "training" of a system.

    Raises:
        LivePhotoError: it failed, most likely for want of memory.
    """
    context = multiprocessing.get_context(START)
    if START == "forkserver":
        context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_measure, kind, name, case, rounds).result()
        except (RuntimeError, MemoryError, BrokenProcessPool) as error:
            cause = " ".join(str(error).split())[:300]
            raise LivePhotoError(f"{name} alone failed ({cause}): try a smaller case") from error


def _measure(kind: str, name: str, case: Case, rounds: int) -> dict[str, Any]:
    diffusers.utils.logging.set_verbosity_error()
    if name == "livephoto":
        # as its command does
        keep_freed_memory()
        take_huge_pages()
    start_peak(case.device)
    step = Systems(case, (name,)).steps()[name] if kind == "step" else make_training(name, case)
    # memory is at its most in a second step, where the first one's results are still there
    seconds = by_turns({name: step}, rounds, case.device)[name]
    synchronise(case.device)
    return {"peak_memory": peak_memory(case.device), "seconds": seconds}
