"""Old names of public classes and functions, which go on working for one version."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any


def with_old_names(package: str, get: Callable[[str], Any], old: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package that knows its old names, too.

    Args:
        package (`str`): Its name, for the warning.
        get (callable): Its `__getattr__` without them.
        old (mapping): Old name -> new name.
    """

    def get_any(name: str) -> Any:
        if name in old:
            text = f"{package}.{name} is called {old[name]} now; the old name goes with the next version."
            warnings.warn(text, FutureWarning, stacklevel=2)
        return get(old.get(name, name))

    return get_any
