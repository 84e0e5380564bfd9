"""Translates the errors of an object store into those of a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sweep.errors import ConfigError, RetryLater
from trainer.store.objects import StoreError, StoreRefusedError


@contextmanager
def as_sweep_errors() -> Iterator[None]:
    """Raise a store's error inside the block as an error for a person.

    Raises:
        ConfigError: the store refuses the request.
        RetryLater: the store does not answer.
    """
    try:
        yield
    except StoreRefusedError as error:
        raise ConfigError(str(error)) from error
    except StoreError as error:
        raise RetryLater(str(error)) from error
