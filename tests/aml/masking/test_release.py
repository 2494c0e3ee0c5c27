"""The preset release: what the released code computes."""

import pytest
import torch
import torch.nn.functional as F

from aml.draws import uniform
from aml.masking.config import preset
from aml.masking.masker import Masker
from aml.masking.selection import block_sums, select_pixels, select_released
from tests.aml.masking.test_modes import passes_of


def weak_squares(blocks: list[tuple[int, int]]):
    """Weak pixels (1, 448, 448) where the named cells of a 14 x 14 map score 0.1, the others 0.9,
    and the threshold is 0.4.
    """
    scores = torch.full((1, 1, 14, 14), 0.9)
    for row, column in blocks:
        scores[0, 0, row, column] = 0.1
    return F.interpolate(scores, (448, 448), mode="bilinear", align_corners=False)[:, 0] < 0.4


def square(side, at=3):
    return [(at + r, at + c) for r in range(side) for c in range(side)]


def scattered(n):
    places = torch.randperm(196, generator=torch.Generator().manual_seed(n))[:n].tolist()
    return [(p // 14, p % 14) for p in places]


@pytest.mark.parametrize(
    "blocks, released, printed",
    [
        ([], 0, 0),
        (square(2), 0.46, 0.02),
        (square(3), 0.83, 0.046),
        (square(4), 0.97, 0.082),
        (square(5), 0.998, 0.128),
        (square(6), 1, 0.184),
        ([(2, 2), (2, 3), (5, 7), (8, 13), (13, 5)], 0.17, 0.026),
        (scattered(20), 0.62, 0.105),
        (scattered(49), 0.985, 0.29),
        (scattered(98), 1, 0.66),
    ],
)
def test_the_released_draw_blanks_far_more_than_is_weak(blocks, released, printed):
    """At 448 px, blocks of 32, threshold 0.4 and a quarter drawn: the shares measured on the
    released code, and the paper's own rule.
    """
    weak = weak_squares(blocks).expand(8, -1, -1)
    hidden = select_released(
        weak, rho=0.25, order=uniform(0, 0, torch.arange(8), "release", 448 * 448), block=32
    )
    assert hidden.float().mean() == pytest.approx(
        released, abs=0.1 if len(blocks) in (5, 20) else 0.04
    )
    literal = select_pixels(
        block_sums(weak.float(), 32).flatten(1),
        rho=0.25,
        order=uniform(0, 0, torch.arange(8), "select", 196),
    )
    assert literal.float().mean() == pytest.approx(printed, abs=0.04)


def test_the_released_draw_blanks_the_referent_too():
    strong = set(square(4))
    weak = weak_squares([(r, c) for r in range(14) for c in range(14) if (r, c) not in strong])
    hidden = select_released(
        weak, rho=0.25, order=uniform(0, 0, torch.arange(1), "release", 448 * 448), block=32
    )
    assert hidden.all()


def test_the_released_draw_by_hand():
    """16 px in blocks of 4: rows (block, offset), both cut off at 15, a quarter of them drawn, both
    numbers blanked.
    """
    weak = torch.zeros(1, 16, 16, dtype=torch.bool)
    weak[0, 4:8, 4:8] = True  # all of block 5
    weak[0, 13, 14] = True  # block 15, row 1 and column 2 of it: offset 6
    order = torch.rand(1, 256, generator=torch.Generator().manual_seed(3))
    rows = [(5, o) for o in range(16)] + [(15, 6)]  # in the order of block and offset
    drawn = sorted(rows, key=lambda row: order[0, row[0] * 16 + row[1]])[: int(0.25 * len(rows))]
    expected = torch.zeros(16, dtype=torch.bool)
    for block, offset in drawn:
        expected[block] = expected[min(offset, 15)] = True
    assert (
        torch.equal(select_released(weak, rho=0.25, order=order, block=4).flatten(), expected)
        and len(drawn) == 4
    )


def test_release_trains_both_passes_and_says_which_arm_it_is(make_model, batch):
    model = make_model()
    config = preset("release", block=8)
    assert config.arm == "aml/release" and (config.tau, config.rho, config.clean_weight) == (
        0.4,
        0.25,
        0.5,
    )
    masker = Masker(config, model=model, image_size=64)
    clean, masked = passes_of(masker, model, batch)
    assert (
        clean.upto == "encoder"
        and (clean.weight, masked.weight) == (0.5, 0.5)
        and masked.mask.hidden.any()
    )
