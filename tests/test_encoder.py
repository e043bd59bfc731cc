"""A model folder is complete by itself, and a damaged one is refused in one line."""

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import diptych
from diptych import cli
from diptych.checkpoint_folder import FORMAT, MANIFEST, describe
from diptych.config.schema import ImageTowerConfig, ModelConfig, TextTowerConfig
from diptych.data.picture_safety import PictureError, open_picture
from diptych.data.picture_values import rgb_image
from diptych.data.preprocessing import preprocess
from diptych.data.tokenizer import Tokenizer
from diptych.encoder import Encoder
from diptych.model.dual_encoder import DualEncoder
from diptych.model_folder import (
    CONFIG_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    model_folder,
    save_model_folder,
)
from tests.data.test_colour_profile import ALL_INK_IS_GREY, EXCHANGED, LINEAR_GREY
from tests.model.test_image_tower import SMALL_CLIP_RESNET

TOKENIZER = Tokenizer([("a", "t</w>"), ("c", "at</w>")])
FILES = (WEIGHTS_FILE, CONFIG_FILE, VOCABULARY_FILE)


def model_config(image_size=32, **settings):
    overrides = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    return ModelConfig(
        embed_dim=16,
        image=ImageTowerConfig(name="vit_base_patch32_clip_quickgelu_224", image_size=image_size, overrides=overrides),
        text=TextTowerConfig(context_length=10, width=32, heads=2, layers=1),
        **settings,
    )


def dual_encoder(config, seed=0):
    torch.manual_seed(seed)
    return DualEncoder(config, TOKENIZER.vocab_size, 2.0).eval()


@pytest.fixture
def folder(tmp_path):
    save_model_folder(tmp_path / "model", dual_encoder(model_config()).state_dict(), model_config(), TOKENIZER)
    return tmp_path / "model"


def save_checkpoint(run_dir, step, seed=0, ema_seed=None):
    """A checkpoint with the parts that its reader needs: the model folders, and a manifest with their hashes."""
    checkpoint = run_dir / "checkpoints" / f"step_{step:08d}"
    files = {}
    for part, each in {"model": seed, "ema": ema_seed}.items():
        if each is not None:
            weights = dual_encoder(model_config(), each).state_dict()
            save_model_folder(checkpoint / part, weights, model_config(), TOKENIZER)
            files |= {f"{part}/{name}": describe(checkpoint / part / name) for name in FILES}
    (checkpoint / "config.json").write_text("{}")  # the run's config, which has the same name as a model's
    (checkpoint / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}))
    return checkpoint


def flip_a_byte(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def picture(size=(50, 40), seed=0):
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def test_a_model_of_the_sigmoid_loss_is_saved_and_loaded_with_its_bias(tmp_path):
    config = model_config()
    torch.manual_seed(0)
    model = DualEncoder(config, TOKENIZER.vocab_size, 2.0, -9.0)
    save_model_folder(tmp_path / "model", model.state_dict(), config, TOKENIZER)
    assert diptych.load(tmp_path / "model").model.logit_bias.item() == -9


def test_what_is_loaded_computes_what_was_saved(folder):
    model = dual_encoder(model_config())
    encoder = diptych.load(folder, device="cpu")
    assert encoder.config == model_config()
    assert not encoder.model.training
    assert encoder.logit_scale == pytest.approx(7.389, abs=1e-3)  # e^2

    images = torch.stack([preprocess(picture(seed=seed), model_config().image) for seed in range(3)])
    tokens, lengths = map(torch.from_numpy, TOKENIZER(["cat", "a cat sat", ""], 10))
    with torch.no_grad():
        assert torch.equal(encoder.embed_images(images), model.encode_image(images))
        assert torch.equal(encoder.embed_texts(["cat", "a cat sat", ""]), model.encode_text(tokens, lengths))


@pytest.mark.parametrize(
    "name, overrides, projects",
    [
        (model_config().image.name, model_config().image.overrides, True),
        ("resnet50_clip", SMALL_CLIP_RESNET, False),
        ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}, True),
    ],
)
def test_features_are_before_the_projection_and_come_with_the_same_embeddings(name, overrides, projects):
    config = dataclasses.replace(model_config(), image=ImageTowerConfig(name=name, image_size=64, overrides=overrides))
    encoder = Encoder(dual_encoder(config), TOKENIZER, config, torch.device("cpu"))
    pictures = [picture(seed=seed) for seed in range(3)]

    embeddings, features = encoder.embed_with_features(pictures, batch_size=2)

    assert torch.equal(embeddings, encoder.embed_pictures(pictures, batch_size=2))
    projection = encoder.model.image.proj
    assert (projection is not None) == projects
    projected = features if projection is None else features @ projection.detach()
    torch.testing.assert_close(torch.nn.functional.normalize(projected, dim=1), embeddings)


