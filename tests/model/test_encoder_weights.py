"""Models from pretrained planes, for sheets of any size, and back from their checkpoints."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sever.base import BaseModel
from sever.model.encoder_weights import load_from_file
from sever.model.model import FPN, Classifier, MnistModel, Unet, pad_to_multiple
from sever.utils.errors import ConfigError, DeviceError

LIGHT = {"encoder_name": "tu-mobilenetv3_small_050", "encoder_depth": 3, "decoder_channels": (16, 8, 4)}
STEM = "model.conv_stem.weight"


@pytest.fixture
def encoder_file(tmp_path):
    """Random weights of a light encoder in a file, named as timm names them."""
    torch.manual_seed(0)
    model = Unet(**LIGHT, encoder_weights=None)
    tensors = {
        key.removeprefix("model."): tensor.contiguous().clone()
        for key, tensor in model.network.encoder.state_dict().items()
    }
    save_file(tensors, tmp_path / "light.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "light.pth")
    return tmp_path / "light.safetensors"


@pytest.mark.parametrize("error", [MemoryError(), DeviceError("There is too little memory.")])
def test_a_lack_of_memory_is_no_fault_of_the_file(error, tmp_path, monkeypatch):
    def failing(path):
        raise error

    (tmp_path / "w.pth").write_bytes(b"x")
    monkeypatch.setattr("sever.model.encoder_weights.read_tensors", failing)
    with pytest.raises(type(error)):
        load_from_file(torch.nn.Conv2d(1, 1, 1), tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("planes", "channels"), [("r", [0]), ("g", [1]), ("b", [2]), ("rgb", [0, 1, 2]), ("br", [2, 0])]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_first_convolution_takes_exactly_the_named_planes(planes, channels, suffix, encoder_file):
    stored = load_file(encoder_file)["conv_stem.weight"]
    model = Unet(**LIGHT, encoder_weights=str(encoder_file.with_suffix(suffix)), in_channels=planes)
    weights = model.network.encoder.state_dict()
    assert torch.equal(weights[STEM], stored[:, channels])
    assert torch.equal(weights["model.bn1.weight"], load_file(encoder_file)["bn1.weight"])


@pytest.mark.parametrize("plane", ["r", "g", "b"])
def test_the_real_imagenet_kernel_is_taken_plane_by_plane(plane, shared_data):
    path = shared_data.parent / "weights" / "tf_efficientnet_lite0-imagenet.safetensors"
    stored = load_file(path)["conv_stem.weight"]
    model = FPN("tu-tf_efficientnet_lite0", encoder_weights=str(path), in_channels=plane, classes=4)
    index = "rgb".index(plane)
    assert torch.equal(model.network.encoder.state_dict()[STEM], stored[:, index : index + 1])
    with torch.inference_mode():
        assert model(torch.zeros(1, 1, 40, 70)).shape == (1, 4, 40, 70)


@pytest.mark.parametrize("name", ["resnet18", "mobileone_s0", "efficientnet-b0", "densenet121"])
def test_smps_own_encoders_take_one_plane_too(name):
    model = Unet(encoder_name=name, encoder_weights=None, in_channels="g", classes=2).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 1, 32, 64)).shape == (1, 2, 32, 64)


def test_one_channel_by_number_is_the_sum_of_the_planes(encoder_file):
    stored = load_file(encoder_file)["conv_stem.weight"]
    model = Unet(**LIGHT, encoder_weights=str(encoder_file), in_channels=1)
    assert torch.equal(model.network.encoder.state_dict()[STEM], stored.sum(dim=1, keepdim=True))


def test_rgb_planes_see_the_grey_sheet_three_times():
    torch.manual_seed(0)
    model = Unet(**LIGHT, encoder_weights=None, in_channels="rgb", classes=2).eval()
    grey = torch.randn(1, 1, 16, 24)
    with torch.inference_mode():
        assert torch.equal(model(grey), model.network(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda tensors: tensors["bn1.running_var"].fill_(torch.inf), "not finite: model.bn1.running_var"),
        (lambda tensors: tensors.update({"bn1.bias": torch.zeros(16).int()}), "received torch.int32"),
    ],
)
def test_a_weight_that_is_not_finite_or_no_weight_is_named(suffix, spoil, words, encoder_file):
    tensors = load_file(encoder_file)
    spoil(tensors)
    save_file(tensors, encoder_file)
    torch.save(tensors, encoder_file.with_suffix(".pth"))
    with pytest.raises(ConfigError, match=words):
        Unet(**LIGHT, encoder_weights=str(encoder_file.with_suffix(suffix)))


def test_a_weight_that_is_missing_or_of_another_shape_is_named(encoder_file):
    tensors = load_file(encoder_file)
    del tensors["bn1.weight"]
    tensors["conv_stem.weight"] = tensors["conv_stem.weight"][:8].clone()
    save_file(tensors, encoder_file)
    with pytest.raises(ConfigError) as error:
        Unet(**LIGHT, encoder_weights=str(encoder_file), in_channels="r")
    message = str(error.value)
    assert "missing: model.bn1.weight" in message
    assert "model.conv_stem.weight: expected shape (16, 3, 3, 3), received (8, 3, 3, 3)" in message
    assert str(encoder_file) in message


@pytest.mark.parametrize("content", [b"", b"no weights"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_without_weights_is_refused(content, suffix, tmp_path):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"broken{suffix}"):
        Unet(**LIGHT, encoder_weights=str(path))


@pytest.mark.parametrize("name", ["resnet18", "tu-mobilenetv3_small_050"])
def test_without_a_network_imagenet_weights_are_an_error_that_names_the_path_option(
    name, monkeypatch, tmp_path
):
    def unreachable(*_, **__):
        raise FileNotFoundError("cannot find the requested files in the local cache")

    # Up to the request: the hub's own function is what fails.
    import segmentation_models_pytorch.encoders as smp_encoders
    import timm.models._hub as timm_hub

    monkeypatch.setattr(smp_encoders, "hf_hub_download", unreachable)
    monkeypatch.setattr(timm_hub, "hf_hub_download", unreachable)
    with pytest.raises(ConfigError) as error:
        Unet(encoder_name=name, encoder_weights="imagenet")
    assert "could not be downloaded" in str(error.value)
    assert "-s arch.args.encoder_weights=" in str(error.value)


@pytest.mark.parametrize("size", [(64, 64), (50, 70), (3, 5), (1, 1), (200, 200)])
def test_padding_reaches_the_next_multiple_and_keeps_the_image_inside(size):
    images = torch.rand(1, 1, *size)
    padded, top, left = pad_to_multiple(images, 32)
    assert padded.shape[2] % 32 == padded.shape[3] % 32 == 0
    assert 0 <= padded.shape[2] - size[0] < 32
    assert torch.equal(padded[..., top : top + size[0], left : left + size[1]], images)


def test_padding_reflects():
    padded, top, left = pad_to_multiple(torch.arange(6.0).reshape(1, 1, 2, 3), 4)
    assert (top, left) == (1, 0)
    assert padded[0, 0].tolist() == [[3, 4, 5, 4], [0, 1, 2, 1], [3, 4, 5, 4], [0, 1, 2, 1]]


def test_every_parameter_is_in_the_encoder_or_the_decoder_group():
    model = FPN("resnet18", encoder_weights=None, in_channels="r")
    groups = model.parameter_groups()
    named = dict(model.named_parameters())
    assert sorted(map(id, groups["encoder"] + groups["decoder"])) == sorted(map(id, named.values()))
    in_encoder = {id(p) for p in groups["encoder"]}
    heads = [p for name, p in named.items() if "segmentation_head" in name]
    assert heads
    assert not [p for p in heads if id(p) in in_encoder]


def test_printing_a_model_tells_its_trainable_parameters():
    # 10·25+10, 20·10·25+20, 320·50+50, 50·10+10
    assert "Trainable parameters: 21,840" in str(MnistModel())


def test_lenet_gives_log_probabilities():
    model = MnistModel().eval()
    logits = model(torch.randn(2, 1, 28, 28))
    assert model.probabilities(logits).sum(dim=1).tolist() == pytest.approx([1, 1])


def test_padding_reaches_a_least_size():
    padded, top, left = pad_to_multiple(torch.ones(1, 1, 10, 70), 16, least=64)
    assert padded.shape == (1, 1, 64, 80)
    assert (top, left) == (27, 5)
    assert torch.equal(padded, torch.ones(1, 1, 64, 80))


class WithEncoder(BaseModel):
    """A user's own model: an encoder, of which one weight never learns, and a head."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5))
        self.features[0].bias.requires_grad_(False)
        self.head = nn.Sequential(nn.Conv2d(2, 1, 1), nn.BatchNorm2d(1))

    def forward(self, images):
        return self.head(self.features(images))

    def parameter_groups(self):
        return {"encoder": list(self.features.parameters()), "decoder": list(self.head.parameters())}


