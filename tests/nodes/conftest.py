"""Nothing here needs a network."""

from tests.nodes.offline import offline
from tests.nodes.postgres import postgres

__all__ = ("offline", "postgres")
