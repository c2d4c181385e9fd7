"""Checkpoints of tiny models, written once a run, and quiet progress bars."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import causal_lm
from transformers.utils import logging

import ao_hf  # noqa: F401


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> Iterator[None]:
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny causal language model in bfloat16, several files; read only."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            causal_lm(kind).save_pretrained(made[kind], max_shard_size="100KB")
        return made[kind]

    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
