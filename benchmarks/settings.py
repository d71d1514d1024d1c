"""What every benchmark has in common; imports nothing that a contender would have to wait for."""

import os
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
THREADS = min(2, os.cpu_count() or 1)
FULL = os.environ.get("BENCH") == "full"
