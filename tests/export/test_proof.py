"""What is said of two models' readings: better, as good, measurably worse, and worse than is allowed."""

from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from qlora_gui.data.chat import Chat
from qlora_gui.data.tokenization import Encoded
from qlora_gui.errors import UserError
from qlora_gui.export import job, proof, work
from qlora_gui.export.proof import Asked, Kept, Read
from qlora_gui.inference import protocol
from qlora_gui.inference.columns import Columns
from qlora_gui.inference.sampling import Decoding
from tests.adapters import made_adapter

WIDTH = 40
PROMPTS = ["Where is my parcel?", "Hello", "word " * 3000, "The kettle is broken, and nobody writes me anything."]


@pytest.fixture
def asked(llama: Any) -> Asked:
    rows = [Encoded(number, [1, 2, 3, 4], [-100, -100, 3, 4], False) for number in range(1, 21)]
    return Asked(rows, Chat(AutoTokenizer.from_pretrained(llama)))


def readings(losses: list[float]) -> dict[int, Read]:
    """One per row, of losses in nats per token; every fourth answer is another one where losses are not 1."""
    return {place: Read(2 * loss, (7, place % 4 if loss != 1 else 0), "x") for place, loss in enumerate(losses)}


@pytest.mark.parametrize(
    ("shift", "allowed", "worse", "told"),
    [
        (0.0, None, False, "20 of 20 answers identical."),
        (-0.2, 0.01, False, "Held-out loss 0.800 as exported, 1.000 as trained"),
        (0.2, 0.5, False, "measurably higher than as trained (+0.200 [+0.200, +0.200])"),
        (0.2, 0.1, True, "worse than the evaluation's interval allows (loss +0.200, allowed +0.100)"),
        (0.2, None, True, "It is worse than as trained (loss +0.200 [+0.200, +0.200])"),
        (float("nan"), None, True, "computes no finite loss: do not use it"),
    ],
)
def test_what_is_said(shift: float, allowed: float | None, worse: bool, told: str, asked: Asked, tmp_path: Any) -> None:
    kept = Kept(tmp_path / "kept", 20, WIDTH)
    one, two = readings([1.0] * 20), readings([1.0 + shift] * 20)
    found = proof.compared(asked, one, two, 0.0, kept, allowed, "float32 on cpu")
    assert bool(found.worse) == worse and told in found.sentence("as exported"), found.sentence("as exported")


@pytest.mark.parametrize(
    ("shift", "worse", "told"),
    [
        (0.0, False, "answers identical."),
        (
            0.05,
            False,
            "q4_k_m is lossy, so some difference is expected: here the loss is higher by +0.050 [+0.050, +0.050].",
        ),
        (0.2, True, "q4_k_m costs this model much (loss +0.200 [+0.200, +0.200]): take a larger type."),
    ],
)
def test_a_lossy_file_may_differ(shift: float, worse: bool, told: str, asked: Asked, tmp_path: Any) -> None:
    """Even by more than the interval of an evaluation, which is made for the same model in another format."""
    kept = Kept(tmp_path / "kept", 20, WIDTH)
    one, two = readings([1.0] * 20), readings([1.0 + shift] * 20)
    found = proof.compared(asked, one, two, 0.0, kept, 0.01, "float32 on cpu", "q4_k_m")
    assert bool(found.worse) == worse and found.sentence("as exported").endswith(told)


def test_kl_is_that_of_the_distributions(tmp_path: Any) -> None:
    """Against torch's own, within what fp16 keeps; of the first tokens alone."""
    torch.manual_seed(0)
    one, two = (3 * torch.randn(50, WIDTH)).log_softmax(-1), (3 * torch.randn(50, WIDTH)).log_softmax(-1)
    kept = Kept(tmp_path / "kept", 2, WIDTH)
    kept.keep(1, one)
    first = proof.score.FIRST
    want = torch.nn.functional.kl_div(two[:first], one[:first], log_target=True, reduction="sum")
    assert kept.counts == [0, first] and kept.kl(1, two[:first]) == pytest.approx(float(want), rel=2e-3)
    assert abs(kept.kl(1, one[:first])) < 1e-2


