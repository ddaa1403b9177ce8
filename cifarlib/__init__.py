"""cifarlib: what decides the accuracy of a small residual network on CIFAR-10?

A reproducible report around one study. The way of the data:
``config`` (what is run) → ``sweep`` and ``training`` (run it) → ``records`` (what came out)
→ ``tables`` and ``figures`` (show it) → ``report`` (notebooks, HTML).
"""

import time

STARTED = time.monotonic()
"""When this process began to load cifarlib: a sweep's budget counts from there."""

__version__ = "0.1.0"
