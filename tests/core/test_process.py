"""What a command asks of its own process, each tried in a process of its own."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

# faults of 64 MiB that torch asks for once
LARGE = """
import resource
{first}
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

# faults of a page each time that 16 MiB are asked for and let go again, as a layer's output is
FAULTS = """
import resource, torch
{first}
def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(2**22)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(3)
print(faults(20))
"""


def faults(first, script=FAULTS, **environment):
    command = [sys.executable, "-c", script.format(first=first)]
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"} | environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone is set")
def test_memory_that_is_freed_is_not_fetched_again():
    kept = faults("from livephoto_core.commands.process import keep_freed_memory; keep_freed_memory()")
    given_back = faults("import ctypes; ctypes.CDLL(None).mallopt(-3, 2**17)")
    assert kept < given_back / 2, (kept, given_back)


@pytest.mark.skipif(not HUGE_PAGES.is_file() or "[madvise]" not in HUGE_PAGES.read_text(), reason="no huge pages for the asking")
def test_large_tensors_lie_in_huge_pages_unless_the_environment_says_otherwise():
    asked = "from livephoto_core.commands.process import take_huge_pages; take_huge_pages()"
    plain, huge, told = (
        faults(*what, LARGE, **told) for what, told in ((("",), {}), ((asked,), {}), ((asked,), {"THP_MEM_ALLOC_ENABLE": "0"}))
    )
    assert huge < plain / 4 and told > plain / 2, (plain, huge, told)