def asking(*texts: str) -> list[list[dict[str, Any]]]:
    return [[{"role": "user", "content": text}] for text in texts]


@torch.no_grad()
def test_given_prompts_are_answered_as_in_compare_and_read_to_the_end(llama: Any, tmp_path: Any) -> None:
    """One is too long to be asked. The KL is that of the whole distributions along the trained model's answers."""
    adapter = made_adapter(llama, tmp_path / "adapter", 1, r=4, target_modules=["v_proj"])
    columns = Columns()
    columns.load((str(llama), "", "nf4", True), [adapter], lambda text: None)
    assert columns.base and columns.multi_lora
    model, lora = columns.base.model, columns.multi_lora
    found = proof.given(columns, asking(*PROMPTS), columns.chat(columns.adapters[0]), "", 8)
    assert found.unread == 1 and len(found.rows) == 3 and found.answers
    events: list[protocol.Event] = []
    for text, answer in zip((PROMPTS[0], PROMPTS[1], PROMPTS[3]), found.answers, strict=True):
        columns.answer(asking(text) * 2, Decoding(greedy=True, max_new_tokens=8), events.append, lambda: False)
        assert protocol.collect(events, 2)[1].text == answer.text
        events.clear()
    with proof.keeping(tmp_path / "kept", 3, model.get_output_embeddings().weight.shape[0]) as kept:
        trained = proof.as_trained(columns, found, kept, lambda done, of: None)
        other, kl = proof.exported(columns.base, found, kept, lambda done, of: None)  # the base, as one that differs
        result = proof.compared(found, trained, other, kl, kept, None, "float32 on cpu")
    want, tokens = 0.0, 0
    for row in found.rows:
        ids = torch.tensor([row.input_ids])
        places = [place - 1 for place, label in enumerate(row.labels) if label >= 0]
        with lora.activate([0]):
            one = model(input_ids=ids).logits[0, places].log_softmax(-1)
        two = model(input_ids=ids).logits[0, places].log_softmax(-1)
        want, tokens = want + float((one.exp() * (one - two)).sum()), tokens + len(places)
    assert result.kl == pytest.approx(want / tokens, rel=1e-2) and want > 0
    assert result.trained is result.exported is None and not result.worse
    told = result.sentence("as exported")
    assert told.startswith(
        "Compared on 3 given prompts (1 more could not be read) and not on held-out rows, so there is no loss; KL "
    )
    assert told.endswith(f"{result.identical} of 3 answers identical.")
    assert "do not use it" in proof.compared(found, trained, other, float("nan"), kept, None, "").sentence(
        "as exported"
    )
    with pytest.raises(UserError, match="none of the given prompts can be read: one has 6,012 tokens"):
        proof.given(columns, asking(PROMPTS[2]), columns.chat(columns.adapters[0]), "", 8)


def test_an_adapter_from_elsewhere_is_compared_on_given_prompts(llama: Any, tmp_path: Any) -> None:
    """Merged onto the trained values it is the trained model; the run's rows are not asked for."""
    adapter = made_adapter(llama, tmp_path / "adapter", 1, r=4, target_modules=["v_proj"])
    settings = job.Settings(onto="trained", out=str(tmp_path / "out"), rows=2, max_new_tokens=4)
    said: list[str] = []
    made = work.export(adapter, settings, said.append, lambda done, of: None, prompts=asking(*PROMPTS))
    assert made.proof.startswith("Compared on 2 given prompts and not on held-out rows") and not made.worse
    assert (
        float(made.proof.split("KL ")[1].split()[0]) < 0.05
        and "Reading 2 given prompts with the exported model" in said
    )


def test_rows_that_cannot_be_read_are_counted(asked: Asked, tmp_path: Any) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}], "row": 1},
        {"messages": [{"role": "user", "content": "word " * 500}, {"role": "assistant", "content": "c"}], "row": 2},
    ]
    found = proof.held_out(rows, asked.chat, (64, ""), 0)
    assert len(found.rows) == 1 and found.unread == 1
    kept = Kept(tmp_path / "kept", 1, WIDTH)
    result = proof.compared(found, readings([1.0]), readings([1.0]), 0.0, kept, None, "float32 on cpu")
    assert "(1 row; 1 more could not be read)" in result.sentence("as exported")
