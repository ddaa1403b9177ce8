"""cifarlib: what decides the accuracy of a small residual network on CIFAR-10?

A reproducible report around one study. The way of the data:
``config`` (what is run) → ``sweep`` and ``training`` (run it) → ``records`` (what came out)
→ ``tables`` and ``figures`` (show it) → ``report`` (notebooks, HTML).
"""

__version__ = "0.1.0"
