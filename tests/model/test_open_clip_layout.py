"""Weights pass between open_clip's model and ours in both directions and compute the same features."""

import hashlib
import json
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from diptych.config.schema import CLIP_MEAN, ImageTowerConfig, ModelConfig, TextTowerConfig
from diptych.data.preprocessing import preprocess
from diptych.model.dual_encoder import DualEncoder, load_weights
from diptych.model.open_clip_config import config_from_open_clip, open_clip_config, read_open_clip_config
from diptych.model.open_clip_layout import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    from_open_clip,
    load_open_clip,
    save_open_clip,
    to_open_clip,
)
from diptych.training.image_weights import resize_image_positions

open_clip = pytest.importorskip("open_clip")

SMALL = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 48,
        "head_width": 16,
        "patch_size": 8,
        "mlp_ratio": 3.0,
    },
    "text_cfg": {"context_length": 12, "vocab_size": 600, "width": 32, "heads": 4, "layers": 3},
}
VIT_B_32_OF_ONE_BLOCK = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 1, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 1},
}


def open_clip_model(model_cfg):
    torch.manual_seed(0)
    model = open_clip.CLIP(**model_cfg).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(seeded_like(name, tensor))
    return model


def seeded_like(name, tensor):
    """Random numbers that depend on the tensor's name, in place of any zeros and ones, so that a swap is seen."""
    if name == "logit_scale":
        return torch.tensor(2.5)
    seed = int.from_bytes(hashlib.sha256(f"0:{name}".encode()).digest()[:4], "little")
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
    if name.endswith("weight") and tensor.ndim == 1:
        return 1 + 0.3 * noise
    if tensor.ndim == 1:
        return 0.3 * noise
    return noise * tensor[0].numel() ** -0.5


def pixels_and_captions(config, vocab_size, batch=3):
    """Pictures with their captions; the end token is the largest id, since open_clip finds it by that."""
    generator = torch.Generator().manual_seed(1)
    size, context = config.image.image_size, config.text.context_length
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
    lengths = torch.randint(3, context, (batch,), generator=generator)
    lengths[0] = context
    tokens = torch.randint(1, vocab_size - 1, (batch, context), generator=generator)
    columns = torch.arange(context)
    tokens[columns == lengths[:, None] - 1] = vocab_size - 1
    tokens[columns >= lengths[:, None]] = 0
    return images, tokens, lengths


def open_clip_features(model, config, images, tokens):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.image.mean, config.image.std))
    with torch.no_grad():
        image = model.encode_image((images / 255 - mean) / std, normalize=True)
        return image, model.encode_text(tokens, normalize=True)


def assert_equal_to_one_part_in_100_000(got, expected):
    """Compare relative to the row's norm, which is one, since an element near zero has no relative accuracy."""
    assert (got - expected).norm(dim=-1).max() <= 1e-5
    assert (expected[0] - expected[1]).norm() > 0.1, "features must differ between inputs to show anything"


@pytest.mark.parametrize(
    "model_cfg",
    [SMALL, {**SMALL, "quick_gelu": True}, {**VIT_B_32_OF_ONE_BLOCK, "quick_gelu": True}],
    ids=["small-gelu", "small-quickgelu", "sizes of ViT-B/32-quickgelu"],
)
def test_open_clips_weights_compute_open_clips_features_and_go_back_unchanged(model_cfg):
    theirs = open_clip_model(model_cfg)
    config = config_from_open_clip({"model_cfg": model_cfg})
    vocab_size = model_cfg["text_cfg"]["vocab_size"]
    ours = DualEncoder(config, vocab_size, 0.0).eval()
    load_weights(ours, from_open_clip(theirs.state_dict(), config))

    images, tokens, lengths = pixels_and_captions(config, vocab_size)
    image, text = open_clip_features(theirs, config, images, tokens)
    with torch.no_grad():
        our_image, our_text = ours(images, tokens, lengths)
    assert_equal_to_one_part_in_100_000(our_image, image)
    assert_equal_to_one_part_in_100_000(our_text, text)
    assert ours.logit_scale.item() == theirs.logit_scale.item()

    returned = to_open_clip(ours.state_dict(), config)
    original = theirs.state_dict()
    assert returned.keys() == original.keys()
    assert all(
        returned[name].shape == original[name].shape and returned[name].equal(original[name]) for name in original
    )


