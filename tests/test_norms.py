"""--teacher-norm: names, numbers, and what is neither."""

from __future__ import annotations

import pytest

from mcd_cli.errors import UserError
from mcd_cli.norms import NORMS, parse_norm


def test_names_and_numbers() -> None:
    assert parse_norm("auto") is None
    assert parse_norm("half") == ((0.5,) * 3, (0.5,) * 3)
    assert parse_norm("none") == ((0.0,) * 3, (1.0,) * 3)
    assert parse_norm(".485,.456,.406/.229,.224,.225") == parse_norm("imagenet")
    assert parse_norm("0, 0, -1 / 1, 2, 3") == ((0.0, 0.0, -1.0), (1.0, 2.0, 3.0))
    for name in NORMS:
        assert parse_norm(name) == NORMS[name]


@pytest.mark.parametrize(
    "text",
    ["1,2/3", "1,2,3", "1,2,3/4,5", "1,2,3/0,1,1", "1,2,3/-1,1,1", "nan,0,0/1,1,1", "0,0,0/inf,1,1", "a,b,c/1,1,1"],
)
def test_what_is_no_mean_and_std(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a mean and std; write R,G,B/R,G,B, for example"):
        parse_norm(text)


@pytest.mark.parametrize("text", ["imagent", "IMAGENET", "", "cifar", "cifar10O", "half "])
def test_a_name_that_is_none(text: str) -> None:
    with pytest.raises(UserError, match="unknown normalisation"):
        parse_norm(text)


@pytest.mark.parametrize("text", ["1e39,0,0/1,1,1", "0,0,0/1e-46,1,1", "0,0,0/1e-30,1,1"])
def test_numbers_that_float32_cannot_divide_by(text: str) -> None:
    with pytest.raises(UserError):
        parse_norm(text)
