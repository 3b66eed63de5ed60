"""A base model or texts that are not here: a folder is named, and a hub is asked with notice."""

from __future__ import annotations

import logging

import pytest

from rankcast.config.learner import DatasetConfig
from rankcast.errors import DataError, ModelError
from rankcast.learner import base_models
from rankcast.learner.datasets import load_dataset


@pytest.mark.parametrize("name", ["./models/none", "/models/none", "models/of/nobody", "../none"])
def test_a_missing_folder_is_not_asked_for_at_the_hub(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ModelError, match="there is no such folder"):
        base_models.is_decoder(name)
    assert caplog.text == ""


def test_the_hub_is_asked_with_notice(caplog: pytest.LogCaptureFixture) -> None:
    base_models._say_hub.cache_clear()
    with caplog.at_level(logging.WARNING), pytest.raises(ModelError, match="models/none"):
        base_models.is_decoder("models/none")  # the suite is offline
    assert "models/none is no folder here: looking for it on the Hugging Face hub" in caplog.text
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match="texts/none"):
        load_dataset(DatasetConfig(source="texts/none"))
    assert "texts/none is no file or folder here" in caplog.text
