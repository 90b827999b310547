"""Timing by turns, peak memory, the machine and what it can do at most."""

from __future__ import annotations

import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def synchronise(device: str) -> None:
    """Wait for what was launched."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def by_turns(steps: dict[str, Callable[[], object]], rounds: int, device: str, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each step, A B C A B C ..., so that a machine that slows down slows down all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(warm_up + rounds):
        for name, step in steps.items():
            synchronise(device)
            start = time.perf_counter()
            step()
            synchronise(device)
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values), "values": values}


def paired_ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over rounds of ours / theirs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _attention_flops(query: tuple, key: tuple, value: tuple, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


def flops(step: Callable[[], object]) -> int:
    """Floating point operations of a step: products, convolutions and attention, forward."""
    # torch counts its attention on GPUs alone
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        step()
    return counter.get_total_flops()


def peak_flops(device: str, dtype: torch.dtype) -> float:
    """Floating point operations a second of a large matrix product, the best of several."""
    side = 8192 if torch.device(device).type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(by_turns({"product": lambda: a @ b}, 8, device)["product"])


def start_peak(device: str) -> None:
    """Count the peak of GPU memory from here on."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: str) -> int:
    """Bytes: what the GPU's allocator held at most, or on a CPU this process's largest resident set."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would count the parent, too: a new process starts with the peak of the one that it came from
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine(device: str) -> dict[str, str]:
    """What ran: device and versions."""
    import diffusers

    if torch.device(device).type == "cuda":
        what = torch.cuda.get_device_name()
    else:
        what = f"{os.cpu_count()} CPU cores ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"
    return {
        "device": what,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
