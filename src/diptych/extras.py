"""What installs a library that this install lacks.

Two distributions hold the same code and differ in what they require: `diptych` what using a model takes,
`diptych-shards` what building shards takes, without torch. Extras add the rest.
"""

from __future__ import annotations

import re


def pip_install(extra: str) -> str:
    """The command that adds an extra to the distribution that is installed here."""
    return f"pip install '{_distribution()}[{extra}]'"


def way_out(error: ModuleNotFoundError) -> str | None:
    """One line that says what installs the missing library; None if it is none that Diptych requires."""
    library = (error.name or "").partition(".")[0]
    for requirement in _requirements():
        name, _, marker = requirement.partition(";")
        if re.split(r"[^\w-]", name)[0].replace("-", "_").lower() == library:
            extra = re.search(r'extra == "([\w-]+)"', marker)
            install = pip_install(extra[1]) if extra else f"pip install {_distribution()}"
            return f"{library} is not installed; {install}"
    return "torch is not installed; pip install diptych" if library == "torch" else None


def _distribution() -> str:
    """The name that this code was installed by; `diptych` if it was not installed at all."""
    import importlib.metadata  # here, since it takes a third of the time in which a command starts

    names = ("diptych", "diptych-shards")
    return next((name for name in names if any(importlib.metadata.distributions(name=name))), names[0])


def _requirements() -> list[str]:
    import importlib.metadata

    try:
        return importlib.metadata.requires(_distribution()) or []
    except importlib.metadata.PackageNotFoundError:
        return []
