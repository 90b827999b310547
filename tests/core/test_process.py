"""What a command asks of its own process, each tried in a process of its own."""

import platform
import subprocess
import sys

import pytest

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


def faults(first):
    command = [sys.executable, "-c", FAULTS.format(first=first)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone is set")
def test_memory_that_is_freed_is_not_fetched_again():
    kept = faults("from livephoto_core.commands.process import keep_freed_memory; keep_freed_memory()")
    given_back = faults("import ctypes; ctypes.CDLL(None).mallopt(-3, 2**17)")
    assert kept < given_back / 2, (kept, given_back)
