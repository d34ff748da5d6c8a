"""What is decided is carried out whole, also where a signal's handler (Ctrl-C) comes between."""

from collections.abc import Callable
from typing import Any

from fastmomentum.launch import Launch


class Whole:
    """A launch, and what is owed to the arrays: actions that may be done twice, of which none is left half done."""

    _launch: Launch
    _owed: tuple[int, Callable[[], None]] | None = None  # an action, due once there are so many steps
    _quick: Callable[[list[Any]], bool] | None

    @property
    def steps(self) -> int:
        """Updates done."""
        raise NotImplementedError

    def _carry_out(self, action: Callable[[], None]) -> None:
        """Do this whole; it may be done twice."""
        self._quick, self._owed = None, (0, action)
        self.finish()

    def finish(self) -> None:
        """Do what a signal may have left of a step, and what is owed and due.

        It is done before the signal's exception goes on; where another signal interrupts that, by whatever comes next.
        """
        try:
            self._pay()
        except BaseException:
            self._pay()
            raise

    def _pay(self) -> None:
        if "_launch" in self.__dict__:
            self._launch.finish()
        if self._owed is not None and self.steps >= self._owed[0]:
            self._owed[1]()
            self._owed = None
