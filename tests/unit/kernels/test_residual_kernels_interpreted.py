"""The kernels of low-rank residuals, of the rotation and of the hash of bases give the bits of their references, in Triton's interpreter."""

from __future__ import annotations

import pytest

from tests.unit.kernels.heads import DTYPES
from tests.unit.kernels.interpreted_hadamard import HEAD_DIMS
from tests.unit.kernels.interpreting import interpreted
from tests.unit.kernels.residuals import SHAPES

pytest.importorskip("triton", reason="triton has builds for Linux only: not Linux")
pytestmark = pytest.mark.timeout(300)

Found = dict[str, dict[str, bool]]


@pytest.fixture(scope="module")
def added() -> Found:
    return interpreted("interpreted_low_rank")


@pytest.fixture(scope="module")
def rotated() -> Found:
    return interpreted("interpreted_hadamard")


@pytest.fixture(scope="module")
def hashed() -> Found:
    return interpreted("interpreted_base_hash")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_what_the_kernel_adds_is_what_the_reference_adds_to_the_bit(name: str, dtype: str, added: Found) -> None:
    figures = added[f"{name} {dtype}"]
    assert figures["same bits"]
    assert figures["same bits at an odd byte"], "a payload may be a slice of a buffer"
    assert figures["broken is NaN"]


def test_the_check_of_the_sum_notices_one_bit_of_the_payload(added: Found) -> None:
    """Negative control."""
    assert not added["usual fp32"]["same bits of another payload"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_the_kernel_rotates_as_the_reference_does_to_the_bit(head_dim: int, dtype: str, rotated: Found) -> None:
    figures = rotated[f"{head_dim} {dtype}"]
    assert figures["same bits"]
    assert figures["no row"]


def test_the_check_of_the_rotation_notices_other_signs(rotated: Found) -> None:
    """Negative control. The fourth sign is the first that is negative."""
    assert all(rotated[f"{head_dim} fp32"]["flips differ"] for head_dim in HEAD_DIMS if head_dim > 3)


def test_the_kernel_hashes_as_the_reference_does_to_the_bit_at_every_size_and_number(hashed: Found) -> None:
    assert len(hashed) == 50
    for case, figures in hashed.items():
        assert figures["same"], case


def test_the_check_of_the_hash_notices_the_first_and_the_last_bit_and_other_numbers(hashed: Found) -> None:
    """Negative control."""
    for case, figures in hashed.items():
        assert not figures["same with a flipped bit"], case
        assert figures["same of the next numbers"] == case.startswith("0 "), case
