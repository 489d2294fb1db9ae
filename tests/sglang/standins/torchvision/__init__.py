"""Stand-in for torchvision: image processors may be imported, none can be used."""

import enum

from idle import stand_in


class InterpolationMode(enum.Enum):
    """Names that are defaults of image processors."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


__version__ = "0.28.0"

_GIVEN = {"InterpolationMode": InterpolationMode}

stand_in(
    __name__,
    given={
        "torchvision.io": _GIVEN,
        "torchvision.transforms": _GIVEN,
        "torchvision.transforms.functional": _GIVEN,
        "torchvision.transforms.v2": _GIVEN,
        "torchvision.transforms.v2.functional": _GIVEN,
    },
)
