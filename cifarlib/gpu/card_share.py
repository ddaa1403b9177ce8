"""What part of a CUDA card a run takes: told without torch, which a sweep never imports."""

from cifarlib.config import NETWORKS, RunConfig

FULL = 420.0
"""GFLOP of a step with which a run fills a card by itself. An estimate for H100-class cards:
``cifarlib bench --device cuda`` says how many runs at once are worth it."""


def share(config: RunConfig, memory: float) -> float:
    """The part of a card, up to 1, that a run takes: of its ``memory`` (bytes) or arithmetic."""
    pixels = (config.resize.crop / 32) ** 2 if config.resize else 1.0
    images, network = config.batch_size * pixels, NETWORKS[config.model.name]
    kept = network.memory * 1e6 * (2 if config.precision == "fp32" else 1)
    state = 1e9  # weights, moments, best weights, an epoch's plan, of each program that is kept
    arithmetic = 3 * images * network.gflop
    return min(1.0, max((2 * kept * images + state) / memory, arithmetic / FULL))
