"""Settings that must be in place before a test imports torch or a Hugging Face library."""

import os

# Results and timings do not depend on the machine's core count; child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing may be fetched at run time: a try to do so fails instead of passing on a machine with a network.
os.environ["HF_HUB_OFFLINE"] = "1"
