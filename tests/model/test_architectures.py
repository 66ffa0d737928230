"""Every architecture and encoder of the seed: built, trained a step, run on sheets, saved and loaded."""

import copy
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

from sever.base import MasksAndLabels
from sever.config.build import build, check
from sever.config.load import Section
from sever.config.registry import MODELS
from sever.engine.checkpoint import load_checkpoint, load_weights, save_checkpoint
from sever.model.model import DPT, FPN, Classifier, Unet
from sever.utils.errors import ConfigError

LIGHT = "tu-mobilenetv3_small_050"
TINY_VIT = {
    "encoder_name": "tu-vit_tiny_patch16_224",
    "decoder_intermediate_channels": [8, 8, 8, 8],
    "decoder_fusion_channels": 8,
}
NARROW = [32, 16, 16, 8, 8]
# Every architecture of SMP and the classifier, as narrow as they can be.
EACH = {
    "Unet": {"decoder_channels": NARROW},
    "UnetPlusPlus": {"decoder_channels": NARROW},
    "MAnet": {"decoder_channels": NARROW},
    "Linknet": {},
    "FPN": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
    "PSPNet": {"psp_out_channels": 16},
    "DeepLabV3": {"decoder_channels": 16},
    "DeepLabV3Plus": {"decoder_channels": 16},
    "PAN": {"decoder_channels": 16},
    "UPerNet": {"decoder_channels": 16},
    "Segformer": {"decoder_segmentation_channels": 16},
    "DPT": TINY_VIT,
    "Classifier": {},
}
RESNET50_AT_8 = {"encoder_name": "resnet50", "encoder_output_stride": 8}
# The pairs of the seed's score table, then every other row of what it reports.
SEED = {
    "b5-fpn": ("FPN", {"encoder_name": "efficientnet-b5", "in_channels": "r"}),
    "b5-unet": ("Unet", {"encoder_name": "efficientnet-b5", "in_channels": "g"}),
    "se-fpn": ("FPN", {"encoder_name": "se_resnext50_32x4d", "in_channels": "b"}),
    "se-unet": ("Unet", {"encoder_name": "se_resnext50_32x4d", "in_channels": "r"}),
    "inceptionv4-fpn": ("FPN", {"encoder_name": "inceptionv4", "in_channels": "r"}),
    "res2net-fpn": ("FPN", {"encoder_name": "tu-res2net50_26w_4s", "in_channels": "r"}),
    "dilated-unet": ("Unet", {**RESNET50_AT_8, "in_channels": "g"}),
    "dilated-fpn": ("FPN", {**RESNET50_AT_8, "in_channels": "b"}),
    "nested-unet": ("UnetPlusPlus", {"encoder_name": "efficientnet-b0", "in_channels": "r"}),
    "deeplabv3": ("DeepLabV3", {"encoder_name": "resnet50", "in_channels": "r"}),
    "fpn-cat": ("FPN", {"encoder_name": "efficientnet-b0", "decoder_merge_policy": "cat"}),
    "unet-dropout": ("Unet", {"encoder_name": "efficientnet-b0", "decoder_dropout": 0.3}),
    "classifier": ("Classifier", {"encoder_name": "efficientnet-b5", "in_channels": "r"}),
    "auxiliary": (
        "FPN",
        {"encoder_name": "efficientnet-b0", "aux_params": {"pooling": "avg", "dropout": 0.2}},
    ),
}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def made(architecture, args):
    """The model of a config's section `arch`, from random weights."""
    args = {"encoder_weights": None, "in_channels": "r", "classes": 4, **args}
    return build(MODELS, Section(type=architecture, args=args), "test: arch")


def total(outputs):
    """One number that depends on all outputs."""
    return sum(o.square().sum() for o in outputs) if isinstance(outputs, tuple) else outputs.square().sum()


def assert_fit(outputs, images, model):
    """The outputs have the kinds, shapes and finite values that the model promises for images."""
    kinds = dict(zip(model.output_kinds, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))
    expected = {"masks": (len(images), 4, *images.shape[-2:]), "labels": (len(images), 4)}
    assert {kind: tuple(logits.shape) for kind, logits in kinds.items()} == {k: expected[k] for k in kinds}
    assert all(logits.isfinite().all() for logits in kinds.values())


