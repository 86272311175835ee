"""Devices by what a plan needs of them: memory, speed, precision, price.

Nothing here asks the machine: a device is a name of this table, or built by whoever knows it. What of a device is not
published by its maker is an assumption, and `assumptions` says so with its source; a plan prints them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from finetune.errors import PlaceError
from finetune.recipe.nearest import find_nearest

__all__ = ["CPU", "DEVICES", "Device", "build_cpu", "find_device", "find_device_by_model"]

_GIB = 2**30
CPU = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device.

    Attributes:
        name: as `--device` takes it.
        label: as people write it.
        memory_bytes: that programs can have, as torch reports it: less than the size on the box.
        flops_per_second: reached by 16-bit matrix products; None: not known.
        bytes_per_second: of its memory, as published; None: not known.
        has_bfloat16: whether it multiplies bfloat16 in hardware.
        price_per_hour: in US dollars; None: nobody charges for it by the hour.
        assumptions: what of this was not published by the maker, each with its source.
    """

    name: str
    label: str
    memory_bytes: int
    flops_per_second: float | None
    bytes_per_second: float | None
    has_bfloat16: bool
    price_per_hour: float | None
    assumptions: tuple[str, ...] = ()

    def with_price(self, price_per_hour: float) -> "Device":
        """The same at a price of one's own, in US dollars an hour; the table's price is no assumption any more."""
        others = (one for one in self.assumptions if not one.startswith(_PRICE))
        own = f"{_PRICE}${price_per_hour:.2f} a device and hour, as given by --price"
        return replace(self, price_per_hour=price_per_hour, assumptions=(*others, own))

    @property
    def is_cpu(self) -> bool:
        """Whether it is the host itself."""
        return self.name == CPU


_PRICE = "price: "
_LIST_PRICE = f"{_PRICE}{{}} a GPU and hour, {{}}; yours: --price"
_SPECIALISED = (
    "the middle of what specialised clouds asked on demand in May 2026 (mercatus-ai.com/blog/cloud-gpu-pricing)"
)
_BY_HAND = "a round figure of 2025's public price lists"
_MEASURED = "products: {} TFLOP/s of {} published, measured (stas00/ml-engineering, compute/accelerator, Aug 2026)"
_GUESSED = "products: {} TFLOP/s of {} published, a guess: nobody's measurement is at hand"


def _gpu(
    name: str,
    label: str,
    memory_gib: float,
    teraflops: float,
    published: float,
    gigabytes_per_second: float,
    price: float,
    *,
    price_source: str = _SPECIALISED,
    is_measured: bool = False,
    has_bfloat16: bool = True,
) -> Device:
    reached = (_MEASURED if is_measured else _GUESSED).format(f"{teraflops:g}", f"{published:g}")
    return Device(
        name=name,
        label=label,
        memory_bytes=int(memory_gib * _GIB),
        flops_per_second=teraflops * 1e12,
        bytes_per_second=gigabytes_per_second * 1e9,
        has_bfloat16=has_bfloat16,
        price_per_hour=price,
        assumptions=(reached, _LIST_PRICE.format(f"${price:.2f}", price_source)),
    )


# Memory as torch reports it in out-of-memory messages, the least of several seen; bandwidth and published products
# (dense, 16 bits) from NVIDIA's data sheets. From the smallest on.
DEVICES: tuple[Device, ...] = (
    _gpu("t4", "T4 16 GB", 14.56, 42, 65, 320, 0.35, price_source=_BY_HAND, has_bfloat16=False),
    _gpu("l4", "L4 24 GB", 22.03, 85, 121, 300, 0.70, price_source=_BY_HAND),
    _gpu("rtx4090", "RTX 4090 24 GB", 23.52, 150, 165, 1008, 0.60, price_source=_BY_HAND),
    _gpu("a100-40gb", "A100 40 GB", 39.39, 271, 312, 1555, 1.29, price_source=_BY_HAND, is_measured=True),
    _gpu("a100-80gb", "A100 80 GB", 79.10, 271, 312, 2039, 1.30, is_measured=True),
    _gpu("h100", "H100 80 GB", 79.10, 794, 989, 3350, 3.00, is_measured=True),
    _gpu("h200", "H200 141 GB", 139.0, 794, 989, 4800, 4.00, is_measured=True),
)
_ALIASES: Mapping[str, str] = {
    "4090": "rtx4090", "rtx-4090": "rtx4090", "a100": "a100-40gb", "a100-40": "a100-40gb", "a100-80": "a100-80gb",
    "h100-80gb": "h100", "h200-141gb": "h200", "tesla-t4": "t4",
}  # fmt: skip
# Words of the name by which a driver calls a GPU; all of them have to be in it, the first row that fits is taken.
_WORDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("A100", "80GB"), "a100-80gb"),
    (("A100",), "a100-40gb"),
    (("H200",), "h200"),
    (("H100",), "h100"),
    (("4090",), "rtx4090"),
    (("L4",), "l4"),
    (("T4",), "t4"),
)
# Words of the name of a GPU that is slower or smaller than the one of the table whose name it shares, and the words
# beside which they say so: an A100 of the PCIe kind multiplies as fast as any, an H100 does not.
_OTHERS: tuple[tuple[str, str], ...] = (
    ("Laptop", ""), ("MIG", ""), ("NVL", ""), ("D", ""), ("Max", ""), ("PCIe", "H100"),
)  # fmt: skip


def find_device(name: str) -> Device:
    """Find a device of the table by the name of `--device`.

    Raises:
        PlaceError: there is none of that name.
    """
    wanted = _ALIASES.get(name.lower(), name.lower())
    for device in DEVICES:
        if device.name == wanted:
            return device
    known = [*(device.name for device in DEVICES), CPU]
    if not wanted.strip():
        raise PlaceError(f"--device needs a name.\n  There are: {', '.join(known)}.")
    near = find_nearest(wanted, known)
    meant = f"Did you mean {near[0]}? " if near else ""
    raise PlaceError(f"--device {name}: no such device is in the table.\n  {meant}There are: {', '.join(known)}.")


def find_device_by_model(model: str) -> Device | None:
    """Find a device of the table by what its driver calls it, e.g. `NVIDIA A100-SXM4-40GB`; None where it is not there.

    A part of a GPU (MIG), a laptop's and other kinds of like name are not there.

    Args:
        model: the driver's words.
    """
    words = model.replace("-", " ").split()
    if any(word in words and (not beside or beside in words) for word, beside in _OTHERS):
        return None
    for wanted, name in _WORDS:
        if all(word in words for word in wanted):
            return find_device(name)
    return None


def build_cpu(memory_bytes: int, *, has_bfloat16: bool, flops_per_second: float | None, source: str | None) -> Device:
    """Build this machine as a device.

    Args:
        memory_bytes: of the machine or of the container.
        has_bfloat16: whether it multiplies bfloat16 in hardware.
        flops_per_second: that whole steps reached on it; None: not known.
        source: where that is from.
    """
    known = () if flops_per_second is None else (f"products: {flops_per_second / 1e9:.3g} GFLOP/s, {source}",)
    return Device(
        name=CPU,
        label="this CPU",
        memory_bytes=memory_bytes,
        flops_per_second=flops_per_second,
        bytes_per_second=None,
        has_bfloat16=has_bfloat16,
        price_per_hour=None,
        assumptions=known,
    )
