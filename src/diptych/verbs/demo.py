"""Go through all stages on drawn cards: crawl, shards, training, evaluation on combinations never trained on."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import diptych.demo
from diptych.command_line import path_argument
from diptych.config.load import ConfigError
from diptych.terminal import counted

MAX_RANKS = 2
VOCABULARY_SIZE = 800
GUESSES = (
    "a panda on a blue background",
    "a fox on a pink background",
    "a rocket on a green background",
    "a pizza on a red background",
)

CLOSING = """
Of the pictures of combinations that it was never trained on, {unseen_top1:.1%} get their right name,
one out of {classes} (chance {chance:.2%}). All in {seconds:.0f} s.

Look at it:      {folder}/report.html
Your own data:   {activate}diptych-shards pack MY_PICTURES shards/    (a .txt next to each picture),
                 or diptych-shards build URLS.parquet shards/
                 diptych vocab shards/ --size 8192 --output vocabulary.json
                 diptych train --keys > my.yaml             (then fill in what is empty)
                 diptych train my.yaml                      (README, "Your own data")"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=path_argument, metavar="FOLDER", help="where everything goes, e.g. runs/demo")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the cards, the held-out combinations and the training (%(default)s)",
    )
    parser.add_argument("--config", type=path_argument, help="the recipe to train with (configs/demo.yaml)")


def num_ranks() -> int:
    """Ranks to train with: one for each GPU, at most two; two on a machine without a GPU."""
    import torch

    return min(torch.cuda.device_count() or MAX_RANKS, MAX_RANKS)