def check_life(architecture, args, crop, sheets, folder):
    """A training step on one crop, sheets in evaluation, and the same outputs from a checkpoint."""
    torch.manual_seed(0)
    model = made(architecture, args)
    images = torch.randn(1, 1, *crop)
    outputs = model.train()(images)
    assert_fit(outputs, images, model)
    total(outputs).backward()
    for name, group in model.parameter_groups().items():
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in group), name
    model.eval()
    state = {"arch": architecture, "epoch": 1, "config": {"arch": args}, "state_dict": model.state_dict()}
    save_checkpoint(state, folder / "model.pth")
    loaded = made(architecture, args).eval()
    load_weights(loaded, load_checkpoint(folder / "model.pth")["state_dict"], "model.pth")
    with torch.inference_mode():
        for size in sheets:
            sheet = torch.randn(1, 1, *size)
            outputs = model(sheet)
            assert_fit(outputs, sheet, model)
            assert total(outputs) > 0
            again = loaded(sheet)
            pairs = zip(outputs, again, strict=True) if isinstance(outputs, tuple) else [(outputs, again)]
            assert all(torch.equal(first, second) for first, second in pairs)


def test_every_architecture_of_smp_has_its_name():
    assert set(EACH) < set(MODELS.names())


@pytest.mark.parametrize("architecture", EACH)
def test_an_architecture_trains_takes_any_size_and_comes_back_from_its_checkpoint(
    architecture, tmp_path, no_network
):
    heads = {} if architecture == "Classifier" else {"aux_params": {"pooling": "max"}}
    args = {"encoder_name": LIGHT, **EACH[architecture], **heads}
    check_life(architecture, args, (64, 64), [(50, 77), (32, 200)], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("row", SEED)
def test_a_row_of_the_seed_trains_on_a_crop_and_takes_a_whole_sheet(row, tmp_path, no_network):
    architecture, args = SEED[row]
    check_life(architecture, args, (256, 416), [(256, 1600)], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["FPN", "Unet"])
def test_inceptionv4_takes_odd_sizes(architecture):
    model = made(architecture, {"encoder_name": "inceptionv4"}).eval()
    with torch.inference_mode():
        for size in [(200, 200), (101, 77), (33, 64)]:
            sheet = torch.randn(1, 1, *size)
            assert_fit(model(sheet), sheet, model)


def test_a_batch_of_a_single_crop_is_pooled_with_the_running_statistics():
    """torch's BatchNorm refuses one value per channel, which global pooling leaves of one image."""
    model = made("DeepLabV3", {"encoder_name": LIGHT, "decoder_channels": 16}).train()
    pooling = next(m for m in model.modules() if type(m).__name__ == "ASPPPooling")
    model(torch.randn(2, 1, 64, 64))
    mean, variance = pooling[2].running_mean.clone(), pooling[2].running_var.clone()
    values = torch.randn(1, 16, 1, 1)
    expected = (values[0, :, 0, 0] - mean) / (variance + pooling[2].eps).sqrt()  # weight 1, bias 0
    torch.testing.assert_close(pooling[2](values)[0, :, 0, 0], expected)
    total(model(torch.randn(1, 1, 64, 64))).backward()
    assert torch.equal(pooling[2].running_mean, mean)


# Dropout between decoder and head


@pytest.mark.parametrize("architecture", ["Unet", "UnetPlusPlus", "Linknet", "PAN"])
def test_dropout_is_added_where_smp_has_none_without_a_change_to_checkpoints(architecture):
    args = {"encoder_name": LIGHT, **EACH[architecture]}
    torch.manual_seed(0)
    plain = made(architecture, args)
    dropping = made(architecture, {**args, "decoder_dropout": 0.5})
    load_weights(dropping, plain.state_dict(), "plain")  # refuses any difference in keys
    image = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        assert torch.equal(dropping.eval()(image), plain.eval()(image))
    average = copy.deepcopy(dropping).eval()  # as moving averages copy models
    dropping.network.segmentation_head.train()
    with torch.inference_mode():
        assert not torch.equal(dropping(image), dropping(image))
        assert torch.equal(average(image), plain(image))


def test_dropout_drops_whole_channels_before_the_head():
    torch.manual_seed(0)
    model = made(
        "Unet", {"encoder_name": LIGHT, "decoder_channels": [16] * 5, "decoder_dropout": 0.5}
    ).train()
    seen = []
    head = next(m for m in model.network.segmentation_head.modules() if isinstance(m, torch.nn.Conv2d))
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for _ in range(20):
        model(torch.randn(2, 1, 32, 32))
    dropped = torch.cat(seen).abs().amax(dim=(2, 3)) == 0  # (40, 16) channels that are 0 all over
    assert 0.35 < dropped.float().mean() < 0.65
    assert not dropped.all(dim=0).any()


@pytest.mark.parametrize("value", [-0.1, 1, 1.5])
def test_a_dropout_outside_of_its_range_is_named(value):
    with pytest.raises(ConfigError, match=r"arch\.args\.decoder_dropout: expected .* than"):
        made("Unet", {"encoder_name": LIGHT, "decoder_dropout": value})


# Dilated encoders


def feature_strides(model, size=128):
    with torch.inference_mode():
        features = model.eval().network.encoder(torch.zeros(1, 1, size, size))
    return [size // feature.shape[-1] for feature in features]


@pytest.mark.parametrize(
    ("architecture", "encoder", "first"),
    [
        ("Unet", "resnet18", "conv1.weight"),
        ("FPN", "resnet18", "conv1.weight"),
        *(
            pytest.param(name, LIGHT, "model.conv_stem.weight", marks=pytest.mark.slow)
            for name in ("UPerNet", "Segformer", "PSPNet", "DeepLabV3")
        ),
    ],
)
def test_a_dilated_encoder_has_stride_8_and_takes_the_weights_of_the_undilated(
    architecture, encoder, first, tmp_path
):
    args = {"encoder_name": encoder, "encoder_depth": 5, **EACH[architecture]}
    source = made("Classifier", {"encoder_name": encoder, "in_channels": "rgb"}).network.encoder
    path = tmp_path / "undilated.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in source.state_dict().items()}, path)
    model = made(architecture, {**args, "encoder_output_stride": 8, "encoder_weights": str(path)})
    assert feature_strides(model) == [1, 2, 4, 8, 8, 8]
    stored, used = source.state_dict(), model.network.encoder.state_dict()
    assert torch.equal(used.pop(first), stored.pop(first)[:, :1])
    assert all(torch.equal(used[name], stored[name]) for name in stored)
    image = torch.randn(1, 1, 72, 200)  # multiples of 8, not of 32
    with torch.inference_mode():
        assert_fit(model(image), image, model)
    total(model.train()(torch.randn(2, 1, 64, 64))).backward()


def test_a_dilated_encoder_sees_farther_instead_of_striding():
    plain = made("Unet", {"encoder_name": "resnet18"})
    dilated = made("Unet", {"encoder_name": "resnet18", "encoder_output_stride": 16})
    assert feature_strides(plain) == [1, 2, 4, 8, 16, 32]
    assert feature_strides(dilated) == [1, 2, 4, 8, 16, 16]
    assert dilated.network.encoder.layer4[1].conv1.dilation == (2, 2)
    assert dilated.network.encoder.layer3[1].conv1.dilation == (1, 1)


def test_the_pyramid_of_a_dilated_fpn_meets_at_a_quarter_of_the_image():
    model = made("FPN", {"encoder_name": "resnet18", "encoder_output_stride": 8, **EACH["FPN"]}).eval()
    sizes = []
    model.network.decoder.merge.register_forward_pre_hook(
        lambda _, inputs: sizes.extend(tuple(level.shape[-2:]) for level in inputs[0])
    )
    with torch.inference_mode():
        model(torch.zeros(1, 1, 64, 96))
    assert sizes == [(16, 24)] * 4


def test_a_dilated_fpn_at_the_strides_of_smps_computes_what_smps_does():
    """At stride 16 only the coarsest level differs; with its features gone the rest is SMP's own."""
    torch.manual_seed(0)
    args = {"encoder_name": "resnet18", **EACH["FPN"]}
    plain, dilated = made("FPN", args).eval(), made("FPN", {**args, "encoder_output_stride": 16}).eval()
    load_weights(dilated, plain.state_dict(), "plain")
    seen = {}
    for name, model in (("plain", plain), ("dilated", dilated)):
        with torch.no_grad():
            model.network.decoder.p5.weight.zero_()
            model.network.decoder.p5.bias.zero_()
        model.network.decoder.merge.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0]})
        )
        with torch.inference_mode():
            model(torch.linspace(-1, 1, 64 * 96).reshape(1, 1, 64, 96))
    for level in (1, 2, 3):  # the next coarsest to the finest
        torch.testing.assert_close(seen["dilated"][level], seen["plain"][level])


