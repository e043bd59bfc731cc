"""Files that are not on this machine: what can read them."""

from __future__ import annotations


def is_remote(location: str) -> bool:
    return "://" in location


def why_unreadable(location: str) -> str | None:
    """What has to be installed first, or named instead; None if there is something that reads such addresses."""
    import fsspec  # here: files of this machine need none

    scheme = location.partition("://")[0].rpartition("::")[2]
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None)
        # The package of a module may have another name, but fsspec knows it.
        return f"to read {scheme}://" + (f", pip install {package}" if str(package) in str(error) else f": {error}")
    except ValueError:
        return f"{scheme}:// cannot be read; name a path, or an address at http(s)://, s3://, gs:// or the like"
    return None