def own_model():
    model = WithEncoder()
    return model, model.features[1], model.head[1]


def unet():
    model = Unet("resnet18", encoder_weights=None, in_channels="r", decoder_channels=(16, 8, 8, 8, 8))
    return model, model.network.encoder.bn1, model.network.decoder.blocks[0].conv1[1]


def classifier():
    model = Classifier("resnet18", encoder_weights=None, in_channels="r")
    return model, model.network.encoder.bn1, None


@pytest.mark.parametrize("make", [own_model, unet, classifier])
def test_a_frozen_encoder_neither_learns_nor_moves_its_statistics_until_it_is_thawed(make):
    model, in_encoder, in_decoder = make()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    everything = sum(p.numel() for p in model.parameters())
    model.freeze_encoder()
    model.eval()
    model.train()
    before = {name: buffer.clone() for name, buffer in in_encoder.named_buffers()}
    model(torch.randn(4, 1, 32, 32)).square().sum().backward()
    groups = model.parameter_groups()
    assert sum(p.numel() for group in groups.values() for p in group) == everything
    assert all(p.grad is None and not p.requires_grad for p in groups["encoder"])
    assert all(p.grad is not None for p in groups["decoder"])
    assert all(torch.equal(buffer, before[name]) for name, buffer in in_encoder.named_buffers())
    if in_decoder is not None:
        assert in_decoder.training
        assert in_decoder.num_batches_tracked == 1

    copied = copy.deepcopy(model).train()
    assert not any(p.requires_grad for p in copied.parameter_groups()["encoder"])
    model.freeze_encoder()  # twice is as once
    model.freeze_encoder(False)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    model(torch.randn(4, 1, 32, 32)).square().sum().backward()
    assert in_encoder.num_batches_tracked == before["num_batches_tracked"] + 1


def test_freezing_in_evaluation_does_not_start_training():
    model, _, _ = unet()
    model.eval()
    model.freeze_encoder()
    model.freeze_encoder(False)
    assert not any(module.training for module in model.modules())


def test_a_model_without_an_encoder_has_none_to_freeze():
    with pytest.raises(ValueError, match="has 'encoder'; received MnistModel with all"):
        MnistModel().freeze_encoder()


def test_the_targets_of_digits_stay_as_they_are():
    digits = torch.tensor([3, 1])
    assert MnistModel().targets(digits) is digits