def test_vit_b_32_has_the_302_tensors_of_openai():
    config = ModelConfig()
    with torch.device("meta"):
        state = DualEncoder(config, 49408, 0.0).state_dict()
    tensors = to_open_clip(state, config)
    assert len(tensors) == 302
    assert sum(tensor.numel() for tensor in tensors.values()) == 151_277_313


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_open_clip_loads_the_folder_we_write(tmp_path, quick_gelu):
    config = config_from_open_clip({"model_cfg": {**SMALL, "quick_gelu": quick_gelu}})
    torch.manual_seed(2)
    ours = DualEncoder(config, 600, 2.0).eval()
    save_open_clip(tmp_path, ours.state_dict(), config)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    theirs.eval()
    images, tokens, lengths = pixels_and_captions(config, 600)
    image, text = open_clip_features(theirs, config, images, tokens)
    with torch.no_grad():
        our_image, our_text = ours(images, tokens, lengths)
    assert_equal_to_one_part_in_100_000(our_image, image)
    assert_equal_to_one_part_in_100_000(our_text, text)
    assert tuple(preprocess.transforms[-1].mean) == config.image.mean


def test_a_folder_written_and_read_holds_identical_tensors_and_an_equal_config(tmp_path):
    config = config_from_open_clip({"model_cfg": SMALL})
    state = DualEncoder(config, 600, 2.0).state_dict()
    save_open_clip(tmp_path, state, config)
    returned, returned_config = load_open_clip(tmp_path)
    assert returned_config == config
    assert returned.keys() == state.keys()
    assert all(returned[name].equal(state[name]) for name in state)


@pytest.mark.parametrize(
    "name, hidden",
    [
        ("vit_giant_patch14_clip_224", 6144),
        ("vit_gigantic_patch14_clip_224", 8192),
        ("vit_huge_patch14_clip_224", 5120),
    ],
)
def test_the_mlp_width_survives_the_ratio_that_open_clip_wants(name, hidden):
    config = ModelConfig(image=ImageTowerConfig(name=name), text=TextTowerConfig(activation="gelu"))
    vision = open_clip_config(config, 49408)["model_cfg"]["vision_cfg"]
    assert int(vision["width"] * vision["mlp_ratio"]) == hidden


def test_custom_text_models_and_one_element_scales_are_read_too():
    config = config_from_open_clip({"model_cfg": SMALL})
    state = open_clip_model(SMALL).state_dict()
    custom = {name if name.startswith(("visual.", "logit")) else f"text.{name}": value for name, value in state.items()}
    custom["logit_scale"] = custom["logit_scale"].reshape(1)
    expected = from_open_clip(state, config)
    assert all(tensor.equal(expected[name]) for name, tensor in from_open_clip(custom, config).items())


def test_a_tensor_of_another_shape_is_named_with_both_shapes():
    config = config_from_open_clip({"model_cfg": SMALL})
    state = open_clip_model(SMALL).state_dict()
    state["visual.proj"] = torch.zeros(48, 23)
    with pytest.raises(ValueError, match=r"visual\.proj has shape \[48, 23\], expected \[48, 24\]"):
        from_open_clip(state, config)


def test_missing_and_unknown_tensors_are_named():
    config = config_from_open_clip({"model_cfg": SMALL})
    state = open_clip_model(SMALL).state_dict()
    with pytest.raises(ValueError, match=r"visual\.extra is not part of this model"):
        from_open_clip({**state, "visual.extra": torch.zeros(1)}, config)
    del state["ln_final.bias"]
    with pytest.raises(ValueError, match=r"ln_final\.bias is missing"):
        from_open_clip(state, config)


@pytest.mark.parametrize(
    "image, text, complaint",
    [
        (ImageTowerConfig(name="resnet18"), TextTowerConfig(), "resnet18 does not compute"),
        (
            ImageTowerConfig(name="vit_tiny_patch16_224"),
            TextTowerConfig(),
            "vit_tiny_patch16_224 does not compute",
        ),
        (ImageTowerConfig(), TextTowerConfig(activation="gelu"), "one activation for both"),
        (
            ImageTowerConfig(overrides={"init_values": 0.1}),
            TextTowerConfig(),
            r"ls1\.gamma, for which open_clip.*no place",
        ),
    ],
)
def test_a_model_that_open_clip_cannot_compute_is_refused(image, text, complaint):
    config = ModelConfig(image=image, text=text)
    with torch.device("meta"):
        state = DualEncoder(config, 600, 0.0).state_dict()
    with pytest.raises(ValueError, match=complaint):
        to_open_clip(state, config)


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"vision_cfg": {**SMALL["vision_cfg"], "layers": [3, 4, 6, 3]}}, r"layers is \[3, 4, 6, 3\]"),
        ({"vision_cfg": {**SMALL["vision_cfg"], "no_ln_pre": True}}, "vision_cfg.no_ln_pre is True"),
        ({"text_cfg": {**SMALL["text_cfg"], "hf_model_name": "roberta-base"}}, "text_cfg.hf_model_name"),
        ({"vision_cfg": {**SMALL["vision_cfg"], "timm_model_name": "vit"}}, "vision_cfg.timm_model_name"),
        ({"text_cfg": None}, "there is no mapping text_cfg"),
        ({"embed_dim": 0}, "embed_dim is 0"),
    ],
)
def test_a_config_that_is_not_clips_is_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        config_from_open_clip({"model_cfg": {**SMALL, **change}})


