"""Named choices of one kind: losses, heads, tuning methods, augmentations, sources."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


class Registry(dict[str, T]):
    """A dictionary that functions or classes enter by a decorator, `@registry.register("name")`.

    Args:
        kind (`str`): What the choices are, for error messages.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[T], T]:
        """Enter a choice under the name users write.

        Raises:
            ValueError: If the name is taken.
        """

        def decorate(choice: T) -> T:
            if name in self:
                taken_by = getattr(self[name], "__qualname__", self[name])
                raise ValueError(f"The {self.kind} {name!r} is already registered by {taken_by}; choose another name.")
            self[name] = choice
            return choice

        return decorate

    def choose(self, name: str) -> T:
        """The choice of that name.

        Raises:
            ValueError: If there is none.
        """
        if name not in self:
            raise ValueError(f"Unknown {self.kind} {name!r}; choose one of {', '.join(self)}.")
        return self[name]


def listed(names: Iterable[str], *, last: str = "or") -> str:
    """ "lora, norms or full"."""
    *others, end = names
    return f"{', '.join(others)} {last} {end}" if others else end