@pytest.mark.parametrize("architecture", ["UnetPlusPlus", "MAnet", "Linknet", "DPT"])
def test_a_decoder_of_fixed_factors_says_which_take_a_dilated_encoder(architecture):
    with pytest.raises(ConfigError) as error:
        made(architecture, {"encoder_name": "resnet18", "encoder_output_stride": 8})
    message = str(error.value)
    assert "arch.args.encoder_output_stride: expected 32, received 8" in message
    assert "DeepLabV3, DeepLabV3Plus, FPN, PAN, PSPNet, Segformer, UPerNet, Unet" in message


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [
        ("FPN", "densenet121"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (("DeepLabV3", "densenet121"), ("FPN", "tu-vgg11"), ("FPN", "tu-hrnet_w18_small"))
        ),
    ],
)
def test_an_encoder_that_cannot_be_dilated_is_refused_by_the_key(architecture, encoder):
    said = f"arch.args.encoder_output_stride: {encoder} cannot be dilated to stride 8"
    with pytest.raises(ConfigError, match=said):
        made(architecture, {"encoder_name": encoder, "encoder_output_stride": 8})


def test_another_mistake_with_a_dilated_encoder_is_not_blamed_on_the_stride():
    with pytest.raises(ConfigError, match="Model depth is 5, but you provide `decoder_channels` for 2"):
        made("Unet", {"encoder_name": "resnet18", "encoder_output_stride": 8, "decoder_channels": [16, 8]})