@pytest.mark.parametrize(
    "preprocessing, complaint",
    [
        ({"resize_mode": "stretch"}, "resize_mode is 'stretch', expected 'shortest' or 'longest' or 'squash'"),
        ({"interpolation": "lanczos"}, "interpolation is 'lanczos', expected 'bicubic' or 'bilinear'"),
        ({"size": [64, 64]}, r"size is \[64, 64\], expected 32"),
        ({"mode": "L"}, "mode is 'L', expected 'RGB'"),
        ({"mean": 0.5}, "mean is 0.5, expected three numbers"),
        ({"std": [1, 1, "x"]}, "std is 'x', expected a number"),
        ({"fill_color": 256}, "fill_color is 256, expected a number from 0 to 255"),
        ({"fill_color": [0, 0]}, r"fill_color is \[0, 0\], expected a number from 0 to 255"),
        ([], "there is no mapping preprocess_cfg"),
    ],
)
def test_preprocessing_that_open_clip_does_not_have_is_refused(preprocessing, complaint):
    with pytest.raises(ValueError, match=complaint):
        config_from_open_clip({"model_cfg": SMALL, "preprocess_cfg": preprocessing})


def test_what_a_preprocessing_leaves_out_has_open_clips_defaults():
    written = {"size": [32, 32], "mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}
    expected = config_from_open_clip({"model_cfg": SMALL})
    for preprocessing in (written, {**written, "size": 32, "interpolation": "random"}, {"resize_mode": None}):
        assert config_from_open_clip({"model_cfg": SMALL, "preprocess_cfg": preprocessing}) == expected


@pytest.mark.parametrize(
    "preprocessing",
    [
        {},
        {"interpolation": "bilinear"},
        {"resize_mode": "squash", "mean": [0.5] * 3, "std": [0.5] * 3},
        {"resize_mode": "longest", "interpolation": "bilinear", "fill_color": 127},
        {"resize_mode": "longest", "fill_color": [9, 99, 199]},
    ],
)
def test_pictures_are_prepared_by_us_and_after_an_export_by_open_clip_as_the_file_says(tmp_path, preprocessing):
    config = config_from_open_clip({"model_cfg": SMALL, "preprocess_cfg": preprocessing})
    save_open_clip(tmp_path, DualEncoder(config, 600, 2.0).state_dict(), config)
    assert load_open_clip(tmp_path)[1] == config
    PreprocessCfg, image_transform_v2 = open_clip.transform.PreprocessCfg, open_clip.transform.image_transform_v2
    exported = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")[2]
    asked = image_transform_v2(PreprocessCfg(size=32, **preprocessing), is_train=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.image.mean, config.image.std))
    for size in ((61, 40), (40, 61), (20, 31)):
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        for transform in (exported, asked):
            theirs = (transform(Image.fromarray(pixels)) * std + mean) * 255
            assert torch.equal(preprocess(Image.fromarray(pixels), config.image), theirs.round().to(torch.uint8))


OPENAIS_PREPROCESSOR = {
    **{"crop_size": 32, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 32},
    **{"feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
}
LAIONS_PREPROCESSOR = {
    **OPENAIS_PREPROCESSOR,
    **{"crop_size": {"height": 32, "width": 32}, "do_rescale": True, "rescale_factor": 0.00392156862745098},
    **{"size": {"shortest_edge": 32}, "image_processor_type": "CLIPImageProcessor"},
}
SIGLIPS_PREPROCESSOR = {
    **{"do_normalize": True, "do_rescale": True, "do_resize": True, "rescale_factor": 0.00392156862745098},
    **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "size": {"height": 32, "width": 32}},
}


@pytest.mark.parametrize(
    "preprocessor, resize_mode, interpolation, mean",
    [
        (OPENAIS_PREPROCESSOR, "shortest", "bicubic", (0.1, 0.2, 0.3)),
        (LAIONS_PREPROCESSOR, "shortest", "bicubic", (0.1, 0.2, 0.3)),
        (SIGLIPS_PREPROCESSOR, "squash", "bilinear", (0.5, 0.5, 0.5)),
        ({**SIGLIPS_PREPROCESSOR, "do_normalize": False}, "squash", "bilinear", (0, 0, 0)),
    ],
)
def test_a_folder_without_preprocess_cfg_is_read_with_transformers_file(
    tmp_path, preprocessor, resize_mode, interpolation, mean
):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": SMALL}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    image = read_open_clip_config(tmp_path)[0].image
    assert (image.resize_mode, image.interpolation, image.mean) == (resize_mode, interpolation, mean)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": SMALL, "preprocess_cfg": {}}))
    assert read_open_clip_config(tmp_path)[0].image.mean == CLIP_MEAN


