import os
import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files

import pytest

import diptych
from diptych import command_line
from diptych.cli import VERBS, main
from diptych.config.load import load_config
from diptych.errors import LostRankError, NoMeetingError, UserError
from diptych.terminal import counted
from diptych.training.checks import refuse_pretrained_tag
from diptych.verbs import vocab
from diptych_shards.cli import main as main_of_shards
from diptych_shards.curate.rules import RULES
from tests.commands import ROOT, forked_launcher, start


def test_the_help_names_every_verb_with_what_it_does(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    for verb in VERBS:
        (line,) = [line for line in shown.splitlines() if line.startswith(f"  {verb} ")]
        assert len(line.split(maxsplit=1)[1]) > 20


@pytest.mark.parametrize(
    ("command", "words", "example"),
    [
        (main, [], ""),
        (main, ["data"], ""),
        (main_of_shards, ["curate"], ""),
        (main_of_shards, ["filter"], '    diptych-shards filter SHARDS --where "width >= 256 and length(caption) > 5"'),
    ],
)
def test_the_help_fits_80_columns_and_breaks_no_example(command, words, example, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        command([*words, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 80
    assert example in lines


def test_the_help_of_curate_names_every_rule_to_skip(capsys):
    with pytest.raises(SystemExit):
        main_of_shards(["curate", "--help"])
    shown = capsys.readouterr().out
    assert all(rule in shown for rule in RULES)


@pytest.mark.parametrize("words", [[], ["help"], ["-h"]])
@pytest.mark.parametrize(("command", "verb"), [(main, "train"), (main_of_shards, "build")])
def test_a_command_without_words_prints_its_help(command, verb, words, capsys):
    with pytest.raises(SystemExit) as caught:
        command(words)
    assert caught.value.code == 0 and f"\n  {verb} " in capsys.readouterr().out


@pytest.mark.parametrize(("command", "verb"), [(main, "train"), (main_of_shards, "build")])
def test_help_of_a_verb_is_that_of_its_option(command, verb, capsys):
    for words in (["help", verb], [verb, "-h"]):
        with pytest.raises(SystemExit) as caught:
            command(words)
        assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown == 2 * shown[: len(shown) // 2] and verb in shown


def test_a_verb_may_have_verbs_of_its_own(capsys):
    for words in (["data"], ["help", "data"], ["data", "-h"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 0 and "\n  preview  " in capsys.readouterr().out
    for words in (["help", "data", "preview"], ["data", "help", "preview"], ["data", "preview", "-h"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 0 and "usage: diptych data preview " in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["data", "prevew"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "diptych data: no verb 'prevew'; did you mean preview?\n"


@pytest.mark.parametrize(("command", "name"), [(main, "diptych"), (main_of_shards, "diptych-shards")])
def test_the_version_is_that_of_the_distribution(command, name, capsys):
    with pytest.raises(SystemExit) as caught:
        command(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{name} {version('diptych')}\n" and diptych.__version__ == version("diptych")


def test_the_package_shows_what_it_offers_without_loading_it():
    code = "import sys, diptych; print(dir(diptych), 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert shown == "['Encoder', '__version__', 'load'] False\n"


@pytest.mark.parametrize("package", ["diptych", "diptych_shards"])
def test_the_package_says_that_it_is_typed(package):
    assert files(package).joinpath("py.typed").is_file()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_without_our_letters_gets_plain_ones(encoding):
    code = r"""
import sys
from diptych.cli import main
from diptych.terminal import bar
for words in (["vocab", "a\udcff…", "--output", "v.json"], ["help", "train"]):
    try:
        main(words)
    except SystemExit as end:
        print(end.code, bar(0.55, 3), "→ \udcff☃")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}
    )
    assert b"Traceback" not in done.stderr and b"does not exist" in done.stderr
    assert done.stdout.startswith(b"2 ##  -> ??\n")
    words = [sys.executable, "-m", "diptych_shards", "build", "--help"]
    assert subprocess.run(words, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}).returncode == 0


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--verison", "diptych: no option '--verison'; did you mean --version?"),
        ("trian", "diptych: no verb 'trian'; did you mean train?"),
        ("version", "diptych: no verb 'version'; did you mean --version?"),
        ("my.yaml", f"diptych: no verb 'my.yaml'; there are {', '.join(VERBS)}"),
    ],
)
def test_a_mistyped_verb_is_one_line_with_the_way_out(word, told, capsys):
    with pytest.raises(SystemExit) as caught:
        main([word, "--dry-run"])
    assert caught.value.code == 2 and capsys.readouterr().err == told + "\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "my.yaml", "--dryrun"], "no option --dryrun; did you mean --dry-run?"),
        (
            ["train", "my.yaml", "--lr=3"],
            "no option --lr; settings are written without dashes: optimizer.learning_rate=VALUE",
        ),
        (
            ["train", "my.yaml", "--batch_size", "3"],
            "no option --batch-size; settings are written without dashes: training.global_batch_size=VALUE",
        ),
        (["train"], "the following arguments are required: CONFIG|key=value; diptych train -h lists the options"),
        (
            ["vocab", "in", "--size=many"],
            "argument --size: invalid int value: 'many'; diptych vocab -h lists the options",
        ),
    ],
)
def test_a_mistyped_option_is_one_line_with_the_way_out(words, told, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2 and capsys.readouterr().err == f"diptych {words[0]}: {told}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["vocab", "captions.txt", "--output", "REMOTE"],
        ["export", "run", "REMOTE"],
        ["export", "REMOTE", "out"],
        ["embed", "run", "--pictures", "x", "--output", "REMOTE/x.npz"],
        ["embed", "REMOTE", "--pictures", "x", "--output", "x.npz"],
        ["evaluate", "run", "--zero-shot", "x", "--json", "REMOTE/x.json"],
        ["evaluate", "REMOTE", "--zero-shot", "x"],
        ["classify", "REMOTE", "x", "--labels", "a,b"],
        ["classify", "run", "REMOTE", "--labels", "a,b"],
        ["demo", "REMOTE"],
    ],
    ids=" ".join,
)
def test_a_url_in_place_of_a_path_is_refused_before_anything_is_read_or_written(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main([word.replace("REMOTE", "s3://bucket") for word in words])
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and "s3://bucket" in line and "aws s3 sync" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0 and f"diptych {verb}" in capsys.readouterr().out


def test_mistakes_are_lines_on_stderr_and_status_2(tmp_path, capsys):
    config = tmp_path / "my.yaml"
    config.write_text(
        f"data: {{train: {tmp_path}/nothing}}\ntraning: {{}}\ntokenizer: {{vocabulary: {tmp_path}/no.json}}"
    )
    with pytest.raises(SystemExit) as caught:
        main(["train", str(config), "model.image.name=vit_small_patch99_224"])
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    for word in ("did you mean training", "training is not set", "nothing", "no.json", "vit_small_patch99_224"):
        assert sum(word in line for line in lines) == 1, (word, lines)
    assert all(line.startswith("diptych train: ") for line in lines)


def test_under_the_launch_scripts_the_first_rank_prints_all_mistakes_and_no_rank_is_started_again(tmp_path):
    config = tmp_path / "my.yaml"
    config.write_text(f"data: {{train: {tmp_path}/nothing}}\ntraning: {{}}\ntokenizer: {{vocabulary: clip}}")
    environment = {"RANKS": "2", **forked_launcher(tmp_path)}
    command = start(tmp_path, ROOT / "launch" / "one_node.sh", config, environment=environment)
    assert command.wait() == 2
    lines = command.said.splitlines()
    assert all(line.startswith("diptych train: ") for line in lines), command.said
    for word in ("did you mean training", "nothing"):
        assert sum(word in line for line in lines) == 1, command.said
    assert len((tmp_path / "started_rank").read_text().splitlines()) == 2


def test_a_mistake_of_another_rank_alone_is_printed_by_that_rank(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command_line, "PATIENCE_SECONDS", 0.0)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        main(["train", str(tmp_path / "no.yaml")])
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and line.startswith("diptych train: rank 3: ") and "no.yaml" in line


@pytest.mark.parametrize(("error", "status"), [(LostRankError, 1), (NoMeetingError, 2)])
def test_few_of_many_ranks_report_that_another_is_lost(error, status, capsys, monkeypatch):
    def lose(arguments):
        raise error("lost the other ranks")

    monkeypatch.setattr(command_line, "LAST_WORDS_SECONDS", 0.0)
    monkeypatch.setattr(command_line, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(vocab, "run", lose)
    told = []
    for rank in range(512):
        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises(SystemExit) as caught:
            main(["vocab", "captions.txt"])
        assert caught.value.code == status
        told += capsys.readouterr().err.splitlines()
    assert told[0] == "diptych vocab: lost the other ranks" and told[-1].startswith("diptych vocab: rank 256: ")
    assert len(told) == 10


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_a_verb_whose_output_nobody_reads_any_more_ends_as_other_tools_do(words, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "diptych", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_bug_keeps_its_traceback(tmp_path):
    code = (
        "import diptych.verbs.vocab as v, diptych.cli as c\n"
        "def run(arguments): int('no number')\n"
        "v.run = run\n"
        "c.main(['vocab', 'x'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" in result.stderr


def test_the_deepspeed_launchers_argument_is_ignored(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--local_rank=0", "train", "--help"])
    assert caught.value.code == 0


def test_all_keys_are_printed_for_a_file_to_start_from(capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        main(["train", "--keys"])
    assert caught.value.code == 0
    page = capsys.readouterr().out
    assert "  learning_rate: 0.0005  # number" in page.splitlines() and "\n# The directory of the run" in page


def test_the_tag_of_pretrained_weights_is_refused_unless_weights_are_named(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("data: {train: shards}\ntraining: {total_samples: 1000, global_batch_size: 10}")
    name = "model.image.name=vit_base_patch16_clip_224.openai"
    tagged = load_config([file], [name, f"run_dir={tmp_path}/run"]).config
    with pytest.raises(UserError, match=r"\.openai would start at random.*; write vit_base_patch16_clip_224, or name"):
        refuse_pretrained_tag(tagged)
    for weights in ("model.initial_weights=folder", "model.image.initial_weights=tower.safetensors"):
        refuse_pretrained_tag(load_config([file], [name, weights, f"run_dir={tmp_path}/run"]).config)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    refuse_pretrained_tag(tagged)  # the run has started from random weights, and is not refused again


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
@pytest.mark.parametrize("place", ["file", "file/run", "/proc/nope/run"])
def test_a_run_directory_that_cannot_be_written_is_reported_before_anything_is_done(words, place, tmp_path, capsys):
    (tmp_path / "file").touch()
    file = tmp_path / "my.yaml"
    file.write_text("data: {train: nothing}\ntraining: {total_samples: 1000, global_batch_size: 10}")
    with pytest.raises(SystemExit) as caught:
        main(["train", str(file), f"run_dir={tmp_path / place}", *words])
    assert caught.value.code == 2
    told = capsys.readouterr().err.splitlines()
    (line,) = [line for line in told if line.endswith("; set run_dir to one that can be")]
    assert line.startswith("diptych train: command line: /") and "cannot be written: " in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "my.yaml"]


@pytest.mark.parametrize("words", [["vocab", "captions.txt", "--output", "/proc/v.json"], ["export", "run", "/proc/o"]])
def test_an_output_that_cannot_be_written_is_reported_before_anything_is_read(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and "/proc/" in line and "cannot be written: " in line


def test_on_windows_one_line_says_where_to_go():
    code = "import sys; sys.platform = 'win32'; import {}.cli"
    for package in ("diptych", "diptych_shards"):
        done = subprocess.run([sys.executable, "-c", code.format(package)], capture_output=True, text=True)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 1 and "WSL" in line


def test_one_of_a_kind_is_written_in_the_singular():
    counts = [counted(number, noun) for number, noun in ((1, "class"), (2, "class"), (1_000, "query"), (3, "key"))]
    assert counts == ["1 class", "2 classes", "1,000 queries", "3 keys"]
