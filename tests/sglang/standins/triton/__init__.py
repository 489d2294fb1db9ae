"""Stand-in for triton: kernels may be defined, none can be launched."""

import types

from idle import Idle, stand_in


def _kernel(*given, **_):
    """`jit`, `autotune` and `heuristics`, with arguments or without: what they decorate becomes idle."""
    if len(given) == 1 and isinstance(given[0], (types.FunctionType, Idle)):
        return given[0] if isinstance(given[0], Idle) else Idle(f"triton kernel {given[0].__name__}")
    return _kernel


class Config:
    """Plain data that tuning tables are made of."""

    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs


def cdiv(a, b):
    return -(-a // b)


def next_power_of_2(n):
    return 1 << (n - 1).bit_length()


__version__ = "3.9.0"

stand_in(
    __name__,
    # SGLang hooks into knobs where there are some.
    absent=["triton.knobs"],
    given={
        "triton": {
            "jit": _kernel,
            "autotune": _kernel,
            "heuristics": _kernel,
            "Config": Config,
            "cdiv": cdiv,
            "next_power_of_2": next_power_of_2,
        },
        "triton.language": {"constexpr": lambda value=None: value},
    },
)