def run(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    folder, seed = arguments.folder, arguments.seed
    config = arguments.config or find_config()
    data = folder / "data"
    cards, shards, vocabulary = data / "cards", data / "shards", data / "vocabulary.json"
    claim(data, seed)

    credit = draw(cards, seed)
    from_crawl_to_shards(cards / "train", data, seed)
    command("diptych", "vocab", shards, "--size", VOCABULARY_SIZE, "--output", vocabulary)
    command(
        *("torchrun", "--standalone", "--nproc-per-node", num_ranks(), "-m", "diptych", "train", config),
        *(
            f"run_dir={folder}",
            f"data.train={shards}",
            f"tokenizer.vocabulary={vocabulary}",
            f"training.seed={seed}",
        ),
    )
    (data / "credits.txt").write_text(f"{credit}\n", encoding="utf-8")
    command(
        *("diptych", "evaluate", folder, "--classes", cards / "classes.yaml"),
        *("--zero-shot", f"seen={cards / 'seen'}", "--zero-shot", f"unseen={cards / 'unseen'}"),
        *("--retrieval", f"cards={cards / 'retrieval'}", "--pixel-baseline", cards / "train_labels.csv"),
        *("--report", "--credits", data / "credits.txt", "--funnel", data / "funnel.json"),
    )
    picture = example(cards / "unseen")
    labels = ", ".join(dict.fromkeys([picture.parent.name, *GUESSES]))
    command("diptych", "classify", folder, picture, "--labels", labels, "--template", "{}")

    results = summarise(folder, time.monotonic() - began)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(CLOSING.format(folder=folder, activate=how_to_activate(), **results))


def how_to_activate() -> str:
    """The line that puts the commands on PATH; empty if they already are."""
    programs = Path(sys.executable).parent
    if shutil.which("diptych") == str(programs / "diptych"):
        return ""
    script = programs / "activate"
    put = f". {shlex.quote(str(script))}" if script.exists() else f"export PATH={shlex.quote(str(programs))}:$PATH"
    return f"{put}\n                 "


def find_config() -> Path:
    """configs/demo.yaml of the working directory, else the installed copy."""
    here = Path("configs") / "demo.yaml"
    return here if here.exists() else Path(diptych.demo.__file__).with_name("demo.yaml")


def claim(data: Path, seed: int) -> None:
    """Reserve the folder for the demo of this seed; an earlier start of the same seed is continued.

    Raises:
        ConfigError: the folder contains the demo of another seed.
    """
    mark = data / "seed.txt"
    if mark.exists() and mark.read_text(encoding="utf-8").strip() != str(seed):
        raise ConfigError(
            f"{data.parent} holds the demo of seed {mark.read_text(encoding='utf-8').strip()}, not of {seed}; "
            f"name another folder"
        )
    data.mkdir(parents=True, exist_ok=True)
    mark.write_text(f"{seed}\n", encoding="utf-8")


def from_crawl_to_shards(cards: Path, data: Path, seed: int) -> None:
    """Serve the cards as a web site on this machine, crawl it, and build shards from the pairs that are found."""
    from diptych.demo.crawl import crawl, serve_at_remembered_port
    from diptych.demo.funnel import read_funnel
    from diptych.demo.site import DemoSite

    warc, pairs, curated, shards = (data / name for name in ("crawl.warc.gz", "pairs", "curated", "shards"))
    if (shards / "_index" / "build.json").exists() and (data / "funnel.json").exists():
        print(f"the shards of an earlier start are there: {shards}", flush=True)
        return
    site = DemoSite(cards, seed)
    with serve_at_remembered_port(site, data / "port.txt", [warc, pairs, curated, shards]) as address:
        if not warc.exists():
            print(f"\nthe cards are a web site now, at {address}: crawling it into {warc}", flush=True)
            print(f"{counted(crawl(address, warc), 'page')}", flush=True)
        command("diptych-shards", "extract", warc, pairs)
        command("diptych-shards", "curate", pairs, curated)
        command(
            *("diptych-shards", "build", curated, shards, "--allow-network", "127.0.0.1/32", "--per-host", 32),
            *("--resize-mode", "no", "--encode-format", "png", "--skip-reencode"),
        )
    funnel = read_funnel(pairs, curated, shards)
    (data / "funnel.json").write_text(json.dumps(funnel, indent=1) + "\n", encoding="utf-8")


def draw(cards: Path, seed: int) -> str:
    """Draw the cards, which depend only on the seed, and return the credit for the artwork."""
    from diptych.demo.cards import draw_cards

    print(f"drawing picture cards into {cards}", flush=True)
    summary = draw_cards(cards, seed)
    print(
        f"{summary.train} cards to train on; {summary.seen} of combinations it will have seen and {summary.unseen} "
        f"of combinations held out, {summary.classes} classes",
        flush=True,
    )
    return summary.credit


def command(*words: object) -> None:
    """Print a command as a person would type it, and run it with this environment's programs.

    If it fails, the demo exits with the command's status; the command has printed its own message.
    """
    line = [str(word) for word in words]
    print(f"\n$ {shlex.join(line)}", flush=True)
    programs = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
        # Two ranks that each use a thread for every core are many times slower than two with one thread each.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    status = subprocess.run(line, env=environment).returncode
    if status:
        sys.exit(status)


def example(unseen: Path) -> Path:
    """A picture of a held-out class, of a fox if there is one."""
    pictures = sorted(unseen.rglob("*.png"))
    return next((picture for picture in pictures if "fox" in picture.parent.name), pictures[0])


def summarise(folder: Path, seconds: float) -> dict[str, float]:
    from diptych.run_dir import read_metrics

    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    zero_shot, retrieval = evaluation["zero_shot"], evaluation["retrieval"]["cards"]["metrics"]
    end = [line for line in read_metrics(folder / "metrics.jsonl") if line.get("event") == "end"][-1]
    return {
        "unseen_top1": zero_shot["unseen"]["metrics"]["top1"],
        "seen_top1": zero_shot["seen"]["metrics"]["top1"],
        "classes": len(zero_shot["unseen"]["classes"]),
        "chance": zero_shot["unseen"]["chance"]["top1"],
        "image_to_text_r1": retrieval["image_to_text_r1"],
        "text_to_image_r1": retrieval["text_to_image_r1"],
        "samples_per_second": round(end["samples_seen"] / end["seconds"], 1),
        "seconds": round(seconds, 1),
    }
