"""Compare and evaluate on other families than Llama's: held against plain transformers + PEFT, one row at a time.

Every base is a tiny random one of the true architecture: with windows shorter than the rows, states instead of a
cache, a head with a bias, linears that see rows flattened.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from qlora_gui.data import tokenization
from qlora_gui.data.chat import Chat
from qlora_gui.errors import UserError
from qlora_gui.inference import model_probe, protocol, score
from qlora_gui.inference.columns import Columns
from qlora_gui.inference.sampling import Decoding
from tests.small_families import (
    FAMILIES,
    NEW,
    SIZES,
    WINDOW,
    WORDS,
    Case,
    Family,
    load,
    make_adapter,
    make_base,
    said,
)

EXAMPLES = [
    {
        "row": number,
        "messages": [{"role": "user", "content": " ".join(WORDS[:words])}, {"role": "assistant", "content": answer}],
    }
    for number, (words, answer) in enumerate(
        [(2, "We are sorry."), (19, "It is on its way to you, we looked."), (9, "Soon.")]
    )
]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder, family = tmp_path_factory.mktemp(request.param), FAMILIES[request.param]
    tokenizer = make_base(folder / "base", family)
    return load(folder / "base", tokenizer, [make_adapter(folder / "base", folder / "adapter", family.bias)])


def check_evaluation(case: Case) -> None:
    """Losses, drift and answers of rows of very different lengths, each against its plain model."""
    base, rows = case.columns.base, case.columns.multi_lora
    assert base and rows
    encoded, _ = tokenization.encode_all(EXAMPLES, Chat(case.tokenizer), 256)
    assert min(len(row.input_ids) for row in encoded) < WINDOW < max(len(row.input_ids) for row in encoded) - 20
    measured: dict[int, protocol.Measured] = {}
    score.rows(base, rows, len(case.models), encoded, score.Task(NEW), lambda row: measured.update({row.number: row}))
    for number, row in enumerate(encoded):
        logs = []
        for column, model in enumerate(case.models):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0, :-1].float()
            labels = torch.tensor(row.labels[1:])
            expected = float(cross_entropy(logits, labels, ignore_index=tokenization.IGNORED, reduction="sum"))
            assert measured[number].loss[column] == pytest.approx(expected, rel=1e-4)
            logs.append(logits[labels != tokenization.IGNORED].log_softmax(-1))
            kl = float((logs[column].exp() * (logs[column] - logs[0])).sum())
            assert measured[number].kl[column] == pytest.approx(kl, rel=2e-3, abs=1e-3)
            prompt = row.input_ids[: score.answer_begins(row)]
            assert measured[number].text[column] == said(case, model, prompt)
        assert measured[number].kl[1] > 0.01  # else a column that is the base again would pass
    assert len({text for row in measured.values() for text in row.text or []}) > len(measured)


def check_answers(case: Case) -> None:
    """A conversation of its own in each column, of other lengths, and the same in all."""
    short, long = ([{"role": "user", "content": " ".join(WORDS[:words])}] for words in (3, 19))
    for conversations in ([short, long], [long, short], [long, long]):
        conversations = [*conversations, *conversations[-1:] * (len(case.models) - 2)]
        events: list[protocol.Event] = []
        case.columns.answer(conversations, Decoding(greedy=True, max_new_tokens=NEW), events.append, lambda: False)
        texts = [answer.text for answer in protocol.collect(events, len(conversations))]
        for model, turns, text in zip(case.models, conversations, texts, strict=True):
            assert text == said(case, model, Chat(case.tokenizer).prompt(turns).ids(case.tokenizer))


@pytest.mark.parametrize("check", [check_evaluation, check_answers], ids=["evaluate", "compare"])
def test_equals_plain_transformers(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


def test_what_is_known_of_how_a_base_reads(case: Case, request: pytest.FixtureRequest) -> None:
    """Cutting back is for keys and values; a base that reads padding on the left as text is known for it."""
    assert case.columns.base
    reading, kind = case.columns.base.reading, request.node.callspec.params["case"]
    assert reading.croppable == (kind in ("window", "head-bias", "flat-linears"))
    assert reading.left_padding == (kind != "no-cache-at-all")
    layers = {"states": 1, "biases-of-convolutions": 1, "no-cache-at-all": 0}.get(kind, 2)
    heads = 4 if kind in ("head-bias", "flat-linears") else 2
    assert reading.token_bytes == 4 * layers * 2 * heads * 16


def test_a_lane_of_its_own_is_told(case: Case, request: pytest.FixtureRequest) -> None:
    family = FAMILIES[request.node.callspec.params["case"]]
    told = case.proofs[1]["self_test"]
    assert family.lane in told if family.lane else told.startswith("equals PEFT's logits within")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A mixture of experts with three adapters: on experts, on the linears, and again on experts."""
    folder = tmp_path_factory.mktemp("experts")
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    tokenizer = make_base(folder / "base", Family("Qwen3MoeConfig", SIZES | sizes))
    on_experts = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "target_modules": ["q_proj"]}
    adapters = [
        make_adapter(folder / "base", folder / "both", **on_experts),
        make_adapter(folder / "base", folder / "linears", target_modules=["q_proj", "v_proj", "o_proj"]),
        make_adapter(folder / "base", folder / "down", **on_experts | {"target_parameters": ["experts.down_proj"]}),
        # As PEFT names parameters itself, where a run's target_modules mean experts.
        make_adapter(
            folder / "base", folder / "named", **on_experts | {"target_parameters": ["gate_up_proj", "down_proj"]}
        ),
    ]
    return load(folder / "base", tokenizer, adapters)


