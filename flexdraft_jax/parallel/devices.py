"""What kinds of devices can do, from the vendors' data sheets."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Device:
    """One JAX device.

    Attributes:
        flops: dense bfloat16 (T4: float16) FLOP/s.
        bandwidth: of its memory, bytes/s.
        interconnect: bytes/s that it sends to its neighbours over all links, while it receives as
            many: ICI, NVLink or PCIe. 0 where nobody has looked it up.
    """

    flops: float
    bandwidth: float
    interconnect: float = 0.0


# TPUs: cloud.google.com/tpu/docs, where "bidirectional" counts both ways: half of it here.
DEVICES = {
    "TPU v4": Device(275e12, 1228e9, 300e9),
    "TPU v5 lite": Device(197e12, 819e9, 200e9),
    "TPU v5": Device(459e12, 2765e9, 600e9),
    "TPU v5p": Device(459e12, 2765e9, 600e9),
    "TPU v6 lite": Device(918e12, 1640e9, 400e9),
    "Tesla T4": Device(65e12, 320e9, 16e9),
    "NVIDIA L4": Device(121e12, 300e9, 32e9),
    "NVIDIA A100": Device(312e12, 1555e9, 300e9),
    "NVIDIA H100": Device(989e12, 3350e9, 450e9),
    "NVIDIA H200": Device(989e12, 4800e9, 450e9),
}


def find_device(kind: str) -> Device | None:
    """A device by JAX's `device_kind`; None for one that the table does not know."""
    # GPUs add memory and socket to their name: "NVIDIA A100-SXM4-80GB".
    found = next((name for name in DEVICES if name in kind and "TPU" not in name), kind)
    return DEVICES.get(found)
