"""One thread per process: the suite runs in two, and two cores is what a small machine has."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
