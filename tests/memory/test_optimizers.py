"""The table of optimizers: each row against the real class, and a new row found by all that read it."""

import pytest
import torch

from qlora_gui import config as configs
from qlora_gui.config import RunConfig, make
from qlora_gui.diagnostics import settings
from qlora_gui.diagnostics.evidence import Seen
from qlora_gui.errors import UserError
from qlora_gui.memory import advice, budget, known_models
from qlora_gui.memory.estimate import plan
from qlora_gui.optimizers import DEFAULT, OPTIMIZERS, Optimizer
from qlora_gui.simulation.step import make_optimizer
from qlora_gui.system import kind
from qlora_gui.training.trainer import arguments
from tests import readme


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("count", [100, 5000])
def test_a_row_counts_the_states_of_the_real_optimizer(name: str, count: int) -> None:
    from transformers.training_args import OptimizerNames

    assert OptimizerNames(name)
    part = torch.nn.Parameter(torch.ones(count))
    optimizer = make_optimizer([part], make({"optimizer": name}))
    part.grad = torch.ones(count)
    optimizer.step()
    states = [value for value in optimizer.state[part].values() if isinstance(value, torch.Tensor)]
    maps = [
        state for state in states if state.numel() == 256 and state.dtype == torch.float32
    ]  # bitsandbytes' own tables
    held = sum(state.nbytes for state in states if state.numel() > 1) - sum(table.nbytes for table in maps)
    assert held == OPTIMIZERS[name].state_bytes(count)


def test_a_new_row_is_chosen_counted_and_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    lean = Optimizer("adamw_lean", "torch.optim.AdamW", states=1, eight_bit=True, needs_cuda=True)
    monkeypatch.setitem(OPTIMIZERS, lean.name, lean)
    assert lean.name in (configs.choices(configs.fields()["optimizer"]) or ())
    assert lean.name in readme.settings_table()
    usual, changed = (make({"optimizer": name, "base_model": "bigscience/bloom-560m"}) for name in (DEFAULT, lean.name))
    shape, card = known_models.find(usual), budget.card(24)
    assert plan(changed, shape, card).total < plan(usual, shape, card).total
    assert {"optimizer": lean.name} in [change.knobs for change in advice.changes(usual, shape, card)]
    assert not any("optimizer" in change.knobs for change in advice.changes(changed, shape, card))
    assert isinstance(make_optimizer([torch.nn.Parameter(torch.ones(1))], changed), torch.optim.AdamW)
    with pytest.raises(UserError, match=r"optimizer adamw_lean needs a CUDA GPU: choose adamw_torch_fused\."):
        arguments(changed, "", torch.device("cpu"), 1)


def test_another_algorithm_is_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS, "sgd", Optimizer("sgd", "torch.optim.SGD", algorithm="SGD", states=0))
    config = make({"base_model": "bigscience/bloom-560m"})
    changes = advice.changes(config, known_models.find(config), budget.card(24))
    assert [change.knobs["optimizer"] for change in changes if "optimizer" in change.knobs] == ["adamw_8bit"]


def test_a_paged_one_names_the_same_unpaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "can_page_gpu_memory", lambda: False)
    for name, row in OPTIMIZERS.items():
        finding = settings.nothing_is_paged(Seen(make({"optimizer": name})))
        assert (finding is not None) == row.paged == name.startswith("paged")
        if finding:
            assert finding.knobs == {"optimizer": row.unpaged} and OPTIMIZERS[row.unpaged].algorithm == row.algorithm


def test_one_that_is_not_in_the_table_is_a_sentence() -> None:
    expected = (
        "optimizer should be 'adamw_torch_fused', 'adamw_torch', 'adamw_8bit' or 'paged_adamw_8bit' (it is 'adam')."
    )
    with pytest.raises(UserError) as caught:
        make({"optimizer": "adam"})
    assert str(caught.value) == expected
    for value in (5, ["adamw_8bit"], None):
        with pytest.raises(UserError, match="optimizer should be 'adamw_torch_fused', "):
            make({"optimizer": value})
    assert RunConfig().optimizer == DEFAULT == "adamw_torch_fused"
