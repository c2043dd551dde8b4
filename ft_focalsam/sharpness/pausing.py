"""What can be told to look away for a while."""

from collections.abc import Iterator
from contextlib import contextmanager


class Pausable:
    """
    Attributes:
        is_paused (`bool`): Whether a `paused` block is open.
    """

    is_paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let it do nothing inside the block."""
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False
