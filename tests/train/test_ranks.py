# SPDX-License-Identifier: BSD-3-Clause
"""Two processes over gloo: the losses of one process, errors that end both, resuming with another number."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastseg.errors import EXIT_INTERRUPTED, InputError
from fastseg.train.checkpoint import RunFolder
from fastseg.train.ranks import Ranks, join
from tests.project import make_project
from tests.train import worker
from tests.train.processes import launch

EVERYTHING = (
    "data.validation=[{raw: phantoms.h5:/raw, labels: phantoms.h5:/somata}]",
    "data.train.0.annotated={slices: [0, 1, 2, 9]}",  # so that patches hold unequal numbers of labels
    *("train.steps=15", "train.batch=4", "train.ema=0.9", "train.validate_every=5", "data.patch=[4, 16, 16]"),
    *("loss.normalize=terms", "predict.overlap=0.25"),
)


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.open()]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes beside this one have: threads that wait for one another are slow on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def agreement(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("agreement")
    worker.scenario("agreement", folder)
    for done in launch(2, "agreement", folder):
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("masks", worker.MASKS)
@pytest.mark.parametrize("impl", worker.IMPL)
@pytest.mark.parametrize("normalize", worker.NORMALIZE)
def test_loss_and_gradient_are_those_of_the_whole_batch(
    agreement: Path, normalize: str, impl: str, masks: str
) -> None:
    case = (normalize, impl, masks)
    criterion, (logits, target, mask, weight) = worker.loss_case(*case)
    criterion.across_ranks = False
    logits.requires_grad_()
    expected = criterion(logits, target, mask, weight)
    expected.backward()
    for count in (1, 2):
        values, gradient = torch.load(agreement / f"losses_{count}.pt")[case]
        for value in values:  # the same on every process
            torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient, logits.grad, rtol=1e-12, atol=1e-18)


def test_batch_norm_is_that_of_the_whole_batch(agreement: Path) -> None:
    one, two = (torch.load(agreement / f"batch_norm_{count}.pt") for count in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(
            two[name], one[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_two_updates_per_step_are_those_of_one_process(agreement: Path) -> None:
    one, two = (RunFolder(agreement / f"adversaries_{count}") for count in (1, 2))
    for a, b in zip(rows(Path(one.file("log.jsonl"))), rows(Path(two.file("log.jsonl"))), strict=True):
        assert b == pytest.approx(a, rel=1e-9)
    torch.testing.assert_close(two.load()["network"], one.load()["network"], rtol=1e-9, atol=1e-12)


@pytest.mark.long
def test_training_in_two_processes_is_that_of_one(tmp_path: Path) -> None:
    make_project(tmp_path)
    worker.scenario("train", tmp_path, f"output={tmp_path}/one", *EVERYTHING)
    for done in launch(2, "train", tmp_path, f"output={tmp_path}/two", *EVERYTHING):
        assert done.returncode == 0, done.stderr
    for name, length, digits in (("log.jsonl", 15, 1e-9), ("validation.jsonl", 3, 1e-6)):
        one, two = rows(tmp_path / "one" / name), rows(tmp_path / "two" / name)
        assert len(one) == length
        for a, b in zip(one, two, strict=True):
            assert b == pytest.approx(a, rel=digits)
    first, second = (RunFolder(tmp_path / name).load() for name in ("one", "two"))
    for a, b in zip(weights(first), weights(second), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-7, atol=1e-9)


def weights(state: dict) -> list[torch.Tensor]:
    return [*state["network"].values(), *state["average"]["average"].values()]


@pytest.mark.long
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("input", "volume 7 is made of cheese"),
        ("stuck", "process 1 ended the run: volume 7 is made of cheese"),
        ("bug", "KeyError: 'lost key'"),
        ("killed", "its own output says why"),
    ],
)
def test_an_error_in_one_process_ends_both(tmp_path: Path, how: str, message: str) -> None:
    make_project(tmp_path)
    first, second = launch(2, "trouble", tmp_path, how)
    assert first.returncode == (1 if how == "bug" else 2), first.stderr
    assert message in first.stderr
    assert first.stderr.count("\n") == 1, first.stderr
    if how == "bug":
        assert second.returncode == 1
        assert second.stderr.startswith(
            "fastseg: this should not happen: KeyError: 'lost key'. The details are in "
        )
        assert second.stderr.count("\n") == 1
        log = Path(second.stderr.split("The details are in ")[1].split(": please")[0])
        assert "Traceback" in log.read_text()
        log.unlink()
    if how == "input":
        assert (second.returncode, second.stderr) == (2, f"fastseg: {message}\n")


@pytest.mark.long
def test_all_stop_at_the_same_step_when_one_is_asked_to(tmp_path: Path) -> None:
    make_project(tmp_path)
    first, second = launch(2, "trouble", tmp_path, "asked")
    assert (first.returncode, second.returncode) == (EXIT_INTERRUPTED, EXIT_INTERRUPTED), first.stderr
    assert "a signal to another process; the checkpoint of step 4 is written" in first.stderr
    assert "SIGUSR1; the checkpoint of step 4 is written" in second.stderr
    assert RunFolder(tmp_path / "trouble").checkpoints()[-1][0] == 4


def test_an_error_of_all_is_told_once(tmp_path: Path) -> None:
    done = launch(2, "read", tmp_path, tmp_path / "none.h5")
    assert [d.returncode for d in done] == [2, 2]
    assert sum(d.stderr.count("none.h5 does not exist") for d in done) == 1


def test_places_are_shared_out_in_order() -> None:
    shares = [list(Ranks(rank, 3).places(6)) for rank in range(3)]
    assert list(itertools.chain(*shares)) == list(range(6))
    assert len({len(share) for share in shares}) == 1
    with pytest.raises(InputError, match=r"multiple of the number of processes, 3, got 4"):
        Ranks(0, 3).places(4)


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = ("127.0.0.1", str(taken.getsockname()[1]))
        for name, value in zip(
            ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"),
            ("2", "0", "0", *where),
            strict=True,
        ):
            monkeypatch.setenv(name, value)
        with (
            pytest.raises(
                InputError, match=f"cannot meet at MASTER_ADDR:MASTER_PORT, {':'.join(where)}: .*in use"
            ),
            join("cpu"),
        ):
            pass


def test_an_incomplete_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(InputError, match=r"WORLD_SIZE=2 is set, but RANK, .* not: start with torchrun"),
        join("cpu"),
    ):
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(InputError, match=r"WORLD_SIZE must be a number, got 'two'"), join("cpu"):
        pass