# The head's size, and vision transformers


@pytest.mark.parametrize(("architecture", "depth"), [("FPN", 4), ("PSPNet", 5), ("PSPNet", 2), ("FPN", 3)])
def test_masks_have_the_size_of_the_image_at_every_encoder_depth(architecture, depth):
    args = {"encoder_name": "resnet18", "encoder_depth": depth, "in_channels": "rgb", **EACH[architecture]}
    model = made(architecture, args).eval()
    image = torch.zeros(1, 1, 40, 72)
    with torch.inference_mode():
        assert_fit(model(image), image, model)


@pytest.mark.parametrize(("architecture", "depth"), [("Unet", 5), ("PSPNet", 3)])
def test_an_encoder_that_needs_multiples_of_32_gets_them_from_any_decoder(architecture, depth):
    model = made(architecture, {"encoder_name": "tu-hrnet_w18_small", "encoder_depth": depth}).eval()
    image = torch.zeros(1, 1, 40, 72)
    with torch.inference_mode():
        assert_fit(model(image), image, model)


def test_an_upsampling_that_makes_masks_of_another_size_is_an_error():
    assert made("FPN", {"encoder_name": LIGHT, "upsampling": 4}).classes == 4
    with pytest.raises(ConfigError, match=r"arch\.args\.upsampling: expected 4, .* received 2"):
        made("FPN", {"encoder_name": LIGHT, "upsampling": 2})


@pytest.mark.parametrize(
    ("architecture", "args", "said"),
    [
        ("DPT", {"encoder_name": "resnet18"}, "must start with 'tu-'"),
        ("DPT", {"encoder_name": "tu-vit_tiny_patch16_22"}, "Did you mean 'tu-vit_tiny_patch16_224'"),
        ("DPT", {**TINY_VIT, "encoder_name": "tu-eva02_tiny_patch14_224"}, "encoder_name: DPT cannot take"),
        ("Unet", {"encoder_name": "tu-vit_tiny_patch16_224"}, "encoder_name: .* are for DPT"),
        ("Classifier", {"encoder_name": "tu-vit_tiny_patch16_224"}, "encoder_name: .* are for DPT"),
        ("FPN", {"encoder_name": LIGHT, "encoder_depth": 3}, "encoder_depth: expected 4 or 5, received 3"),
        ("UnetPlusPlus", {"encoder_name": "mit_b0"}, "UnetPlusPlus is not support encoder_name=mit_b0"),
    ],
)
def test_a_pair_that_cannot_be_built_is_named(architecture, args, said):
    with pytest.raises(ConfigError, match=said):
        made(architecture, args)


