"""The top of a run's page: a sentence, six pictures and the key numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diptych.pages.template import percent
from diptych.terminal import counted, percent_range, printable

STRIP = 6


def summary(evaluation: Mapping[str, Any]) -> str:
    """One sentence about the first result: how many pictures were shown, how many answers were right, and chance."""
    if zero_shot := evaluation.get("zero_shot"):
        name, result = _shown_first(zero_shot)
        top1, chance = percent(result["metrics"]["top1"]), percent(result["chance"]["top1"])
        seen = ", which were in the training data" if result.get("seen_in_training") else ""
        shown = counted(result["pictures"], "picture")
        return (
            f"Shown {shown} of “{name}”{seen}, the model gave {top1} of them their right name "
            f"out of {len(result['classes']):,} (chance {chance})."
        )
    if retrieval := evaluation.get("retrieval"):
        name, result = _shown_first(retrieval)
        found, chance = (percent(result[key]["image_to_text_r1"]) for key in ("metrics", "chance"))
        seen = ", which were in the training data" if result.get("seen_in_training") else ""
        shown = counted(result["pictures"], "picture")
        return (
            f"Shown {shown} of “{name}”{seen}, the model found a caption of {found} of them "
            f"first among {result['captions']:,} (chance {chance})."
        )
    return ""


def strip(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Six of the pictures that `summary` is about, evenly spaced, each with the model's answer and the truth."""
    if zero_shot := evaluation.get("zero_shot"):
        _, result = _shown_first(zero_shot)
        classes = result["classes"]
        return [
            {
                "picture": each["picture"],
                "said": classes[each["guesses"][0][0]],
                "truth": classes[each["label"]],
                "is_right": each["guesses"][0][0] == each["label"],
            }
            for each in result.get("sample", result.get("right", []))[:STRIP]
        ]
    if retrieval := evaluation.get("retrieval"):
        _, result = _shown_first(retrieval)
        return [
            {
                "picture": each["picture"],
                "said": each["nearest"][0]["caption"],
                "truth": each["captions"][0],
                "is_right": each["nearest"][0]["is_right"],
            }
            for each in result.get("examples", [])[:STRIP]
        ]
    return []


def headlines(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The key numbers, zero-shot accuracy and recall at 1, each with the numbers to compare it with."""
    cards = []
    for name, result in evaluation.get("zero_shot", {}).items():
        about = f"{counted(result['pictures'], 'picture')}, {counted(len(result['classes']), 'class')}"
        others = list(_classifiers(evaluation, name, result.get("model")))
        cards.append(_card(f"zero-shot · {name}", result, "top1", about + other_model(result, evaluation), others))
    for name, result in evaluation.get("retrieval", {}).items():
        about = f"{counted(result['pictures'], 'picture')}, {counted(result['captions'], 'caption')}"
        of_data = "" if len(evaluation["retrieval"]) == 1 else f" · {name}"
        for way, label in (("image_to_text", "image → text"), ("text_to_image", "text → image")):
            others = [(f"within the first {k}", result["metrics"][f"{way}_r{k}"]) for k in (5, 10)]
            over = f"{label} R@1{of_data}"
            cards.append(_card(over, result, f"{way}_r1", about + other_model(result, evaluation), others))
    return cards


def _card(
    over: str, result: Mapping[str, Any], metric: str, about: str, others: Sequence[tuple[str, float]]
) -> dict[str, Any]:
    return {
        "over": over,
        "value": result["metrics"][metric],
        "interval": interval(result, metric),
        "about": about,
        "others": [*others, ("chance", result["chance"][metric])],
        "seen_in_training": result.get("seen_in_training"),
    }


def _classifiers(evaluation: Mapping[str, Any], data: str, model: str | None) -> Iterator[tuple[str, float]]:
    """The accuracy on the same data of each classifier that was fitted to features of this model, or to pixels."""
    for method, label in (
        ("linear_probe", "linear probe"),
        ("embedding_probe", "linear probe on embeddings"),
        ("pixel_baseline", "logistic regression on pixels"),
    ):
        other = evaluation.get(method, {}).get(data)
        if other and (method == "pixel_baseline" or other.get("model") == model):
            known = other["share_of_known_classes"] > 0
            yield label if known else f"{label} (knows no such class)", other["metrics"]["top1"]


def interval(result: Mapping[str, Any], metric: str) -> str:
    """The 95 % interval of a metric in words; empty for a result of an earlier version, which has none."""
    known = result.get("intervals", {}).get(metric)
    return f"{percent_range(*known)} % (95 % interval)" if known else ""


def other_model(result: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """`; of MODEL` for a result of another model than the newest results; else empty."""
    model = result.get("model", evaluation.get("model"))
    return "" if model == evaluation.get("model") else f"; of {printable(str(model))}"


def _shown_first(results: Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    """The data set at the top of the page: the last that the model was not trained on, else the last."""
    unseen = [item for item in results.items() if not item[1].get("seen_in_training")]
    return (unseen or list(results.items()))[-1]
