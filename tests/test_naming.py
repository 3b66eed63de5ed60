"""What a published file says of a model, and what it does not say of a machine."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankcast.naming import public_config, public_name


@pytest.mark.parametrize(
    "name", ["tiny", "org/model", "sentence-transformers/all-MiniLM-L6-v2", "Qwen/Qwen2.5-0.5B",
             "models--a--b", "made up", "gpt2", None],
)  # fmt: skip
def test_ids_of_the_hub_and_plain_names_stay(name: str | None) -> None:
    assert public_name(name) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/home/alice/llama", "llama"),
        ("/home/alice/llama/", "llama"),
        ("~/models/llama", "llama"),
        ("~alice/llama", "llama"),
        ("./llama", "llama"),
        ("../alice/llama", "llama"),
        ("runs/alice/llama", "llama"),
        ("C:\\Users\\alice\\llama", "llama"),
        ("c:/Users/alice/llama", "llama"),
        ("C:llama", "llama"),
        ("\\\\server\\alice\\llama", "llama"),
        ("\\\\?\\C:\\alice\\llama", "llama"),
        ("alice\\llama", "llama"),
        ("file:///home/alice/llama", "llama"),
        ("https://alice:secret@host.example/alice/llama?token=secret#x", "llama"),
        ("s3://alice/llama", "llama"),
        ("/home/alice/my model (v2)", "my model (v2)"),
        ("/home/alice/.cache/huggingface/hub/models--org--my-model/snapshots/0f1e", "org/my-model"),
        ("C:\\hub\\models--gpt2\\snapshots\\0f1e", "gpt2"),
        ("~", None),
        ("~alice", None),
        ("..", None),
        ("/home/alice/..", None),
        (".", None),
        ("/", None),
        ("C:\\", None),
        ("", None),
        ("https://alice:secret@host.example", None),
    ],
)
def test_of_a_path_the_last_part_stays(name: str, shown: str | None) -> None:
    assert public_name(name) == shown


FOLDERS = st.lists(st.text(string.ascii_lowercase, min_size=1), min_size=1)


@given(
    FOLDERS,
    st.sampled_from(["/", "~/", "~bob/", "./", "../", "../../", "C:\\", "\\\\", "D:/", "file:///"]),
    st.sampled_from(["/", "\\"]),
)
def test_no_folder_is_ever_named_properties(folders: list[str], start: str, between: str) -> None:
    name = start + between.join([*folders, "the-model"])
    assert public_name(name) == "the-model"
    assert public_name(public_name(name)) == "the-model"


def test_a_configuration_keeps_all_but_its_folders() -> None:
    config = {
        "base_model_name_or_path": "/home/alice/llama",
        "tokenizer_name_or_path": "org/model",
        "target_modules": r".*\.(q|k)_proj/~",
        "corda_config": {"cache_file": "C:\\Users\\alice\\cache.pt", "cov_mode": "a/b/c"},
        "profile": "/not/a/place",
        "adapters": {"0": "/home/alice/one", "1": "D:\\alice\\two"},
        "modules_to_save": ["~/alice/three", "score"],
        "r": 4,
        "revision": None,
    }
    assert public_config(config) == config | {
        "base_model_name_or_path": "llama",
        "corda_config": {"cache_file": "cache.pt", "cov_mode": "a/b/c"},
        "adapters": {"0": "one", "1": "two"},
        "modules_to_save": ["three", "score"],
    }
    assert config["base_model_name_or_path"] == "/home/alice/llama"
