"""Bases whose RoPE frequencies follow the longest row of a batch (longrope, dynamic): each row is read as it is alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from qlora_gui.data import tokenization
from qlora_gui.data.chat import Chat
from qlora_gui.data.prompts import Prompt
from qlora_gui.inference import protocol, score
from qlora_gui.inference.sampling import Decoding
from qlora_gui.models import base as bases
from qlora_gui.models import rope
from qlora_gui.runs.store import RunStore
from qlora_gui.training.probes import Probes
from tests.conftest import train
from tests.small_families import NEW, SIZES, WORDS, Case, Family, load, make_adapter, make_base, said

LIMIT = 64
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [3.0 + place for place in range(8)]}
FAMILIES = {
    "longrope": Family(
        "Phi3Config",
        {key: value for key, value in SIZES.items() if key != "head_dim"}
        | {"original_max_position_embeddings": LIMIT, "rope_parameters": LONG | {"rope_theta": 10_000.0}},
    ),
    "dynamic": Family(
        "LlamaConfig",
        SIZES
        | {"max_position_embeddings": LIMIT}
        | {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}},
    ),
}
# (words asked, words answered): below the limit, at it with the new tokens, beyond it by the reference alone, and beyond
PARTS = [(2, 3), (9, 4), (28, 2), (3, 38), (32, 3), (45, 6), (57, 4), (1, 1), (22, 2), (1, 22)]
EXAMPLES = [
    {
        "row": number,
        "messages": [
            {"role": "user", "content": " ".join((3 * WORDS)[:asked])},
            {"role": "assistant", "content": " ".join((3 * WORDS[::-1])[:answered])},
        ],
    }
    for number, (asked, answered) in enumerate(PARTS)
]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = make_base(folder / "base", FAMILIES[request.param])
    return load(folder / "base", tokenizer, [make_adapter(folder / "base", folder / "adapter")])


def fresh(case: Case) -> list[Callable[[], Any]]:
    """The plain models, each as before it read anything: dynamic frequencies stay as the longest row left them."""

    def like_new(model: Any) -> Any:
        for part in model.modules():
            if hasattr(part, "original_inv_freq"):
                part.inv_freq = part.original_inv_freq.clone()
                part.max_seq_len_cached = part.original_max_seq_len
        return model

    return [lambda model=model: like_new(model) for model in case.models]  # type: ignore[misc]


def test_evaluation_reads_every_row_as_alone(case: Case) -> None:
    """Losses and answers of rows on both sides of the limit, by plain transformers one row at a time."""
    base, rows = case.columns.base, case.columns.multi_lora
    assert base and rows and base.reading.alike_up_to == LIMIT
    encoded, _ = tokenization.encode_all(EXAMPLES, Chat(case.tokenizer), 512)
    lengths = [len(row.input_ids) for row in encoded]
    begins = [score.answer_begins(row) for row in encoded]
    assert sum(size + NEW <= LIMIT for size in lengths) >= 2 and max(begins) > LIMIT
    near = [number for number, size in enumerate(lengths) if size + NEW <= LIMIT]  # but aligned wider than the limit
    assert max(begins[one] for one in near) + max(lengths[one] - begins[one] for one in near) > LIMIT
    assert any(begin + NEW <= LIMIT < size for begin, size in zip(begins, lengths, strict=True))
    assert any(begin <= LIMIT < begin + NEW for begin in begins)
    measured: dict[int, protocol.Measured] = {}
    score.rows(base, rows, len(case.models), encoded, score.Task(NEW), lambda row: measured.update({row.number: row}))
    for number, row in enumerate(encoded):
        for column, model in enumerate(fresh(case)):
            with torch.no_grad():
                logits = model()(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0, :-1]
            labels = torch.tensor(row.labels[1:])
            expected = float(cross_entropy(logits, labels, ignore_index=tokenization.IGNORED, reduction="sum"))
            assert measured[number].loss[column] == pytest.approx(expected, rel=1e-4), lengths[number]
            assert measured[number].text[column] == said(case, model(), row.input_ids[: begins[number]])


@pytest.mark.parametrize("case", ["longrope"], indirect=True)  # the other refuses what is longer than its 64 tokens
def test_columns_answer_as_alone_beside_a_longer_one(case: Case) -> None:
    """A short conversation beside a long one."""
    short, long = EXAMPLES[0]["messages"][:1], EXAMPLES[6]["messages"][:1]  # type: ignore[index]
    for conversations in ([short, long], [long, short]):
        events: list[protocol.Event] = []
        case.columns.answer(conversations, Decoding(greedy=True, max_new_tokens=NEW), events.append, lambda: False)
        texts = [answer.text for answer in protocol.collect(events, len(conversations))]
        prompts = [Chat(case.tokenizer).prompt(turns).ids(case.tokenizer) for turns in conversations]
        assert len(prompts[conversations.index(short)]) + NEW < LIMIT < len(prompts[conversations.index(long)]) + NEW
        assert texts == [said(case, model(), prompt) for model, prompt in zip(fresh(case), prompts, strict=True)]


def test_probes_are_answered_as_alone(case: Case) -> None:
    assert case.columns.base
    model = bases.load_model(case.columns.base.located.path, "nf4", True, torch.device("cpu"), torch.float32)
    chat = Chat(case.tokenizer)
    asked = [example["messages"][:1] for example in EXAMPLES]  # type: ignore[index]
    together = Probes(chat, [Prompt(turns) for turns in asked], NEW).answers(model)
    alone = [said(case, fresh(case)[0](), chat.prompt(turns).ids(case.tokenizer)).strip() for turns in asked]
    assert [one["answer"] for one in together] == alone


def test_what_was_read_before_changes_nothing(case: Case) -> None:
    """Dynamic frequencies grow with a row, and transformers keeps them for the next one."""
    assert case.columns.base
    model = bases.load_model(case.columns.base.located.path, "nf4", True, torch.device("cpu"), torch.float32)
    ids = torch.arange(5, 5 + LIMIT + 10)[None]
    with torch.no_grad():
        first = model(input_ids=ids).logits
        model(input_ids=torch.arange(5, 5 + 4 * LIMIT)[None])
        assert torch.equal(model(input_ids=ids).logits, first)


@pytest.mark.slow
def test_a_run_says_which_rows_change_their_batch(case: Case, tmp_path: Path) -> None:
    """Before its first step, and not where all rows are short enough."""
    assert case.columns.base
    store = RunStore(tmp_path / "adapters")
    more = {"base_model": case.columns.base.located.path, "max_steps": 1, "batch_size": 2}
    for number, length in enumerate((128, LIMIT)):
        run = train(store, name=f"run{number}", max_length=length, **more)
        found = run.events()[0]
        first = next(place for place, event in enumerate(found) if event["kind"] == "step")
        told = [one["text"] for one in found[:first] if one["kind"] == "stage" and "RoPE" in one["text"]]
        assert len(told) == (length > LIMIT)
        if told:
            assert f"rows beyond {LIMIT} tokens" in told[0] and f"choose max_length {LIMIT}, or batch_size 1" in told[0]


def test_other_bases_have_no_limit(llama: Path) -> None:
    model = bases.load_model(str(llama), "nf4", True, torch.device("cpu"), torch.float32)
    assert rope.alike_up_to(model.config) is None
    by_layer = {"full_attention": LONG | {"original_max_position_embeddings": 32}, "sliding_attention": {}}
    model.config.rope_parameters = by_layer
    assert rope.alike_up_to(model.config) == 32
