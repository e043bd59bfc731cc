"""The evaluators by name. The command, the trainer, the report and the results file all use this table."""

from diptych.evaluation import (
    association,
    compositional,
    few_shot,
    linear_probe,
    multi_label,
    retrieval,
    validation,
    zero_shot,
)
from diptych.evaluation.evaluator import Evaluator

EVALUATORS = {
    "zero_shot": Evaluator(
        "zero-shot",
        zero_shot.zero_shot,
        "labels",
        "folder with a subfolder for each class, .csv/.parquet table of path and label, or shards (json or cls labels)",
        headline=("top1",),
    ),
    "retrieval": Evaluator(
        "retrieval",
        retrieval.retrieval,
        "captions",
        "pictures with captions: folder with a .txt or .json for each, table of path and caption, or shards",
        headline=("image_to_text_r1", "text_to_image_r1"),
    ),
    "validation": Evaluator(
        "validation",
        validation.validation,
        "captions",
        "held-out pictures with captions, as for --retrieval, whose loss is measured",
        fewest_pictures=validation.GROUP,
        headline=("loss",),
        not_shares=("loss",),
    ),
    "multi_label": Evaluator(
        "several labels",
        multi_label.multi_label,
        "label_sets",
        "pictures with any number of labels: table of path and label (cat|dog, a list, or several rows), or shards "
        "(json, or CLIP_benchmark's npy arrays)",
    ),
    "compositional": Evaluator(
        "compositional",
        compositional.compositional,
        "matched",
        "table of image_0, image_1, caption_0 and caption_1, such as Winoground's examples.jsonl",
    ),
    "association": Evaluator(
        "association",
        association.association,
        "cues",
        "table of cue, candidates and associations, such as WinoGAViL's winogavil_dataset.csv, or its folder",
    ),
    "linear_probe": Evaluator(
        "linear probe",
        linear_probe.linear_probe,
        "labels",
        "labelled pictures to fit on what the image tower gives before its projection, as in the CLIP paper",
        fits=True,
    ),
    "embedding_probe": Evaluator(
        "probe of embeddings",
        linear_probe.embedding_probe,
        "labels",
        "labelled pictures to fit on embeddings, as OpenAI's example and CLIP_benchmark do",
        fits=True,
    ),
    "few_shot": Evaluator(
        "few-shot",
        few_shot.few_shot,
        "labels",
        "labelled pictures, of which probes are fitted to 1, 2, 4, 8 and 16 of each class, next to zero-shot",
        fits=True,
        not_shares=("zero_shot_equals_shots",),
    ),
    "pixel_baseline": Evaluator(
        "pixels, log. regression",
        linear_probe.pixel_baseline,
        "labels",
        "labelled pictures to fit on raw pixels instead",
        fits=True,
    ),
}
"""Key of a section of evaluation.json → evaluator. Its option is the key: `--zero-shot`."""

METHODS = {name: each.title for name, each in EVALUATORS.items() if each.reads == "labels" and name != "few_shot"}
"""The methods of classification, which are compared in one table: key → title. Few-shot is a curve of several."""
