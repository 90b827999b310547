"""Speed and memory beside other systems: `python -m benchmarks.speed --help`."""