def test_a_vision_transformer_takes_its_weights_from_a_file_plane_by_plane(tmp_path):
    torch.manual_seed(0)
    source = DPT(**TINY_VIT, encoder_weights=None).network.encoder.model
    save_file({name: t.contiguous() for name, t in source.state_dict().items()}, tmp_path / "vit.safetensors")
    model = DPT(**TINY_VIT, encoder_weights=str(tmp_path / "vit.safetensors"), in_channels="g")
    kernel = model.network.encoder.model.patch_embed.proj.weight
    assert torch.equal(kernel, source.patch_embed.proj.weight[:, 1:2])


# Arguments from YAML


@pytest.mark.parametrize(
    ("architecture", "args", "said"),
    [
        ("Unet", {"encoder_output_stride": 12}, "arch.args.encoder_output_stride: expected 8, 16 or 32"),
        (
            "PAN",
            {"encoder_output_stride": 8},
            "arch.args.encoder_output_stride: expected 16 or 32, received 8",
        ),
        ("Unet", {"decoder_dropout": "much"}, "arch.args.decoder_dropout: expected a valid number"),
        ("FPN", {"decoder_dropout": "much"}, "arch.args.decoder_dropout: expected a valid number"),
        (
            "PSPNet",
            {"decoder_dropout": 0.1},
            "encoder_depth, psp_out_channels, decoder_use_norm, psp_dropout.",
        ),
        ("FPN", {"dropout": 0.1}, "Did you mean 'decoder_dropout'?"),
        ("Unet", {"aux_params": 3}, "arch.args.aux_params: expected"),
        ("Classifier", {"pooling": "mean"}, "arch.args.pooling: expected 'avg' or 'max', received 'mean'"),
        ("Unet", {"activation": "sigmoid"}, "does not take 'activation'"),
    ],
)
def test_a_wrong_argument_is_found_without_building_anything(architecture, args, said):
    (fault,) = check(MODELS, Section(type=architecture, args=args), "arch")
    assert said in fault


@pytest.mark.parametrize("architecture", EACH)
def test_the_arguments_of_every_architecture_pass_the_check(architecture):
    args = {"encoder_name": LIGHT, "encoder_weights": None, "in_channels": "r", **EACH[architecture]}
    assert check(MODELS, Section(type=architecture, args=args), "arch") == []


# Labels: a classifier, and a second head


def test_a_classifier_gives_a_logit_per_image_and_class_on_any_sheet():
    model = Classifier(
        LIGHT, encoder_weights=None, in_channels="r", classes=3, pooling="max", dropout=0
    ).eval()
    assert model.output_kinds == ("labels",)
    with torch.inference_mode():
        logits = model(torch.randn(2, 1, 50, 77))
    assert logits.shape == (2, 3)
    assert torch.equal(model.probabilities(logits), logits.sigmoid())


