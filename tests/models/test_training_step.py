"""The training step equals the stock one: loss, norms, LoRA, BLOOM's attention, packing, checkpointing."""

import copy
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import GenerationConfig, TrainingArguments, set_seed
from transformers.models.bloom.modeling_bloom import BloomGelu

from qlora_gui.config import RunConfig
from qlora_gui.data import collate as batches
from qlora_gui.data import load as read
from qlora_gui.data import tokenization
from qlora_gui.data.chat import Chat
from qlora_gui.models import attention, chunked_loss, lora, lora_kernel, norms
from qlora_gui.models import base as bases
from qlora_gui.runs import events
from qlora_gui.runs.store import RunStore
from qlora_gui.training.trainer import RunTrainer, arguments
from tests.steps import CPU, config_of, load, rows_of, stir, trainable

FAMILIES = ["bloom", "llama"]


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def stock(base: Path, config: RunConfig, dtype: torch.dtype = torch.float32) -> Any:
    """PEFT on the untouched base: eager attention, all logits, no line of ours."""
    set_seed(0)
    model = load(base, dtype)
    model.set_attn_implementation("eager")
    model.config.use_cache = False
    wrapped = get_peft_model(
        model,
        LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            bias=config.bias,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    stir(wrapped)
    return wrapped.train()


def collate(rows: list[batches.Row], shared_length: int = 0) -> dict[str, torch.Tensor]:
    return batches.Collate(1, shared_length)(rows)


def for_ours(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in batch.items() if key != "tokens"}


def for_stock(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As collators usually give it, with a mask over the padding (id 1, which no example holds)."""
    return for_ours(batch) | {"attention_mask": (batch["input_ids"] != 1).long()}


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: part.grad for name, part in model.named_parameters() if part.requires_grad}


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((one.float() - other.float()).abs().max() / other.float().abs().max())


@pytest.mark.parametrize("bias", ["none", "all"])
def test_the_step_equals_the_stock_step_in_fp32(base: Path, bias: str) -> None:
    config = config_of(bias=bias)
    ours, theirs = trainable(base, config), stock(base, config)
    batch = collate(rows_of(base, 6))
    one, other = ours(**for_ours(batch)).loss, theirs(**for_stock(batch)).loss
    one.backward()
    other.backward()
    assert float(one) == pytest.approx(float(other), rel=1e-5)
    expected = gradients(theirs)
    for name, grad in gradients(ours).items():
        assert off(grad, expected[name]) < 1e-4, name
    flat = [torch.cat([part.flatten() for part in grads.values()]) for grads in (gradients(ours), expected)]
    rounding = (
        2e-5 if theirs.config.model_type == "bloom" else 1e-5
    )  # torch's gelu rounds otherwise than the one BLOOM writes out
    assert float((flat[0] - flat[1]).norm() / flat[1].norm()) <= rounding


def test_the_step_is_as_exact_as_the_stock_step_in_bf16(base: Path) -> None:
    """Both are held against fp32 on the same 4-bit values: ours may not be further off than autocast is."""
    config = config_of()
    batch = collate(rows_of(base, 6))
    exact = stock(base, config)
    ours, theirs = trainable(base, config, torch.bfloat16), stock(base, config, torch.bfloat16)
    exact_loss, our_loss = exact(**for_stock(batch)).loss, ours(**for_ours(batch)).loss
    with torch.autocast("cpu", torch.bfloat16):
        their_loss = theirs(**for_stock(batch)).loss
    for result in (exact_loss, our_loss, their_loss):
        result.backward()
    allowed = max(abs(float(their_loss) - float(exact_loss)), 0.01 * float(exact_loss))
    assert abs(float(our_loss) - float(exact_loss)) <= 1.5 * allowed
    flat = [torch.cat([part.flatten().float() for part in gradients(m).values()]) for m in (exact, ours, theirs)]
    assert (flat[1] - flat[0]).norm() <= 1.5 * (flat[2] - flat[0]).norm()


@pytest.mark.parametrize("vocabulary", [1000, 300_000])
def test_the_chunked_loss_equals_cross_entropy(vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp64 of all logits at once; several chunks, a last short one, ignored labels, and a loss that is scaled later."""
    torch.manual_seed(0)
    monkeypatch.setattr(chunked_loss, "chunk_rows", lambda size, device: 7)
    hidden = torch.randn(2, 20, 16)
    weight, bias = torch.randn(vocabulary, 16), torch.randn(vocabulary)
    labels = torch.randint(0, vocabulary, (2, 20))
    labels[0, :9] = tokenization.IGNORED
    one, other = hidden.clone().requires_grad_(), hidden.double().requires_grad_()
    ours = chunked_loss.summed_loss(one, weight, bias, labels)
    logits = functional.linear(other, weight.double(), bias.double())[:, :-1].flatten(0, 1)
    theirs = functional.cross_entropy(
        logits, labels[:, 1:].flatten(), ignore_index=tokenization.IGNORED, reduction="sum"
    )
    (ours * 3).backward()
    (theirs * 3).backward()
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    assert one.grad is not None and other.grad is not None and off(one.grad, other.grad) <= 1e-5


def test_rows_without_a_label_have_no_loss_and_no_gradient() -> None:
    hidden = torch.randn(1, 4, 8, requires_grad=True)
    total = chunked_loss.summed_loss(hidden, torch.randn(50, 8), None, torch.full((1, 4), tokenization.IGNORED))
    total.backward()
    assert float(total) == 0 and hidden.grad is not None and not hidden.grad.any()


def test_a_head_that_is_more_than_linear_keeps_the_loss_of_all_logits(llama: Path) -> None:
    model = load(llama)
    batch = collate(rows_of(llama, 3))
    model.requires_grad_(False)
    plain = model.forward
    model.forward = lambda *args, **kwargs: _doubled(plain(*args, **kwargs))
    expected = functional.cross_entropy(
        model(**for_ours({k: v for k, v in batch.items() if k != "labels"})).logits[:, :-1].flatten(0, 1),
        batch["labels"][:, 1:].flatten(),
    )
    assert "more than head(hidden)" in chunked_loss.install(model)
    assert float(model(**for_ours(batch)).loss) == pytest.approx(float(expected), rel=1e-5)
    trained = load(llama)
    assert "trained" in chunked_loss.install(trained)


def _doubled(output: Any) -> Any:
    output.logits = output.logits * 2
    return output


def test_accumulation_does_not_change_the_step(base: Path, store: RunStore) -> None:
    """The same eight rows, of very different lengths, as 1 x 8, 2 x 4 and 8 x 1: one loss, one gradient norm."""
    rows = sorted(rows_of(base, 40), key=lambda row: len(row["input_ids"]))[::5][:8]
    seen = []
    for accumulation in (1, 2, 8):
        config = config_of(
            base_model=str(base), batch_size=8 // accumulation, gradient_accumulation=accumulation, max_steps=1
        )
        run = store.create(config)
        trainer = RunTrainer(
            run=run,
            log=events.EventLog(run.events_file),
            held_out=[],
            model=trainable(base, config),
            args=arguments(config, str(run.checkpoints), CPU, config.batch_size),
            train_dataset=rows,
            data_collator=batches.Collate(1, 256 if accumulation == 2 else 0),
            processing_class=bases.load_tokenizer(base),
        )
        trainer.train()
        seen.append(next(event for event in run.events()[0] if event["kind"] == "step"))
    for event in seen[1:]:
        assert event["loss"] == pytest.approx(seen[0]["loss"], rel=1e-5)
        assert event["grad_norm"] == pytest.approx(seen[0]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("as_on_a_gpu", [False, True], ids=["cpu", "as on a gpu"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("trained_bias", [False, True])
def test_the_fused_lora_equals_pefts(
    dropout: float, trained_bias: bool, as_on_a_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, PEFT gets the very elements that ours kept; the unpacked weights are the same values."""
    if as_on_a_gpu:
        monkeypatch.setattr(lora_kernel, "_on_accelerator", lambda x: True)
    torch.manual_seed(0)
    plain = torch.nn.Sequential(bnb.nn.Linear4bit(64, 48, bias=True, compute_dtype=torch.float32)).to("cpu")
    plain[0].support_avx512bf16_for_cpu = False
    plain.is_loaded_in_4bit = True  # else PEFT puts a layer of another kind on it
    model = get_peft_model(plain, LoraConfig(r=4, lora_alpha=6, lora_dropout=dropout, target_modules=["0"]))
    stir(model)
    layer = model.base_model.model[0]
    layer.base_layer.bias.requires_grad_(trained_bias)
    lora.keep_trained_biases_exact(model)
    x = torch.randn(3, 10, 64)
    torch.manual_seed(5)
    kept = lora_kernel._drop(x.flatten(0, 1), dropout)[1].view(x.shape) if dropout else None
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    if kept is not None:
        layer.lora_dropout["default"].forward = lambda given: given * kept / (1 - dropout)
    theirs = model(other)
    (theirs.square().sum()).backward()
    expected = {name: part.grad.clone() for name, part in model.named_parameters() if part.requires_grad}
    model.zero_grad()
    lora_kernel.install(model)
    assert layer.forward.__func__ is lora_kernel._forward and lora_kernel.keep_dense(model)
    torch.manual_seed(5)
    ours = model(one)
    (ours.square().sum()).backward()
    assert off(ours, theirs) < 1e-5 and one.grad is not None and other.grad is not None
    assert off(one.grad, other.grad) < 1e-5
    for name, grad in gradients(model).items():
        assert off(grad, expected[name]) < 1e-5, name


@pytest.mark.parametrize("trained_bias", [False, True])
def test_without_a_gradient_no_weight_is_unpacked_on_a_gpu(trained_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe's few tokens are multiplied with the packed weight, and give what training's forward pass gives."""
    torch.manual_seed(0)
    plain = torch.nn.Sequential(bnb.nn.Linear4bit(64, 48, bias=True, compute_dtype=torch.float32)).to("cpu")
    plain[0].support_avx512bf16_for_cpu = False
    plain.is_loaded_in_4bit = True  # else PEFT puts a layer of another kind on it
    model = get_peft_model(plain, LoraConfig(r=4, lora_alpha=6, lora_dropout=0.3, target_modules=["0"]))
    stir(model)
    model.base_model.model[0].base_layer.bias.requires_grad_(trained_bias)
    lora.keep_trained_biases_exact(model)
    lora_kernel.install(model)
    assert model.base_model.model[0].forward.__func__ is lora_kernel._forward
    model.eval()
    x = torch.randn(3, 1, 64)
    expected = model(x).detach()
    monkeypatch.setattr(lora_kernel, "_on_accelerator", lambda given: True)
    monkeypatch.setattr(lora_kernel, "dense", None)
    with torch.no_grad():
        assert off(model(x), expected) < 1e-6
    with pytest.raises(TypeError):  # with a gradient it is unpacked as ever
        model(x)


def test_dropout_keeps_its_share_and_changes_every_time() -> None:
    torch.manual_seed(0)
    first, second = (lora_kernel._draw_mask(torch.empty(1000, 101), 0.05) for _ in range(2))
    assert float(first.float().mean()) == pytest.approx(0.95, abs=0.003)
    assert not torch.equal(first, second) and first.shape == (1000, 101)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms_equal_the_stock_ones_and_keep_the_dtype(kind: str) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    torch.manual_seed(0)
    norm: Any = torch.nn.LayerNorm(32) if kind == "layer" else LlamaRMSNorm(32)
    for part in norm.parameters():
        part.data.normal_()
    norm.weight.requires_grad_(False)
    stocked = copy.deepcopy(norm)
    norms.widen(torch.nn.ModuleDict({"norm": norm}))
    x = torch.randn(4, 5, 32)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, theirs = norm(one), stocked(other)
    (ours.square().sum()).backward()
    (theirs.square().sum()).backward()
    assert off(ours, theirs) < 1e-5 and one.grad is not None and other.grad is not None
    assert off(one.grad, other.grad) < 1e-5
    if kind == "layer":
        assert off(norm.bias.grad, stocked.bias.grad) < 1e-5
    assert norm(x.bfloat16()).dtype == torch.bfloat16 and norm.weight.dtype == torch.float32


def test_a_norm_that_adds_one_to_its_weight_keeps_its_own_forward() -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    class OddRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden_states) * 2

    norm = OddRMSNorm(16)
    norms.widen(torch.nn.ModuleDict({"norm": norm}))
    assert "forward" not in vars(norm)


def bloom_pair(bloom: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """(stock BLOOM, the same with SDPA)."""
    stocked, ours = load(bloom, dtype), load(bloom, dtype)
    attention.install(ours, "sdpa")
    return stocked, ours


def test_blooms_gelu_in_one_operation_is_the_more_exact_one_in_bf16() -> None:
    exact = torch.randn(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul_(3).bfloat16()

    def of(gelu: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()
        gelu(x).sum().backward()
        assert x.grad is not None
        return torch.stack([gelu(x).detach().double(), x.grad.double()])

    plain = torch.nn.GELU(approximate="tanh")
    expected, ours, theirs = of(plain, exact.double()), of(plain, exact), of(BloomGelu(), exact)
    assert torch.all((ours - expected).abs().amax(1) <= (theirs - expected).abs().amax(1))
    assert torch.allclose(of(BloomGelu(), exact.double()), expected, atol=1e-6)


def test_bloom_sdpa_equals_eager(bloom: Path) -> None:
    stocked, ours = bloom_pair(bloom)
    ids = torch.randint(4, 900, (2, 300))
    assert off(ours(ids).logits, stocked(ids).logits) <= 1e-5
    mask = torch.ones_like(ids)
    mask[0, 200:] = 0
    padded, expected = ours(ids, attention_mask=mask).logits, stocked(ids, attention_mask=mask).logits
    assert off(padded[mask.bool()], expected[mask.bool()]) <= 1e-5


def test_bloom_generates_the_same_from_left_padded_rows(bloom: Path) -> None:
    stocked, ours = bloom_pair(bloom)
    ids = torch.randint(4, 900, (2, 12))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    settings = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=1)
    expected = stocked.generate(ids, attention_mask=mask, generation_config=settings)
    assert torch.equal(ours.generate(ids, attention_mask=mask, generation_config=settings), expected)
    alone = ours.generate(ids[1:, 5:], generation_config=settings)
    assert torch.equal(alone[0, 7:], expected[1, 12:])


def test_bloom_sdpa_is_nearer_to_the_truth_in_bf16(bloom: Path) -> None:
    ids = torch.randint(4, 900, (1, 1024))
    exact = load(bloom)(ids).logits
    stocked, ours = bloom_pair(bloom, torch.bfloat16)
    assert (ours(ids).logits - exact).norm() < (stocked(ids).logits - exact).norm()


@pytest.mark.parametrize("choice", ["eager", "sdpa", "auto"])
@pytest.mark.parametrize("system", ["", "Answer as a friendly clerk who knows every form."])
def test_packed_rows_have_the_losses_of_single_rows(base: Path, choice: str, system: str) -> None:
    rows = rows_of(base, 24, system)
    model = load(base)
    lora.prepare(model, config_of(attention=choice))
    assert attention.packs(model)
    chunked_loss.install(model)

    def summed(these: list[batches.Row]) -> tuple[float, int]:
        total, count = 0.0, 0
        with torch.no_grad():
            for row in these:
                batch = for_ours(collate([row]))
                labelled = int((batch["labels"][:, 1:] != tokenization.IGNORED).sum())
                total += float(model(**batch).loss) * labelled
                count += labelled
        return total, count

    alone, packed_rows = summed(rows), batches.share(rows, 512)
    packed = summed(packed_rows)
    assert alone[1] == packed[1] and packed[0] == pytest.approx(alone[0], rel=1e-5)
    assert any(0 in row["blocks"] for row in packed_rows) == bool(batches.common_prefix(rows))


@pytest.mark.parametrize("system", ["", "Answer as a friendly clerk who knows every form."])
def test_a_batch_that_shares_rows_takes_the_step_of_a_padded_one(base: Path, system: str) -> None:
    """Also where a system prompt stands only once a row: its gradient is the sum over the examples that see it."""
    rows = rows_of(base, 10, system)
    padded, shared = collate(rows), collate(rows, 512)
    assert shared["input_ids"].numel() < padded["input_ids"].numel() and "blocks" in shared
    assert shared["tokens"] == padded["tokens"] == sum(len(row["input_ids"]) for row in rows)
    assert type(padded["tokens"]) is int  # a tensor would go to the GPU, and be waited for there
    assert bool((shared["blocks"] == 0).any()) == bool(batches.common_prefix(rows))
    assert not system or len(batches.common_prefix(rows)) > 8
    found = []
    for batch in (padded, shared):
        model = trainable(base, config_of(attention="sdpa"))
        result = model(**for_ours(batch)).loss
        result.backward()
        found.append((float(result), torch.cat([grad.flatten() for grad in gradients(model).values()])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert (found[0][1] - found[1][1]).norm() <= 1e-5 * found[0][1].norm()


REWRITES = (  # what a template does to earlier answers: they lose a mark, or end otherwise
    "{% for m in messages %}{{ m['role'] + ':' }}{% if m['role'] == 'assistant' %}"
    "{{ '<think></think>' if loop.last }}{{ m['content'] + ('</s>' if loop.last else '|') }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:<think></think>' }}{% endif %}"
)


@pytest.mark.parametrize("choice", ["eager", "sdpa"])
def test_a_conversation_of_several_rows_takes_their_step_in_one(base: Path, choice: str) -> None:
    """Its turns stand in one row, each seeing just the conversation before it, and cost little more than the last one."""
    turns = [turn for example in read.load("demo", limit=4).train for turn in example["messages"]]
    examples = [{"row": number, "messages": turns[first:]} for number, first in enumerate((0, 2, 6), 1)]
    parts, report = tokenization.encode_all(examples, Chat(bases.load_tokenizer(base), REWRITES), 2048)
    assert report.split == 2 and report.learned == report.present == 8 and len(parts) == 8
    apart, joined = batches.as_rows(parts), batches.as_rows(parts, 2048)
    assert [row.get("blocks", [1])[-1] for row in joined] == [3, 2, 1]
    least = sum(max(len(part.input_ids) for part in parts if part.row == number) for number in (1, 2, 3))
    answers = sum(part.supervised for part in parts)
    assert sum(len(row["input_ids"]) for row in joined) < least + answers + 8 < sum(len(r["input_ids"]) for r in apart)
    found = []
    for rows in (apart, joined):
        batch = collate(rows)
        assert int((batch["labels"][:, 1:] != tokenization.IGNORED).sum()) == answers
        model = trainable(base, config_of(attention=choice))
        result = model(**for_ours(batch)).loss
        result.backward()
        found.append((float(result), torch.cat([grad.flatten() for grad in gradients(model).values()])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert (found[0][1] - found[1][1]).norm() <= 1e-5 * found[0][1].norm()
    assert len(batches.as_rows(parts, 64)) == len(apart)  # no room: rows of their own


def test_only_what_nothing_is_learned_from_is_shared() -> None:
    def row(ids: list[int], learned_from: int) -> batches.Row:
        return {"input_ids": ids, "labels": [batches.IGNORED] * learned_from + ids[learned_from:]}

    long = list(range(10, 20))
    assert batches.common_prefix([row([*long, 1, 2, 3], 12), row([*long, 4, 5, 6], 11)]) == long
    assert batches.common_prefix([row([*long, 1, 2, 3], 10), row([*long, 4, 5, 6], 11)]) == long[:9]
    assert batches.common_prefix([row([*long, 1, 2, 3], 12), row([*long[:3], 1, 5, 6], 5)]) == []
    assert batches.common_prefix([row(long, 6), row(long, 6)]) == long[:5]
    assert batches.common_prefix([row(long, 6)]) == []


def test_rows_are_padded_to_whole_multiples_that_nothing_is_learned_from() -> None:
    rows: list[batches.Row] = [{"input_ids": [5] * size, "labels": [5] * size} for size in (3, 9)]
    batch = batches.Collate(1, multiple=8)(rows)
    assert batch["input_ids"].shape == (2, 16) and int((batch["labels"] != -100).sum()) == 12
    assert batches.Collate(1, multiple=8)(rows[:1])["input_ids"].shape == (1, 8)


def test_packed_rows_are_as_long_as_attention_allows() -> None:
    rows = [{"input_ids": [0] * size, "labels": [0] * size} for size in (20, 50, 90)]
    assert batches.packed_length(rows, 576, 1024) == 256
    assert batches.packed_length(rows, 64, 1024) == 128
    assert batches.packed_length(rows, 4096, 1024) == 1024
    assert batches.packed_length([{"input_ids": [0] * 400, "labels": [0] * 400}], 576, 1024) == 400


@pytest.mark.parametrize("which", ["every-2", "every-3", "all"])
def test_checkpointing_changes_memory_and_nothing_else(base: Path, which: str) -> None:
    """Of three layers, every second is one, every third is one, all are three; with dropout, drawn again the same."""
    batch = for_ours(collate(rows_of(base, 4)))
    results = []
    for choice in ("none", which):
        model = trainable(base, config_of(gradient_checkpointing=choice, dropout=0.2))
        torch.manual_seed(3)
        calls: Counter[str] = Counter()
        for name, part in model.named_modules():
            if name.endswith(".mlp"):
                part.register_forward_pre_hook(partial(_count, calls))
        result = model(**batch).loss
        result.backward()
        flat = torch.cat([grad.flatten() for grad in gradients(model).values()])
        results.append((float(result), flat, calls["forward"]))
    assert results[0][0] == results[1][0] and torch.allclose(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)
    again = {"every-2": 1, "every-3": 1, "all": 3}[which]
    assert (results[0][2], results[1][2]) == (3, 3 + again)


def _count(calls: Counter[str], *_: Any) -> None:
    calls["forward"] += 1


def test_one_process_counts_on_one_gpu_wherever_it_sees_more(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = TrainingArguments.__post_init__

    def as_beside_another(self: TrainingArguments) -> None:
        plain(self)
        self._n_gpu = 2

    monkeypatch.setattr(TrainingArguments, "__post_init__", as_beside_another)
    assert TrainingArguments(per_device_train_batch_size=3).train_batch_size == 6  # what the Trainer would take
    made = arguments(config_of(), "unused", CPU, 3)
    assert made.n_gpu == 1 and made.train_batch_size == 3
