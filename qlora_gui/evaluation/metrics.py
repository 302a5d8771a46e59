"""What can be counted in answers: how they end, whether they repeat themselves, and how near they are to references."""

import json
import statistics
import zlib
from collections.abc import Collection, Sequence
from typing import Any

COPIED_WORDS = 8  # a run of words this long is no coincidence
_SMALL = 40  # characters: shorter texts do not compress, whatever they say


def measure_texts(
    answers: Sequence[str],
    ended: Sequence[str],
    tokens: Sequence[int],
    references: Sequence[str | None],
    trained_on: Collection[tuple[str, ...]],
) -> dict[str, Any]:
    """The `TEXTS` of an evaluation: shares and means over the answers, one entry per answer in every argument.

    `ended` is eos, stop string, length or stopped; `trained_on` are the n-grams of `grams` of the training answers.
    References may be missing; what needs them is then None.
    """
    count = len(answers)
    pairs = [(answer, known) for answer, known in zip(answers, references, strict=True) if known is not None]
    in_json = [answer for answer, known in pairs if is_json(known)]
    return {
        "answers": count,
        "ended_by_eos": share([end in ("eos", "stop string") for end in ended]),
        "ended_by_length": share([end == "length" for end in ended]),
        "empty": share([not answer.strip() for answer in answers]),
        "rep4": mean([repetition(answer) for answer in answers]),
        "distinct1": distinct(answers, 1),
        "distinct2": distinct(answers, 2),
        "compression": mean([compression(answer) for answer in answers if len(answer) >= _SMALL]),
        "tokens": mean(tokens),
        "copied": mean([copied(answer, trained_on) for answer in answers]),
        "chrf": chrf(pairs),
        "rouge_l": rouge_l(pairs),
        "exact": share([answer.strip() == known.strip() for answer, known in pairs]) if pairs else None,
        "json_valid": share([is_json(answer) for answer in in_json]) if in_json else None,
    }


def share(marks: Sequence[bool]) -> float:
    """How many of the marks are set, 0 to 1; 0 of none."""
    return sum(marks) / len(marks) if marks else 0.0


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of no values."""
    return statistics.fmean(values) if values else 0.0


def repetition(text: str, size: int = 4) -> float:
    """rep-n (Welleck et al. 2019, 1908.04319): 1 - unique / all n-grams of words. 0 means no repetition."""
    ngrams = _grams(text.split(), size)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def distinct(texts: Sequence[str], size: int) -> float:
    """distinct-n (Li et al. 2016, 1510.03055): unique / all n-grams of words over all texts together."""
    ngrams = [gram for text in texts for gram in _grams(text.split(), size)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def compression(text: str) -> float:
    """Bytes / bytes after zlib: about 2 for prose, far more for a loop."""
    body = text.encode()
    return len(body) / len(zlib.compress(body, 9)) if body else 0.0


def grams(texts: Sequence[str]) -> set[tuple[str, ...]]:
    """All runs of COPIED_WORDS words, to look answers up in."""
    return {gram for text in texts for gram in _grams(text.split(), COPIED_WORDS)}


def copied(text: str, known: Collection[tuple[str, ...]]) -> float:
    """The share of a text's words that stand in a long run which also stands in the training answers."""
    words = text.split()
    inside = [False] * len(words)
    for place, gram in enumerate(_grams(words, COPIED_WORDS)):
        if gram in known:
            inside[place : place + COPIED_WORDS] = [True] * COPIED_WORDS
    return share(inside)


def chrf(pairs: Sequence[tuple[str, str]]) -> float | None:
    """chrF (Popovic 2015) of answers against references by sacrebleu, 0 to 100, over the corpus."""
    if not pairs:
        return None
    from sacrebleu.metrics import CHRF

    return float(CHRF().corpus_score([answer for answer, _ in pairs], [[known for _, known in pairs]]).score)


def rouge_l(pairs: Sequence[tuple[str, str]]) -> float | None:
    """ROUGE-L F1 (Lin 2004) by rouge-score, 0 to 1, mean over the pairs."""
    if not pairs:
        return None
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return mean([float(scorer.score(known, answer)["rougeL"].fmeasure) for answer, known in pairs])


def is_json(text: str) -> bool:
    """Whether a text is one JSON object or array."""
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[place : place + size]) for place in range(len(words) - size + 1)]