EXIF_TURNED = Image.Exif()
EXIF_TURNED[0x0112] = 6


def with_alpha(mode):
    """A picture whose upper part is transparent, with black below, as most tools write it."""
    pixels = np.array(picture().convert("RGBA"))
    pixels[:20] = 0
    return Image.fromarray(pixels).convert(mode)


def sixteen_bits():
    return Image.fromarray(np.array(picture().convert("L")).astype(np.uint16) * 257)


STORED = {
    "rgb": (picture(), "PNG", {}),
    "grey": (picture().convert("L"), "PNG", {}),
    "two levels": (picture().convert("1"), "PNG", {}),
    "palette": (picture().quantize(8), "PNG", {}),
    "alpha": (with_alpha("RGBA"), "PNG", {}),
    "grey with alpha": (with_alpha("LA"), "PNG", {}),
    "transparent palette entry": (picture().quantize(8), "PNG", {"transparency": 0}),
    "transparent colour": (picture(), "PNG", {"transparency": picture().getpixel((25, 20))}),
    "16 bits": (sixteen_bits(), "PNG", {}),
    "CMYK": (picture().convert("CMYK"), "JPEG", {"quality": 95}),
    "turned JPEG": (picture(), "JPEG", {"exif": EXIF_TURNED, "quality": 95}),
    "turned WebP": (picture(), "WEBP", {"exif": EXIF_TURNED, "lossless": True}),
    "another profile": (picture(), "PNG", {"icc_profile": EXCHANGED}),
    "turned, with another profile": (picture(), "JPEG", {"exif": EXIF_TURNED, "icc_profile": EXCHANGED}),
    "grey with a profile": (picture().convert("L"), "PNG", {"icc_profile": LINEAR_GREY}),
    "CMYK with a profile": (picture().convert("CMYK"), "JPEG", {"icc_profile": ALL_INK_IS_GREY}),
}


@pytest.mark.parametrize("name", STORED)
def test_the_same_picture_as_file_bytes_pillow_image_array_and_tensor_has_equal_embeddings(folder, tmp_path, name):
    encoder = diptych.load(folder, device="cpu")
    image, kind, options = STORED[name]
    path = tmp_path / "picture"
    image.save(path, kind, **options)
    pixels = np.array(open_picture(path.read_bytes()))

    with Image.open(path) as lazy, Image.open(path) as loaded:
        loaded.load()
        ways = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), lazy, loaded, loaded.copy()]
        ways += [open_picture(path.read_bytes()), pixels, torch.from_numpy(pixels).permute(2, 0, 1)]
        embeddings = encoder.embed_pictures(ways)
        before = loaded.mode, loaded.size, dict(loaded.info)
        assert all(torch.equal(row, embeddings[0]) for row in embeddings)
        assert before == (loaded.mode, loaded.size, dict(loaded.info)), "the caller's image stays as it was"


