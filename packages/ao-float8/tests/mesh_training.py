"""What each of two processes runs: the example that trains on a mesh."""

from __future__ import annotations

import argparse


def train_on_a_mesh(tensor_parallel: int, device: str) -> None:
    import train_distributed

    args = argparse.Namespace(
        shape="tiny",
        tensor_parallel=tensor_parallel,
        steps=3,
        batch=4,
        context=32,
        lr=0.01,
        compile=False,
        backend="aot_eager",
        device=device,
    )
    losses = train_distributed.train(args)
    assert 5 < losses[0] < 6 and losses[-1] < losses[0] - 0.5, losses


def train_on_both_meshes(device: str = "cpu") -> None:
    for tensor_parallel in (1, 2):
        train_on_a_mesh(tensor_parallel, device)
