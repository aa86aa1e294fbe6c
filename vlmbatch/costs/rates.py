"""What GPUs keep up, and what share of it runs have reached."""

from __future__ import annotations

from dataclasses import dataclass

from vlmbatch.errors import ConfigError


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """Floating-point operations a second of a matrix product, bytes a second of a copy.

    ``fp8_flops_per_second``: of a product in e4m3, where the device has it and it is asked for.
    """

    flops_per_second: float
    bytes_per_second: float
    fp8_flops_per_second: float | None = None

    def of_several(self, number: int) -> DeviceRates:
        """The rates of so many devices together."""
        fp8 = self.fp8_flops_per_second
        return DeviceRates(
            number * self.flops_per_second,
            number * self.bytes_per_second,
            None if fp8 is None else number * fp8,
        )


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU by name. ``memory``: bytes. ``is_measured``: its rates are what `vlmbatch bench` has
    measured, and not a share of what its data sheet says."""

    name: str
    label: str
    memory: int
    rates: DeviceRates
    is_measured: bool


_GIB = 2**30
# Of a data sheet's dense 16-bit operations and bandwidth, what the measured GPUs keep up.
_FLOPS_SHARE, _BYTES_SHARE = 0.7, 0.87
_FP8_GAIN = 1.5  # of e4m3 products over 16-bit ones, in whole runs


def _measured(name: str, label: str, gib: float, tflops: float, tbytes: float) -> Gpu:
    rates = DeviceRates(tflops * 1e12, tbytes * 1e12, _FP8_GAIN * tflops * 1e12)
    return Gpu(name, label, int(gib * _GIB), rates, is_measured=True)


def _by_data_sheet(
    name: str, label: str, gib: float, tflops: float, tbytes: float, *, fp8: bool
) -> Gpu:
    flops = _FLOPS_SHARE * tflops * 1e12
    rates = DeviceRates(flops, _BYTES_SHARE * tbytes * 1e12, _FP8_GAIN * flops if fp8 else None)
    return Gpu(name, label, int(gib * _GIB), rates, is_measured=False)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _measured("h100", "H100 80GB (SXM)", 79.2, 665, 2.97),
        _measured("h200", "H200 141GB", 139.8, 770, 4.1),
        _by_data_sheet("a100", "A100 80GB (SXM)", 79.2, 312, 2.04, fp8=False),
        _by_data_sheet("l40s", "L40S 48GB", 44.4, 362, 0.864, fp8=False),
        _by_data_sheet("l4", "L4 24GB", 22.0, 121, 0.3, fp8=False),
        _by_data_sheet("a10", "A10 24GB", 22.0, 125, 0.6, fp8=False),
    )
}


def parse_gpus(names: str) -> tuple[Gpu, ...]:
    """The GPUs of a comma-separated list, in its order.

    Raises:
        ConfigError: a name that is none, or one that comes twice.
    """
    wanted = [name.strip().lower() for name in names.split(",")]
    for name in wanted:
        if name not in GPUS:
            raise ConfigError(f"no GPU {name!r} is known; there are: {', '.join(GPUS)}")
        if wanted.count(name) > 1:
            raise ConfigError(f"GPU {name} is given twice in {names!r}")
    return tuple(GPUS[name] for name in wanted)


# Of the rows a second that arithmetic and reads in turn allow, the share that measured runs reach:
# docs/performance.md has them, 82 and 85 % with LLaVA-1.5-7B on an H200, 68 to 76 % with Qwen's.
_REACHED = {"llava": 0.85, "qwen2_vl": 0.74, "qwen2_5_vl": 0.74, "qwen3_vl": 0.74}
_REACHED_ELSEWHERE = 0.78


def reached_share(model_type: str) -> float:
    """What share of its bounds a model of this type is taken to reach."""
    return _REACHED.get(model_type, _REACHED_ELSEWHERE)