@pytest.mark.parametrize(
    "mode", ["RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "L", "LA", "La", "PA", "P", "1", "F"]
)
def test_every_mode_of_pillow_is_converted(mode):
    grey = Image.new("L", (8, 6), 204 if mode != "1" else 255)  # 204 is in Pillow's palette
    image = grey.convert("LA").convert(mode) if mode in ("La", "PA") else grey.convert("RGB").convert(mode)
    assert np.abs(np.asarray(rgb_image(image)).astype(int) - grey.getpixel((0, 0))).max() <= 2
    assert rgb_image(image).mode == "RGB"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_transparency_of_a_pillow_image_shows_white(mode):
    clear = Image.new(mode, (4, 4), (0,) * len(Image.new(mode, (1, 1)).getbands()))
    assert rgb_image(clear).getpixel((0, 0)) == (255, 255, 255)


def test_arrays_of_one_three_and_four_channels_are_pictures():
    colour, grey, clear = np.array(picture()), np.array(picture().convert("L")), np.array(with_alpha("RGBA"))
    assert np.array_equal(rgb_image(colour), colour)
    assert np.array_equal(rgb_image(colour[::-1]), colour[::-1])
    for array in (grey, grey[:, :, None]):
        assert np.array_equal(rgb_image(array), np.stack([grey] * 3, axis=2))
        chw = torch.from_numpy(np.atleast_3d(array)).permute(2, 0, 1)
        assert np.array_equal(rgb_image(chw), rgb_image(array))
    assert np.array_equal(rgb_image(torch.from_numpy(grey)), rgb_image(grey))
    assert np.array_equal(rgb_image(clear), rgb_image(Image.fromarray(clear)))
    assert np.array_equal(rgb_image(torch.from_numpy(clear).permute(2, 0, 1)), rgb_image(clear))


@pytest.mark.parametrize(
    "value, error, complaint",
    [
        (None, TypeError, "got NoneType; expected a list"),
        (io.BytesIO(b"\n\n"), TypeError, "got BytesIO; expected a path, encoded bytes, a Pillow image"),
        ([io.BytesIO(b"")], TypeError, "got BytesIO; expected a path, encoded bytes, a Pillow image"),
        (np.array(None), TypeError, "got NoneType; expected a path"),
        (np.array(3, np.uint8), TypeError, "got int; expected a path"),
        (torch.tensor(3, dtype=torch.uint8), ValueError, r"got a tensor \[\]; expected \[height width\]"),
        ([[1, 2]], TypeError, "got list; expected a path"),
        ({"a.png": 1}, TypeError, "got dict; expected a list"),
        ({"a.png"}, TypeError, "got set; expected a list"),
        (np.zeros((4, 4, 3)), TypeError, "got an array of float64; expected uint8"),
        (torch.zeros(3, 4, 4), TypeError, "got a tensor of torch.float32; expected torch.uint8"),
        (np.zeros((3, 4, 5), np.uint8), ValueError, r"\[3 4 5\]; expected .*transpose\(1, 2, 0\)"),
        (torch.zeros(5, 4, 3, dtype=torch.uint8), ValueError, r"\[5 4 3\]; expected .*permute\(2, 0, 1\)"),
        ([np.zeros(4, np.uint8)], ValueError, r"got an array \[4\]; expected \[height width\]"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "there is no pixel in it"),
        (Image.new("RGB", (0, 3)), PictureError, "0 x 3 pixels; at least 1 a side"),
        (Image.new("1", (10001, 10000)), PictureError, "10001 x 10000 pixels; at most 100000000"),
        (Image.new("F", (2, 2), 300.0), PictureError, "from 300 to 300; expected 0 to 255"),
        (Image.new("F", (2, 2), 0.5), PictureError, "from 0.5 to 0.5; expected 0 to 255"),
        (b"", PictureError, "the file is empty"),
        ([picture(), b"no"], PictureError, "number 1, counted from 0: the file does not begin as a picture does"),
        ([picture(), None], TypeError, "number 1, counted from 0: got NoneType"),
        ("no/such/file.png", FileNotFoundError, "no/such/file.png"),
    ],
)
def test_something_other_than_a_picture_is_refused_in_one_clear_line(folder, value, error, complaint):
    with pytest.raises(error, match=complaint) as refusal:
        diptych.load(folder, device="cpu").embed_pictures(value)
    assert "\n" not in str(refusal.value)


def test_one_text_or_picture_gives_one_row_and_any_iterable_many(folder, tmp_path):
    encoder = diptych.load(folder, device="cpu")
    picture().save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    one = encoder.embed_pictures([path])
    alone = np.array(None)
    alone[()] = picture()
    for single in (path, str(path), path.read_bytes(), picture(), np.array(picture()), np.array(str(path)), alone):
        assert torch.equal(encoder.embed_pictures(single), one)
    for many in ((path for _ in range(3)), (path,) * 3, np.array([str(path)] * 3), np.stack([picture()] * 3)):
        assert torch.equal(encoder.embed_pictures(many, batch_size=1), one.repeat(3, 1))
    assert encoder.embed_texts("a cat").shape == encoder.embed_texts(np.array("a cat")).shape == (1, 16)
    assert torch.equal(encoder.embed_pictures([path, path], batch_size=np.int64(1)), one.repeat(2, 1))
    texts = encoder.embed_texts(["a cat", "cat"])
    assert torch.equal(encoder.embed_texts(text for text in ("a cat", "cat")), texts)
    assert torch.equal(encoder.embed_texts(np.array(["a cat", "cat"])), texts)
    assert encoder.embed_texts(iter(())).shape == encoder.embed_pictures(iter(())).shape == (0, 16)


@pytest.mark.parametrize("value", [None, 5, b"a cat", ["a cat", None], [["a cat"]], {"a cat"}, [b"a cat"]])
def test_something_other_than_a_text_is_refused(folder, value):
    with pytest.raises(TypeError, match="got .*; expected"):
        diptych.load(folder, device="cpu").embed_texts(value)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, None])