@pytest.mark.parametrize("check", [check_evaluation, check_answers], ids=["evaluate", "compare"])
def test_adapters_on_experts_have_a_lane_of_their_own(experts: Case, check: Callable[[Case], None]) -> None:
    """Beside one that shares the base's batch; the base is clean between and after."""
    check(experts)
    lanes = ["in a lane of its own" in proof["self_test"] for proof in experts.proofs[1:]]
    assert lanes == [True, False, True, True]
    assert "experts.gate_up_proj" in experts.proofs[1]["lora"]


def test_adapters_on_experts_that_the_base_does_not_have_are_refused(experts: Case, tmp_path: Path) -> None:
    """As those whose file lacks the tensors: PEFT would go on with fresh ones."""
    assert experts.columns.base
    base, made = experts.columns.base.located.path, experts.columns.adapters[0].folder
    for change, reason in ((drop_experts, "weights have none for them"), (rename_experts, "PEFT refuses it")):
        folder = tmp_path / change.__name__
        shutil.copytree(made, folder)
        change(folder)
        with pytest.raises(UserError, match=reason):
            Columns().load((base, "", "nf4", True), [folder], lambda text: None)


def drop_experts(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: part for name, part in tensors.items() if "expert" not in name}, folder / "adapter_model.safetensors"
    )


def rename_experts(folder: Path) -> None:
    """Those of the first layer are now of a layer that there is not."""
    tensors = load_file(folder / "adapter_model.safetensors")
    moved = {name.replace("layers.0.mlp", "layers.9.mlp"): part for name, part in tensors.items()}
    save_file(moved, folder / "adapter_model.safetensors")


def test_rounding_is_judged_by_the_weights_where_logits_are_of_a_finer_format() -> None:
    settings = {
        "hidden_size": 64,
        "num_heads": 8,
        "head_dim": 16,
        "num_hidden_layers": 1,
        "vocab_size": 64,
        "n_groups": 1,
    }
    config = transformers.Mamba2Config(**settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    logits = model(input_ids=torch.arange(1, 9)[None]).logits[0, -1]
    assert logits.dtype == torch.float32
    nearly, other = logits * (1 + 1e-3), logits * 1.1
    assert model_probe._equal(model, nearly, logits) and not model_probe._equal(model, other, logits)
