"""Loading a base on the null card."""

from pathlib import Path

import pytest

from tests.null_card.host import NullCard

pytestmark = pytest.mark.null_card


def test_the_first_load_holds_a_base_once(null_card: NullCard, llama: Path, tmp_path: Path) -> None:
    """The model that is quantized and the one that is built from its values must not stand side by side."""
    first, second = null_card.ask("loading:loads", settings={"QLORA_GUI_CACHE": str(tmp_path)}, base=str(llama))
    assert first["stays"] == pytest.approx(second["stays"], rel=0.01)
    assert first["peak"] < 1.1 * second["peak"]  # it was 1.24 times, and nearly 2 of a base that is mostly linears
