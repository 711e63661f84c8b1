"""How many bytes of requests' bodies the server holds at a time, whoever sent them."""

from __future__ import annotations

from llavakit.core.errors import OverloadedError

__all__ = ["Bodies", "HeldBody"]


class Bodies:
    """All bodies that arrive or wait for their pictures to be opened. Touched on the event loop only.

    Parameters
    ----------
    max_bytes : int
        One more byte is refused, and its request with it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0

    def hold(self) -> HeldBody:
        """Begin a body, of no bytes yet."""
        return HeldBody(self)


class HeldBody:
    """One body."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Count bytes that have arrived.

        Raises
        ------
        OverloadedError
            If all bodies together are too large now.
        """
        bodies = self._bodies
        if bodies.num_bytes + num_bytes > bodies.max_bytes:
            raise OverloadedError(
                f"the requests that are being received hold {bodies.num_bytes} bytes, and {bodies.max_bytes} is the "
                "limit of all together here. Try again in a moment, or send smaller pictures.",
                retry_after_s=2,
            )
        bodies.num_bytes += num_bytes
        self._num_bytes += num_bytes

    def release(self) -> None:
        """Count none of it any more; a second call changes nothing."""
        self._bodies.num_bytes -= self._num_bytes
        self._num_bytes = 0
