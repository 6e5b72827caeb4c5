"""The warning about untested versions."""

import warnings

import pytest

from lightning_byz import errors, versions


@pytest.fixture(autouse=True)
def _never_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_WARNED", set())


def test_silent_on_tested_versions() -> None:
    versions.warn_if_untested()
    assert versions.untested() == []


def test_warns_once_and_names_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", {"torch": "2.13.1+cpu", "lightning": "3.0.0rc1"}.__getitem__)
    with pytest.warns(UserWarning, match=r"tested with torch 2\.13, lightning 2\.6, and finds lightning 3\.0\.0rc1;"):
        versions.warn_if_untested()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        versions.warn_if_untested()