def test_what_labels_are_compared_with():
    masks = torch.zeros(2, 3, 4, 5)
    masks[0, 1, 3, 4] = 1  # a single pixel of the second class in the first image
    masks[1, 2] = 1
    expected = [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    classifier = Classifier(LIGHT, encoder_weights=None, classes=3)
    assert classifier.targets(masks).tolist() == expected
    assert classifier.targets(masks.to(torch.uint8)).dtype == torch.float32
    both = Unet(LIGHT, encoder_weights=None, classes=3, aux_params={}).targets(masks)
    assert both.labels.tolist() == expected
    assert both.masks is masks
    assert Unet(LIGHT, encoder_weights=None, classes=3).targets(masks) is masks


@pytest.mark.parametrize("architecture", ["FPN", "PSPNet", "DPT"])
def test_an_auxiliary_head_gives_masks_and_labels(architecture):
    args = {"encoder_name": LIGHT, **EACH[architecture], "aux_params": {}}
    model = made(architecture, args).eval()
    image = torch.randn(1, 1, 50, 77)
    with torch.inference_mode():
        outputs = model(image)
        probabilities = model.probabilities(outputs)
    assert isinstance(outputs, MasksAndLabels)
    assert_fit(outputs, image, model)
    assert torch.equal(probabilities.masks, outputs.masks.sigmoid())
    assert torch.equal(probabilities.labels, outputs.labels.sigmoid())
    in_decoder = {id(p) for p in model.parameter_groups()["decoder"]}
    assert all(id(p) in in_decoder for p in model.network.classification_head.parameters())


@pytest.mark.parametrize(
    ("aux_params", "said"),
    [
        ({"activation": "sigmoid"}, "unknown key 'activation'."),
        ({"poolng": "avg"}, "unknown key 'poolng'. Did you mean 'pooling'?"),
        ({"pooling": "mean"}, "aux_params.pooling: expected 'avg' or 'max', received 'mean'"),
        ({"dropout": 1.0}, "aux_params.dropout: expected less than 1, received 1.0"),
        ({"classes": 2}, "aux_params.classes: expected 4 as in arch.args.classes"),
        ({"classes": 0}, "aux_params.classes: expected greater than or equal to 1, received 0"),
    ],
)
def test_a_mistake_in_the_auxiliary_head_is_named(aux_params, said):
    with pytest.raises(ConfigError) as error:
        made("FPN", {"encoder_name": LIGHT, "aux_params": aux_params})
    assert "arch.args.aux_params" in str(error.value)
    assert said in str(error.value)


# One grey plane out of R, G or B

PLANES = [
    pytest.param("FPN", {"encoder_name": "efficientnet-b5"}, "_conv_stem", marks=pytest.mark.slow),
    pytest.param("FPN", {"encoder_name": "inceptionv4"}, "features.0.conv", marks=pytest.mark.slow),
    pytest.param("FPN", {"encoder_name": "se_resnext50_32x4d"}, "layer0.conv1", marks=pytest.mark.slow),
    pytest.param("FPN", {"encoder_name": "tu-res2net50_26w_4s"}, "model.conv1", marks=pytest.mark.slow),
    pytest.param("Unet", RESNET50_AT_8, "conv1", marks=pytest.mark.slow),
    pytest.param(
        "Classifier", {"encoder_name": "se_resnext50_32x4d"}, "layer0.conv1", marks=pytest.mark.slow
    ),
    ("Classifier", {"encoder_name": LIGHT}, "model.conv_stem"),
    ("FPN", {"encoder_name": LIGHT, "aux_params": {}, **EACH["FPN"]}, "model.conv_stem"),
]


@pytest.mark.parametrize(("architecture", "args", "first"), PLANES)
def test_the_first_kernel_is_exactly_the_chosen_plane_of_a_file(architecture, args, first, tmp_path):
    torch.manual_seed(0)
    name = args["encoder_name"]
    source = made("Classifier", {"encoder_name": name, "in_channels": "rgb"}).network.encoder.state_dict()
    assert source[f"{first}.weight"].shape[1] == 3
    path = tmp_path / "encoder.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in source.items()}, path)
    for plane, letter in enumerate("rgb"):
        model = made(architecture, {**args, "in_channels": letter, "encoder_weights": str(path)})
        used = model.network.encoder.state_dict()
        assert torch.equal(used[f"{first}.weight"], source[f"{first}.weight"][:, plane : plane + 1])
        others = [key for key in source if key != f"{first}.weight"]
        assert all(torch.equal(used[key], source[key]) for key in others)


@pytest.mark.parametrize(
    ("plane", "model_class", "args"),
    [
        ("r", Classifier, {}),
        ("g", FPN, {"aux_params": {}}),
        ("b", Unet, {"encoder_output_stride": 8}),
    ],
)
def test_the_real_kernel_is_taken_by_a_classifier_two_heads_and_a_dilated_encoder(
    plane, model_class, args, shared_data
):
    path = shared_data.parent / "weights" / "tf_efficientnet_lite0-imagenet.safetensors"
    index = "rgb".index(plane)
    kernel = load_file(path)["conv_stem.weight"][:, index : index + 1]
    model = model_class("tu-tf_efficientnet_lite0", encoder_weights=str(path), in_channels=plane, **args)
    assert torch.equal(model.network.encoder.state_dict()["model.conv_stem.weight"], kernel)
