import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from callbacks.metrics import IdentificationMetric, PearsonMetric
from contracts import PADDING, Gallery
from tests.lightning_modules.processes import group

N = 23


def _scores(rank, world, silent):
    """Rows dealt unevenly, in mixed order, with padding and duplicates; process ``silent`` sees none."""
    g = torch.Generator().manual_seed(0)
    items = torch.arange(N)
    gallery = torch.randn(N, 8, generator=g)
    queries = gallery + torch.randn(N, 8, generator=g)
    signal, predicted = torch.randn(N, 2, 6, generator=g), torch.randn(N, 2, 6, generator=g)
    options = {"n_permutations": 19, "n_bootstraps": 20}
    found = IdentificationMetric(Gallery(gallery, items, items % 3, "image"), options=options | {"n_way": ((10, 1),)})
    encoded = PearsonMetric(options=options)
    speaking = [r for r in range(world) if r != silent]
    if rank in speaking:
        share = items.flip(0)[speaking.index(rank) :: len(speaking)]
        for rows in share.split(4):
            mixed = torch.cat([rows, rows[:1], rows[:1]])
            number = torch.cat([rows, rows[:1], torch.tensor([PADDING])])
            found.update(queries[mixed], mixed, mixed % 3, number)
            encoded.update(predicted[mixed], signal[mixed], mixed, number)
    results = found.compute() + encoded.compute()
    return [(e.name, e.value, e.low, e.high, e.p_value, e.n) for e in results]


def _process(rank, world, folder, silent, queue):
    with group(folder, rank, world):
        queue.put(_scores(rank, world, silent))
        dist.barrier()


@pytest.mark.parametrize(
    ("world", "silent"),
    [pytest.param(2, None, marks=pytest.mark.full), (2, 1), pytest.param(3, 0, marks=pytest.mark.full)],
)
def test_processes_agree(tmp_path, world, silent):
    alone = _scores(0, 1, None)
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_process, (world, tmp_path, silent, queue), nprocs=world)
    for _ in range(world):
        for ours, theirs in zip(alone, queue.get(), strict=True):
            assert ours[0] == theirs[0]
            assert ours[1:] == pytest.approx(theirs[1:], abs=1e-6)
    assert all(row[-1] == N for row in alone)


def test_nothing_to_score_is_an_error():
    with (
        pytest.raises(ValueError, match="no batch"),
        pytest.warns(UserWarning, match="before the ``update``"),
    ):
        PearsonMetric().compute()
