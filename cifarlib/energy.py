"""Energy: what a processor or a card has used, where the platform tells it.

Both kinds of counter only ever rise and belong to the whole device, so that what else it does in
the meantime is counted with the run. Where there is no counter, or nobody may read it, nothing is
told: an unknown energy is None, never 0.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
"""Linux' counters of Intel's and AMD's processors (RAPL), in µJ; often for root alone."""

NVML = "libnvidia-ml.so.1"
"""NVIDIA's management library, part of the driver."""


class Counter:
    """A counter in joules that begins anew at ``span``."""

    def __init__(self, read: Callable[[], float | None], span: float = float("inf")):
        self._read, self._span = read, span
        self._last = read()
        self._used = 0.0

    @property
    def joules(self) -> float | None:
        """Used since this object was made; None where the counter cannot be read.

        To be looked at more often than the counter begins anew, which takes it many minutes.
        """
        now = self._read()
        if now is None or self._last is None:
            self._last = None
            return None
        step = now - self._last
        self._used += step if step >= 0 else step + self._span
        self._last = now
        return self._used


class Meter:
    """The energy that the device of a run uses from now on, its counters added up."""

    def __init__(self, device_class: str, card: str = "", powercap: Path = POWERCAP):
        """``card`` is the UUID of a CUDA device, as torch gives it."""
        if device_class == "cuda":
            self._counters = [Counter(_card_counter(card))]
        else:
            self._counters = [_processor_counter(folder) for folder in _processors(powercap)]

    def read(self) -> float | None:
        """Joules since the meter was made; None where they are not told."""
        used = [counter.joules for counter in self._counters]
        known = [joules for joules in used if joules is not None]
        return round(sum(known), 1) if known and len(known) == len(used) else None


# ---------------------------------------------------------------------------------------------
# Processors
# ---------------------------------------------------------------------------------------------


def _processors(powercap: Path) -> list[Path]:
    """A folder for each processor; their parts, and the platform as a whole, would count twice."""
    return [
        folder
        for folder in sorted(powercap.glob("intel-rapl:*"))
        if folder.name.count(":") == 1 and (_text(folder / "name") or "").startswith("package")
    ]


def _processor_counter(folder: Path) -> Counter:
    span = _microjoules(folder / "max_energy_range_uj")
    return Counter(lambda: _microjoules(folder / "energy_uj"), span or float("inf"))


def _microjoules(path: Path) -> float | None:
    try:
        return int(_text(path) or "") / 1e6
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


# ---------------------------------------------------------------------------------------------
# Cards
# ---------------------------------------------------------------------------------------------


def _card_counter(card: str) -> Callable[[], float | None]:
    """A card's counter of millijoules since its driver was loaded (Volta and newer)."""
    try:
        library = ctypes.CDLL(NVML)
        device = ctypes.c_void_p()
        name = card if card.startswith(("GPU-", "MIG-")) else f"GPU-{card}"
        if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(
            name.encode(), ctypes.byref(device)
        ):
            return lambda: None
        total = library.nvmlDeviceGetTotalEnergyConsumption
    except (OSError, AttributeError):  # no driver, or one that is too old
        return lambda: None

    def read() -> float | None:
        millijoules = ctypes.c_ulonglong()
        return None if total(device, ctypes.byref(millijoules)) else millijoules.value / 1000

    return read