@pytest.mark.parametrize(
    "change, complaint",
    [
        (
            {"size": {"shortest_edge": 36}},
            "size is {'shortest_edge': 36} and crop_size {'height': 32, 'w",
        ),
        ({"size": {"longest_edge": 32}}, "expected a shortest_edge and a crop of the same size, or equal height and"),
        ({"size": {"height": 32, "width": 16}, "do_center_crop": False}, "or equal height and width"),
        ({"size": 64, "crop_size": 64}, "preprocess_cfg.size is 64, expected 32"),
        ({"size": None, "crop_size": None}, "size is None"),
        ({"resample": 1}, "resample is 1, expected 2"),
        ({"do_rescale": False}, "do_rescale is False, expected True"),
        ({"rescale_factor": 1}, "rescale_factor is 1, expected 1/255"),
        ({"image_mean": "red"}, "mean is 'red', expected three numbers"),
    ],
)
def test_a_preprocessing_of_transformers_that_open_clip_does_not_have_is_refused(tmp_path, change, complaint):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": SMALL}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**LAIONS_PREPROCESSOR, **change}))
    with pytest.raises(ValueError, match=complaint):
        read_open_clip_config(tmp_path)


def test_a_model_of_the_sigmoid_loss_keeps_its_bias_on_the_way_to_open_clip_and_back(tmp_path):
    config = config_from_open_clip({"model_cfg": SMALL})
    state = DualEncoder(config, 600, 2.0, -7.5).state_dict()
    save_open_clip(tmp_path, state, config)
    theirs = open_clip.create_model(f"local-dir:{tmp_path}")
    assert theirs.logit_bias.item() == -7.5
    read, read_config = load_open_clip(tmp_path)
    assert read_config == config
    assert read.keys() == state.keys() and all(read[name].equal(tensor) for name, tensor in state.items())


def test_a_damaged_folder_is_refused_in_one_line(tmp_path):
    config = config_from_open_clip({"model_cfg": SMALL})
    save_open_clip(tmp_path, DualEncoder(config, 600, 2.0).state_dict(), config)
    weights = tmp_path / WEIGHTS_FILE
    whole = weights.read_bytes()
    for damaged in (whole[:-100], whole[:5], b"", b"\xff" * 100):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match=WEIGHTS_FILE) as refusal:
            load_open_clip(tmp_path)
        assert "\n" not in str(refusal.value)
    (tmp_path / CONFIG_FILE).write_text("{")
    with pytest.raises(ValueError, match=CONFIG_FILE):
        load_open_clip(tmp_path)
    (tmp_path / CONFIG_FILE).unlink()
    with pytest.raises(ValueError, match="is missing"):
        load_open_clip(tmp_path)


def test_a_position_grid_is_resampled_as_open_clip_does():
    config = config_from_open_clip({"model_cfg": SMALL})
    larger = {**SMALL, "vision_cfg": {**SMALL["vision_cfg"], "image_size": 56}}
    larger_config = config_from_open_clip({"model_cfg": larger})
    state = open_clip_model(SMALL).state_dict()

    model = DualEncoder(larger_config, 600, 0.0)
    ours = resize_image_positions(from_open_clip(state, config), model)
    load_weights(model, ours)

    theirs = dict(state)
    open_clip.model.resize_pos_embed(theirs, open_clip.CLIP(**larger))
    assert torch.equal(ours["image.trunk.pos_embed"][0], theirs["visual.positional_embedding"])
    assert np.isfinite(ours["image.trunk.pos_embed"].numpy()).all()


def test_openais_half_precision_stays_what_it_was():
    config = config_from_open_clip({"model_cfg": SMALL})
    state = {name: tensor.half() for name, tensor in open_clip_model(SMALL).state_dict().items()}
    returned = to_open_clip(from_open_clip(state, config), config)
    assert all(returned[name].dtype == torch.float16 and returned[name].equal(state[name]) for name in state)


def test_what_we_write_is_plain_safetensors_with_a_config(tmp_path):
    config = config_from_open_clip({"model_cfg": SMALL})
    save_open_clip(tmp_path, DualEncoder(config, 600, 2.0).state_dict(), config)
    assert safetensors.torch.load_file(tmp_path / WEIGHTS_FILE)["logit_scale"].shape == ()
    assert config_from_open_clip(json.loads((tmp_path / CONFIG_FILE).read_text())) == config