def test_a_batch_size_below_one_is_refused(folder, batch_size):
    encoder = diptych.load(folder, device="cpu")
    for embed in (lambda: encoder.embed_texts(["a"], batch_size), lambda: encoder.embed_pictures([b""], batch_size)):
        with pytest.raises(ValueError, match="batch_size is .*; expected a whole number from 1"):
            embed()


@pytest.mark.parametrize(
    "images, error, complaint",
    [
        (np.zeros((1, 3, 32, 32), np.uint8), TypeError, "got ndarray; expected a tensor of torch.uint8"),
        (torch.zeros(1, 3, 32, 32), TypeError, "got torch.float32"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), ValueError, r"\[3 32 32\]; expected \[batch 3 32 32\]"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), ValueError, "embed_pictures resizes"),
        (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), ValueError, "expected"),
    ],
)
def test_images_of_another_type_or_size_are_refused(folder, images, error, complaint):
    with pytest.raises(error, match=complaint):
        diptych.load(folder, device="cpu").embed_images(images)


def test_batch_size_changes_nothing_and_no_input_gives_no_rows(folder):
    encoder = diptych.load(folder, device="cpu")
    texts = [f"a cat {number}" for number in range(7)]
    together, apart = encoder.embed_texts(texts), encoder.embed_texts(texts, batch_size=3)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)  # fp32 sums in another order
    pictures = [picture(seed=seed) for seed in range(5)]
    torch.testing.assert_close(
        encoder.embed_pictures(pictures), encoder.embed_pictures(pictures, batch_size=2), rtol=0, atol=1e-6
    )
    assert encoder.embed_texts([]).shape == encoder.embed_pictures([]).shape == (0, 16)


@pytest.mark.parametrize("of_image", [False, True])
def test_the_folder_does_not_record_where_the_run_started(tmp_path, of_image):
    secret, config = "/home/someone/secret", model_config()
    named = (
        {"image": dataclasses.replace(config.image, initial_weights=secret)}
        if of_image
        else {"initial_weights": secret}
    )
    config = dataclasses.replace(config, **named)
    save_model_folder(tmp_path, dual_encoder(config).state_dict(), config, TOKENIZER)
    assert "secret" not in (tmp_path / CONFIG_FILE).read_text()


def test_a_run_directory_means_its_newest_complete_checkpoint(tmp_path):
    for step in (2, 10, 9):
        save_checkpoint(tmp_path, step, seed=step)
    (save_checkpoint(tmp_path, 11) / MANIFEST).unlink()
    save_checkpoint(tmp_path, 12).rename(tmp_path / "checkpoints" / "step_00000012.partial")
    assert model_folder(tmp_path).parent.name == "step_00000010"
    loaded = diptych.load(tmp_path, device="cpu").model.state_dict()
    assert torch.equal(loaded["image.proj"], dual_encoder(model_config(), seed=10).state_dict()["image.proj"])


