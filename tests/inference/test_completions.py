"""Completions of plain prompts, in process: what they say after words of SentencePiece, and whom nobody waits for."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from qlora_gui.data.tokenization import IGNORED, Encoded
from qlora_gui.errors import UserError
from qlora_gui.inference import completions, protocol, score
from qlora_gui.inference.columns import Columns
from qlora_gui.inference.protocol import Completion, Event
from qlora_gui.inference.sampling import Decoding
from qlora_gui.models import context
from tests.small_models import CHATML, make_tokenizer

TEXT = "the kettle that i ordered never came and nobody answers my letters today or ever"


@pytest.fixture(scope="module")
def columns(tmp_path_factory: pytest.TempPathFactory) -> Columns:
    """A tiny Llama whose tokenizer begins words with a space, as Llama 2's and Mistral's do."""
    folder = tmp_path_factory.mktemp("spaces")
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"]
    bpe.train_from_iterator([TEXT] * 50, trainers.BpeTrainer(vocab_size=200, special_tokens=special))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **size)).save_pretrained(folder)
    found = Columns()
    found.load((str(folder), "", "nf4", True), [], lambda text: None)
    return found


@pytest.fixture(scope="module")
def with_table(tmp_path_factory: pytest.TempPathFactory) -> Columns:
    """A tiny GPT-2, which has a table of 64 positions."""
    folder = tmp_path_factory.mktemp("table")
    tokenizer = make_tokenizer(folder, CHATML)
    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=64, n_layer=1, n_head=4, n_positions=64, **ids)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    found = Columns()
    found.load((str(folder), "", "nf4", True), [], lambda text: None)
    return found


def ask(columns: Columns, asked: list[Completion], dropped: tuple[int, ...] = ()) -> list[Event]:
    events: list[Event] = []
    completions.complete(columns, asked, events.append, lambda: False, dropped)
    return events


def test_a_text_goes_on_from_its_prompt_with_the_space_between_words(columns: Columns) -> None:
    assert columns.base is not None
    tokenizer, spaces = columns.base.tokenizer, 0
    prompt = tokenizer("the kettle that")["input_ids"]
    for seed in range(8):
        events = ask(columns, [Completion(0, "the kettle that", Decoding(max_new_tokens=5, temperature=2, seed=seed))])
        text = "".join(event.text for event in events if isinstance(event, protocol.Text))
        (end,) = [event for event in events if isinstance(event, protocol.Ended)]
        whole = tokenizer.decode([*prompt, *end.ids], skip_special_tokens=True)
        assert "the kettle that" + text == whole
        spaces += text.startswith(" ")
    assert spaces, "no answer began with a word"


def test_a_long_prompt_beside_a_long_answer_stays_within_the_positions(with_table: Columns) -> None:
    """A row that has ended is read on as long as another goes on."""
    prompts, decoding = ([5] * 60, [6], [7] * 30, [8]), Decoding(max_new_tokens=60, temperature=5)
    together = ask(with_table, [Completion(0, prompt, decoding) for prompt in prompts])
    alone = [ask(with_table, [Completion(0, prompt, decoding)]) for prompt in prompts]
    ends = {event.column: list(event.ids) for event in together if isinstance(event, protocol.Ended)}
    assert len(ends[0]) == 4
    for number, events in enumerate(alone):
        assert [list(event.ids) for event in events if isinstance(event, protocol.Ended)] == [ends[number]]


def test_a_prompt_that_nobody_waits_for_is_not_scored(columns: Columns) -> None:
    asked = [Completion(0, [5, 6, 7], Decoding(max_new_tokens=1), (), 0, True, False) for _ in range(2)]
    events = ask(columns, asked, dropped=(0,))
    assert {event.column for event in events if isinstance(event, protocol.Scored)} == {1}
    ends = {event.column: event.ended for event in events if isinstance(event, protocol.Ended)}
    assert ends == {0: "stopped", 1: "length"}


def test_rows_that_are_aligned_beyond_a_table_are_measured_as_alone(with_table: Columns) -> None:
    base, multi_lora = with_table.base, with_table.multi_lora
    assert base is not None and multi_lora is not None

    def row(number: int, prompt: int, answer: int) -> Encoded:
        ids = [10 + place % 50 for place in range(prompt + answer)]
        return Encoded(number, ids, [*[IGNORED] * prompt, *ids[prompt:]], truncated=False)

    def losses(*rows: Encoded) -> list[float]:
        found: dict[int, float] = {}

        def take(event: Event) -> None:
            assert isinstance(event, protocol.Measured)
            found[event.number] = event.loss[0]

        score.rows(base, multi_lora, 1, rows, score.Task(4, []), take)
        return [found[number] for number in sorted(found)]

    rows = row(1, 50, 10), row(2, 5, 55)  # their answers begin at one place, so that the second ends at 105 of 64
    assert losses(*rows) == pytest.approx([losses(each)[0] for each in rows], abs=1e-3)


def test_answers_beyond_a_table_are_refused_with_what_there_is_room_for(with_table: Columns) -> None:
    assert with_table.base is not None
    folder = with_table.base.located.path
    context.check_answers([50, 3], 14, folder, "it")
    context.check_answers([64], 0, folder, "it")
    with pytest.raises(UserError, match="has positions for 64: ask for at most 14"):
        context.check_answers([3, 50], 15, folder, "it")
