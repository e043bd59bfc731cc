"""Compare captions a second of our tokenizer with open_clip's SimpleTokenizer; prints one line of JSON.

Both must give equal ids. The captions are generated: words of the vocabulary with Zipf frequencies, as many as in alt
texts, an eighth of them with a unique file number. Both tokenizers first warm up their caches on other captions; each
round uses captions that neither has seen. Times are processor times of one thread.
"""

from __future__ import annotations

import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from itertools import accumulate

import numpy as np
from open_clip.tokenizer import SimpleTokenizer

from diptych.data.tokenizer import Tokenizer, load_tokenizer

CONTEXT_LENGTH = 77
BATCH = 256
ROUNDS = 21
BATCHES_A_ROUND = 8
WARM_UP_BATCHES = 400
MEDIAN_WORDS = 9
NUMBERED_SHARE = 1 / 8
NON_ASCII_SHARE = 0.1


def main() -> None:
    ours, peer = load_tokenizer("clip"), SimpleTokenizer()
    ascii_only = compare(ours, peer, non_ascii_share=0)
    mixed = compare(ours, peer, non_ascii_share=NON_ASCII_SHARE)
    result = {
        "benchmark": "tokenizer",
        "speedup": ascii_only.pop("speedup"),
        f"speedup_with_{NON_ASCII_SHARE:.0%}_non_ascii": mixed.pop("speedup"),
        "unit": "captions/s",
        **ascii_only,
        "settings": {
            "context_length": CONTEXT_LENGTH,
            "batch": BATCH,
            "rounds": ROUNDS,
            "captions_a_round": BATCHES_A_ROUND * BATCH,
            "threads": 1,
            "python": platform.python_version(),
        },
    }
    print(json.dumps(result))


def compare(ours: Tokenizer, peer: SimpleTokenizer, *, non_ascii_share: float) -> dict[str, float]:
    """Medians over paired rounds."""
    captions = DrawnCaptions(ours, non_ascii_share)
    for _ in range(WARM_UP_BATCHES):
        texts = captions.draw(BATCH)
        tokens, _ = ours(texts, CONTEXT_LENGTH)
        np.testing.assert_array_equal(tokens, peer(texts, CONTEXT_LENGTH).numpy())

    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    num_tokens = 0
    runs: list[tuple[str, Callable]] = [("ours", ours), ("peer", peer)]
    for _ in range(ROUNDS):
        batches = [captions.draw(BATCH) for _ in range(BATCHES_A_ROUND)]
        runs.reverse()
        for name, tokenize in runs:
            start = time.process_time()
            for texts in batches:
                tokenize(texts, CONTEXT_LENGTH)
            seconds[name].append(time.process_time() - start)
        num_tokens += sum(int(ours(texts, CONTEXT_LENGTH)[1].sum()) for texts in batches)

    num_captions = BATCHES_A_ROUND * BATCH
    ratios = [peer_time / our_time for our_time, peer_time in zip(seconds["ours"], seconds["peer"], strict=True)]
    return {
        "speedup": round(statistics.median(ratios), 2),
        "ours": round(num_captions / statistics.median(seconds["ours"])),
        "peer": round(num_captions / statistics.median(seconds["peer"])),
        "tokens_a_caption": round(num_tokens / (num_captions * ROUNDS), 1),
    }


class DrawnCaptions:
    """Captions like a crawl's, the same ones every time."""

    def __init__(self, tokenizer: Tokenizer, non_ascii_share: float):
        self._draw = random.Random(0)
        self._non_ascii_share = non_ascii_share
        ends = (left + right for left, right in tokenizer.merges if right.endswith("</w>"))
        words = (end.removesuffix("</w>") for end in ends)
        # Merges are listed most frequent first, so a word's place is its rank.
        self._words = [word for word in words if word.isascii() and word.isalpha()]
        self._weights = list(accumulate(1 / (rank + 3) for rank in range(len(self._words))))

    def draw(self, num_captions: int) -> list[str]:
        return [self._caption() for _ in range(num_captions)]

    def _caption(self) -> str:
        draw = self._draw
        num_words = min(max(round(draw.lognormvariate(0, 0.6) * MEDIAN_WORDS), 2), 60)
        words = draw.choices(self._words, cum_weights=self._weights, k=num_words)
        words = [word.title() if draw.random() < 0.3 else word for word in words]
        words[-1] += draw.choice(["", "", ".", "!", ", 2019", " | Stock Photo"])
        if draw.random() < NUMBERED_SHARE:
            words.append(f"IMG_{draw.randrange(10**8):08}.jpg")
        if draw.random() < self._non_ascii_share:
            words.insert(draw.randrange(len(words)), draw.choice(["café", "–", "“quoted”", "it’s", "日本", "😀", "Ã©"]))
        return " ".join(words)


if __name__ == "__main__":
    main()
