"""Which storage URLs a room may hold, and what is shown of one."""

from __future__ import annotations

import pytest

from sweep.errors import ConfigError
from sweep.search.storage import check_url, opening, shown_url


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hidden@host/db",
        "postgresql://me:hidden/too@host/db",
        "postgresql://me:hidden@too@host/db",
        "postgresql://me:hidden%2Ftoo@host/db",
        "postgresql://:hidden@host/db",
        "postgresql://me:@host/db",
        "mysql+pymysql://me@host/db?password=hidden",
        "mysql://me@host/db?a=b&PASSWD=hidden",
        "redis://:hidden@host:6379/0",
        "x://me:hidden@",
    ],
)
def test_a_password_is_refused_and_not_printed(url: str) -> None:
    with pytest.raises(ConfigError, match=r"storage=\w+(\+\w+)?://… has a password") as caught:
        check_url(url)
    assert "hidden" not in str(caught.value)
    with pytest.raises(ConfigError) as opened, opening(url, "x"):  # of a room that an older version froze
        raise ValueError("no connection")
    assert "hidden" not in str(opened.value)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///sweeps.db",
        "sqlite:///a@b:c/x@y.db",
        "postgresql://host/db",
        "postgresql://me@host:5432/db",
        "mysql://me@host/db?read_default_file=~/.my.cnf",
    ],
)
def test_a_url_without_a_password_is_taken_and_shown(url: str) -> None:
    check_url(url)
    assert shown_url(url) == url
