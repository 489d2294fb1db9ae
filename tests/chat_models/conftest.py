"""Nothing here needs a network."""

from tests.nodes.offline import offline

__all__ = ("offline",)