def test_one_checkpoint_of_a_run_can_be_named(tmp_path):
    older = save_checkpoint(tmp_path, 1, seed=1)
    save_checkpoint(tmp_path, 2, seed=2)
    loaded = diptych.load(older, device="cpu").model.state_dict()
    assert torch.equal(loaded["image.proj"], dual_encoder(model_config(), seed=1).state_dict()["image.proj"])
    flip_a_byte(older / "model" / WEIGHTS_FILE)
    with pytest.raises(ValueError, match="has changed since it was written"):
        diptych.load(older)


def test_averaged_weights_are_loaded_on_request(tmp_path):
    run = tmp_path / "run"
    older, newer = (save_checkpoint(run, step, seed=step, ema_seed=10 * step) for step in (1, 2))
    starts = {(path, ema): diptych.load(path, "cpu", ema=ema) for path in (run, older) for ema in (False, True)}
    for (path, ema), encoder in starts.items():
        seed = (2 if path == run else 1) * (10 if ema else 1)
        expected = dual_encoder(model_config(), seed=seed).state_dict()["image.proj"]
        assert torch.equal(encoder.model.state_dict()["image.proj"], expected), (path, ema)
    flip_a_byte(newer / "ema" / WEIGHTS_FILE)
    assert model_folder(run, ema=True) == older / "ema" and model_folder(run) == newer / "model"


def test_missing_averaged_weights_are_reported(tmp_path, folder):
    checkpoint = save_checkpoint(tmp_path / "run", 1)
    for path in (tmp_path / "run", checkpoint):
        with pytest.raises(ValueError, match="no averaged weights .EMA.: its run was trained without training.ema_dec"):
            diptych.load(path, ema=True)
    with pytest.raises(ValueError, match="is a model folder; averaged weights .EMA. are in a run"):
        diptych.load(folder, ema=True)


def test_a_checkpoint_with_a_changed_byte_gives_way_to_the_one_before(tmp_path, caplog):
    older, newer = save_checkpoint(tmp_path, 1), save_checkpoint(tmp_path, 2)
    flip_a_byte(newer / "model" / WEIGHTS_FILE)
    assert model_folder(tmp_path) == older / "model"
    assert f"{newer / 'model' / WEIGHTS_FILE}: has changed since it was written" in caplog.text
    flip_a_byte(older / "model" / VOCABULARY_FILE)
    with pytest.raises(ValueError, match="has no valid checkpoint; the newest: "):
        model_folder(tmp_path)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_transformers_is_recognised(tmp_path, weights):
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"architectures": ["CLIPModel"], "model_type": "clip"}))
    (tmp_path / weights).touch()
    with pytest.raises(ValueError, match=r"Hugging Face's transformers \(clip\).* in open_clip's layout"):
        diptych.load(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name):
        diptych.load(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00\x01" * 50, b"null"])
def test_a_damaged_file_is_named_in_one_line(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as refusal:
        diptych.load(folder)
    assert "\n" not in str(refusal.value)


def test_weights_cut_short_are_refused(folder):
    weights = folder / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ValueError, match=WEIGHTS_FILE):
        diptych.load(folder)


def test_a_place_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="contains neither a model"):
        diptych.load(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        diptych.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "keys, value, complaint",
    [
        (["format"], "other", "does not describe a Diptych model"),
        (["version"], 99, "format version 99"),
        (["vocab_size"], 7, "517|516|vocabulary.json has"),
        (["vocab_size"], "516", "vocab_size is '516', expected int"),
        (["model", "embed_dim"], 0, "model.embed_dim is 0, expected at least 1"),
        (["model", "embed_dim"], 16.0, "model.embed_dim is 16.0, expected int"),
        (["model", "colour"], 1, "model.colour is unknown"),
        (
            ["model", "text", "activation"],
            "relu",
            "model.text.activation is 'relu', expected one of gelu, quick_gelu",
        ),
        (["model", "text", "heads"], True, "model.text.heads is True, expected int"),
        (["model", "image", "resize_mode"], "crop", "model.image.resize_mode is 'crop', expected one of shortest"),
        (["model", "image", "mean"], [0.5, 0.5], "model.image.mean .* expected a list of 3"),
        (["model", "image", "name"], "vit_nothing", "is not a timm model"),
        (["model", "image", "overrides"], {"checkpoint_path": "x.pt"}, "checkpoint_path is refused"),
        (["model", "image"], None, "model.image is None, expected a mapping"),
        (["model", "text", "layers"], 2, r"resblocks\.1\.\S+ is missing"),
        (["model", "embed_dim"], 17, r"has shape \[32, 16\], expected \[32, 17\]"),
    ],
)
def test_a_config_that_is_not_of_this_model_is_refused(folder, keys, value, complaint):
    document = json.loads((folder / CONFIG_FILE).read_text())
    place = document
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (folder / CONFIG_FILE).write_text(json.dumps(document))
    with pytest.raises(ValueError, match=complaint) as refusal:
        diptych.load(folder)
    assert "\n" not in str(refusal.value)


