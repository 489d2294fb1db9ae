import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tts_agent.engines.embedded.matrix import LARGE, PANEL, Matrix


def check(rows: int, inputs: int, outputs: int, biased: bool) -> None:
    generator = torch.Generator().manual_seed(rows + outputs)
    x = torch.randn(rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    bias = torch.randn(outputs, generator=generator) if biased else None
    y = Matrix(weight, bias)(x)
    assert y.shape == (rows, outputs)
    torch.testing.assert_close(y, F.linear(x, weight, bias), rtol=1e-4, atol=1e-3)


@settings(deadline=None)
@given(rows=st.integers(0, 40), inputs=st.integers(1, 70), outputs=st.integers(1, 130), biased=st.booleans())
def test_a_small_matrix_multiplies_as_linear_does(rows: int, inputs: int, outputs: int, biased: bool) -> None:
    check(rows, inputs, outputs, biased)


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(0, 40), odd=st.integers(0, PANEL), biased=st.booleans())
def test_a_matrix_in_panels_multiplies_as_linear_does(rows: int, odd: int, biased: bool) -> None:
    check(rows, 2048, LARGE // 2048 + odd, biased)


def test_rows_are_multiplied_alike_alone_and_together() -> None:
    weight = torch.randn(LARGE // 512 + 5, 512)
    x = torch.randn(9, 512)
    matrix = Matrix(weight)
    torch.testing.assert_close(torch.cat([matrix(row.unsqueeze(0)) for row in x]), matrix(x), rtol=1e-4, atol=1e-4)