def test_a_folder_from_before_resize_modes_prepares_pictures_as_it_did(folder):
    document = json.loads((folder / CONFIG_FILE).read_text())
    for key in ("resize_mode", "interpolation", "fill_colour"):
        del document["model"]["image"][key]
    (folder / CONFIG_FILE).write_text(json.dumps(document))
    assert diptych.load(folder, device="cpu").config == model_config()


def test_a_models_own_preprocessing_is_saved_and_used(tmp_path):
    config = model_config()
    settings = {"resize_mode": "longest", "interpolation": "bilinear", "fill_colour": (0, 99, 199)}
    config = dataclasses.replace(config, image=dataclasses.replace(config.image, **settings))
    save_model_folder(tmp_path / "model", dual_encoder(config).state_dict(), config, TOKENIZER)
    encoder = diptych.load(tmp_path / "model", device="cpu")
    assert encoder.config == config
    expected = encoder.embed_images(preprocess(picture(), config.image)[None])
    assert torch.equal(encoder.embed_pictures(picture()), expected)
    assert not torch.equal(expected, encoder.embed_images(preprocess(picture(), model_config().image)[None]))


@pytest.mark.parametrize("layout", ["diptych", "open_clip"])
def test_an_exported_run_computes_the_same(tmp_path, layout, capsys):
    save_checkpoint(tmp_path / "run", 5)
    cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--layout", layout])
    printed = capsys.readouterr().out
    assert "parameters" in printed
    assert ("pip install transformers" in printed) == (layout == "open_clip")  # the vocabulary is not CLIP's
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}
    source, exported = (diptych.load(tmp_path / name, device="cpu") for name in ("run", "out"))
    texts = ["a cat", "cat"]
    assert torch.equal(exported.embed_texts(texts), source.embed_texts(texts))
    assert torch.equal(exported.embed_pictures([picture()]), source.embed_pictures([picture()]))
    assert exported.config == source.config


def test_an_export_overwrites_nothing(tmp_path, folder, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", str(folder), str(tmp_path / "out")])
    assert stop.value.code == 2
    assert "out is not empty" in capsys.readouterr().err
    assert (tmp_path / "out" / "precious").read_text() == "mine"


def test_an_export_that_fails_leaves_nothing(tmp_path, capsys):
    config = model_config()
    text = TextTowerConfig(context_length=10, width=32, heads=2, layers=1, activation="gelu")
    config = ModelConfig(embed_dim=16, image=config.image, text=text)
    save_model_folder(tmp_path / "model", dual_encoder(config).state_dict(), config, TOKENIZER)
    with pytest.raises(SystemExit):
        cli.main(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--layout", "open_clip"])
    assert "one activation for both" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_weights_are_plain_safetensors_under_our_names(folder):
    saved = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    state = dual_encoder(model_config()).state_dict()
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[name], state[name]) for name in state)


def test_importing_diptych_loads_neither_torch_nor_webdataset():
    source = "import sys, diptych; sys.exit(any(name in sys.modules for name in ('torch', 'webdataset')))"
    environment = {"PYTHONPATH": str(Path(diptych.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", source], env=environment).returncode == 0


def test_an_unknown_name_of_the_package_raises_attribute_error():
    assert not hasattr(diptych, "nothing")
