"""The optimizer's groups, Lookahead and the schedules, against numbers worked by hand."""

import io
import itertools
import math

import pytest
import torch
from torch import nn

from sever.base import BaseModel
from sever.config.build import build, check
from sever.config.registry import OPTIMIZERS, SCHEDULERS
from sever.config.schema import Section
from sever.config.section_checks import group_faults
from sever.model.model import MnistModel, Unet
from sever.model.optimizer import RAdam, parameter_groups, with_lookahead
from sever.model.scheduler import FlatCosineLR, moves_to_plot, rates_at, with_warmup
from sever.utils.errors import ConfigError


def saved_and_loaded(state):
    """A state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ------------------------------------------------------------------------------- the optimizer's groups


@pytest.fixture(scope="module")
def unet():
    return Unet(
        encoder_name="tu-mobilenetv3_small_050",
        encoder_weights=None,
        in_channels="r",
        encoder_depth=3,
        decoder_channels=(16, 8, 4),
    )


SETTINGS = {"encoder": {"lr": 7e-5, "weight_decay": 3e-5}, "decoder": {"lr": 3e-3}}


def test_every_parameter_is_in_exactly_one_group(unet):
    groups = parameter_groups(unet, SETTINGS)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in unet.parameters()}


def test_the_encoder_has_its_own_rate_and_decoder_and_head_have_the_other(unet):
    encoder, decoder = parameter_groups(unet, SETTINGS)
    assert (encoder["name"], encoder["lr"], encoder["weight_decay"]) == ("encoder", 7e-5, 3e-5)
    assert (decoder["name"], decoder["lr"]) == ("decoder", 3e-3)
    parts = {name: {id(p) for p in part.parameters()} for name, part in unet.network.named_children()}
    assert {id(p) for p in encoder["params"]} == parts["encoder"]
    assert parts["segmentation_head"]
    assert parts["segmentation_head"] | parts["decoder"] == {id(p) for p in decoder["params"]}


def test_one_rate_for_all_needs_no_groups(unet):
    (group,) = parameter_groups(unet, {})
    assert len(group["params"]) == len(list(unet.parameters()))


class Pair(BaseModel):
    """Two parameters and the groups that a test gives it."""

    def __init__(self, groups):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        self.groups = groups

    def forward(self, images):
        return images * self.first * self.second

    def parameter_groups(self):
        return {name: [getattr(self, member) for member in names] for name, names in self.groups.items()}


def test_a_parameter_that_the_model_itself_never_trains_is_left_out():
    model = Pair({"encoder": ["first"], "decoder": ["second"]})
    model.first.requires_grad_(False)
    encoder, decoder = parameter_groups(model, SETTINGS)
    assert encoder["params"] == []
    assert [id(parameter) for parameter in decoder["params"]] == [id(model.second)]


@pytest.mark.parametrize(
    ("groups", "named"),
    [
        ({"encoder": ["first"], "decoder": []}, "second"),
        ({"encoder": ["first"], "decoder": ["first", "second"]}, "first"),
    ],
    ids=["forgotten", "twice"],
)
def test_a_model_that_forgets_or_repeats_a_parameter_is_refused(groups, named):
    with pytest.raises(ConfigError, match=f"Pair.parameter_groups.*{named}"):
        parameter_groups(Pair(groups), SETTINGS)


def test_groups_that_the_model_does_not_have_are_refused():
    with pytest.raises(ConfigError, match="encoder, decoder, but MnistModel has all"):
        parameter_groups(MnistModel(), SETTINGS)


def test_the_decay_of_radam_is_decoupled_by_default():
    assert OPTIMIZERS.find("RAdam", "optimizer") is RAdam
    weight = nn.Parameter(torch.ones(1))
    optimizer = RAdam([weight], lr=0.1, weight_decay=0.5)
    for _ in range(10):
        weight.grad = torch.zeros(1)
        optimizer.step()
    assert weight.item() == pytest.approx((1 - 0.1 * 0.5) ** 10)  # the decay alone, and no momentum of it


def test_without_decay_of_biases_and_norms_they_are_groups_of_their_own(unet):
    groups = parameter_groups(unet, SETTINGS, decay_biases_and_norms=False)
    names = ["encoder", "encoder_no_decay", "decoder", "decoder_no_decay"]
    assert [group["name"] for group in groups] == names
    assert [group["lr"] for group in groups] == [7e-5, 7e-5, 3e-3, 3e-3]
    assert [group.get("weight_decay") for group in groups] == [3e-5, 0, None, 0]
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in unet.parameters())
    by_name = dict(unet.named_parameters())
    for name, parameter in by_name.items():
        (group,) = [g["name"] for g in groups if any(p is parameter for p in g["params"])]
        # A convolution's weight has four axes, a norm's one.
        assert group.endswith("_no_decay") == (name.endswith("bias") or parameter.ndim == 1)


class Normed(BaseModel):
    """A norm whose parameters have three axes, and a bias with two."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm((2, 4, 4))
        self.linear = nn.Linear(4, 4)
        self.position_bias = nn.Parameter(torch.zeros(4, 4))

    def forward(self, images):
        return self.linear(self.norm(images)) + self.position_bias


def test_norms_and_biases_of_any_shape_do_not_decay():
    model = Normed()
    decayed, spared = parameter_groups(model, {}, decay_biases_and_norms=False)
    assert (decayed["name"], spared["name"], spared["weight_decay"]) == ("all", "all_no_decay", 0)
    assert [id(parameter) for parameter in decayed["params"]] == [id(model.linear.weight)]
    assert len(spared["params"]) == 4


def test_a_parameter_without_decay_stays_where_an_optimizer_would_shrink_it():
    model = Normed()
    optimizer = torch.optim.SGD(parameter_groups(model, {}, False), lr=0.5, weight_decay=0.5)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.75 if name == "linear.weight" else 1
        torch.testing.assert_close(parameter.data, before[name].data * factor)


def test_a_group_without_biases_and_norms_is_not_split():
    model = nn.Conv2d(1, 2, 3, bias=False)
    assert [group["name"] for group in parameter_groups(model, {}, False)] == ["all"]


@pytest.mark.parametrize(
    ("name", "settings", "args", "expected"),
    [
        ("AdamW", {"encoder": {"lr": 0.1}, "decoder": {"weight_decay": 0}}, {}, []),
        ("lamb", {"encoder": {"lr": 0.1, "trust_clip": True}}, {}, []),
        ("adafactor", {"encoder": {"lr": 0.1, "eps": 1e-3}, "decoder": {"lr": 0.2}}, {}, []),
        (
            "lamb",
            {"encoder": {"trust_clp": 1}},
            {},
            ["x: optimizer.encoder: unknown key 'trust_clp'. Did you"],
        ),
        (
            "lion",
            {"decoder": {"lr": -1}},
            {},
            ["x: optimizer.decoder.lr: expected a number of at least 0, rec"],
        ),
        (
            "lion",
            {"decoder": {"weight_decay": "a"}},
            {},
            ["x: optimizer.decoder.weight_decay: expected a number"],
        ),
        ("lion", {"decoder": {"lr": None}}, {}, ["x: optimizer.decoder.lr: expected a number"]),
        (
            "lion",
            {},
            {"lr": math.inf},
            ["x: optimizer.args.lr: expected a number of at least 0, received inf"],
        ),
        ("adafactor", {}, {}, ["x: optimizer.args: needs 'lr', a number"]),
        (
            "adafactor",
            {"encoder": {"lr": 1}, "decoder": {}},
            {},
            ["x: optimizer.decoder: needs 'lr', a number"],
        ),
        ("adafactor", {"encoder": {}, "decoder": {}}, {"lr": 0.1}, []),
    ],
)
def test_options_of_groups_are_checked_for_any_optimizer(name, settings, args, expected):
    found = group_faults(OPTIMIZERS.find(name, "x"), settings, "x: optimizer", args)
    assert len(found) == len(expected)
    assert all(fault.startswith(start) for fault, start in zip(found, expected, strict=True))


def test_an_optimizer_without_weight_decay_spares_nothing():
    rprop = OPTIMIZERS.find("Rprop", "x")
    assert group_faults(rprop, {}, "x: optimizer", {}) == []
    (fault,) = group_faults(rprop, {}, "x: optimizer", {}, decay_biases_and_norms=False)
    assert fault.startswith("x: optimizer.decay_biases_and_norms: this optimizer has no weight_decay")


# ----------------------------------------------------------------------------- optimizers by their names


def optimizer_of(name, params, **args):
    return build(OPTIMIZERS, Section(type=name, args=args), "x: optimizer", params=params)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "bnbadamw8bit",
            "'bnbadamw8bit' cannot be used: it needs the package bitsandbytes. Did you mean 'n?adamw",
        ),
        ("fusedlamb", "it needs the package apex. Did you mean 'c?lamb'"),
        ("adahessian", "it needs second derivatives."),
        ("kron", "it needs the package opt_einsum."),
        ("LBFGS", "it needs a closure."),
        ("Muon", "it takes matrices alone. Did you mean 'muon'"),
        ("adamww", r"'adamww' is not a known optimizer. Did you mean 'AdamW'\?"),
    ],
)
def test_an_optimizer_that_cannot_be_used_is_refused(name, reason):
    with pytest.raises(ConfigError, match=f"x: optimizer: .*{reason}"):
        OPTIMIZERS.find(name, "x: optimizer")


def test_timms_names_have_timms_settings():
    weights = [nn.Parameter(torch.ones(2, 2))]
    assert optimizer_of("sgd", weights).defaults["nesterov"]
    assert optimizer_of("sgd", weights).defaults["momentum"] == 0.9
    assert optimizer_of("sgd", weights, momentum=0.5).defaults["momentum"] == 0.5
    assert optimizer_of("lambc", weights).defaults["trust_clip"]
    assert not optimizer_of("SGD", weights).defaults["nesterov"]


def test_arguments_of_timms_optimizers_are_checked():
    with pytest.raises(ConfigError, match=r"lion does not take 'beta'\. Did you mean 'betas'"):
        optimizer_of("lion", [], beta=1)
    with pytest.raises(ConfigError, match=r"args\.weight_decay: expected a valid number, received 'x'"):
        optimizer_of("adamc", [], weight_decay="x")


class Small(BaseModel):
    """A convolution, a norm, and another convolution.

    The first has no bias: before a norm its gradient would be rounding alone.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.encoder, self.norm, self.head = (
            nn.Conv2d(1, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 1, 1),
        )

    def forward(self, images):
        return self.head(self.norm(self.encoder(images)).relu())

    def parameter_groups(self):
        rest = [*self.norm.parameters(), *self.head.parameters()]
        return {"encoder": list(self.encoder.parameters()), "decoder": rest}


def trained(name):
    """A small model, an optimizer of it with Lookahead, and a schedule."""
    model = Small()
    no_decay = name != "Rprop"  # it has no weight decay that biases could be spared
    groups = parameter_groups(model, {"encoder": {"lr": 0.01}, "decoder": {"lr": 0.02}}, not no_decay)
    optimizer = with_lookahead(optimizer_of(name, groups), k=3)
    return model, optimizer, FlatCosineLR(optimizer, 1, 10)


def train(model, optimizer, schedule, steps):
    images = torch.linspace(-1, 1, 2 * 8 * 8).reshape(2, 1, 8, 8)
    for _ in range(steps):
        optimizer.zero_grad()
        model(images).sub(images[:, :, 1:-1, 1:-1].sign()).square().mean().backward()
        optimizer.step()
        schedule.step()


def one_name_of_each_class():
    """All names; those of a class that an earlier one has too are for `make test-all`."""
    names, seen = [], set()
    for name in OPTIMIZERS.names():
        thing = OPTIMIZERS.find(name, "x")
        kind = getattr(thing, "func", thing)
        names.append(pytest.param(name, marks=[pytest.mark.slow] if kind in seen else []))
        seen.add(kind)
    return names


@pytest.mark.parametrize("name", one_name_of_each_class())
def test_every_optimizer_resumes_exactly_with_groups_lookahead_and_schedule(name):
    whole = trained(name)
    train(*whole, 4)
    states = saved_and_loaded([part.state_dict() for part in whole])
    train(*whole, 4)
    resumed = trained(name)
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    train(*resumed, 4)
    for first, weight, other in zip(
        Small().parameters(), whole[0].parameters(), resumed[0].parameters(), strict=True
    ):
        assert torch.equal(weight, other)
        assert torch.isfinite(weight).all()
        assert not torch.equal(weight, first)


# ------------------------------------------------------------------------------------------- Lookahead


def stepped(optimizer, weight, steps, gradient=1.0):
    values = []
    for _ in range(steps):
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        values.append(weight.item())
    return values


def test_lookahead_goes_half_way_every_second_step():
    weight = nn.Parameter(torch.ones(1))
    optimizer = with_lookahead(torch.optim.SGD([weight], lr=0.1), k=2, alpha=0.5)
    # 1 -> 0.9 -> 0.8, half way back to 1; 0.9 -> 0.8 -> 0.7, half way back to 0.9
    assert stepped(optimizer, weight, 5) == pytest.approx([0.9, 0.9, 0.8, 0.8, 0.7])


@pytest.mark.parametrize("name", ["SGD", "RAdam", "lamb"])
def test_lookahead_that_goes_all_the_way_is_the_optimizer_alone(name):
    weights = [nn.Parameter(torch.ones(1)) for _ in range(3)]
    alone, every, third = (optimizer_of(name, [weight], lr=0.1) for weight in weights)
    with_lookahead(every, k=1, alpha=1.0)
    with_lookahead(third, k=3, alpha=1.0)
    values = [stepped(o, w, 7) for o, w in zip((alone, every, third), weights, strict=True)]
    assert values[0] == values[1] == values[2]


def test_lookahead_resumes_in_the_middle_of_a_cycle():
    def make():
        weight = nn.Parameter(torch.ones(1))
        return weight, with_lookahead(torch.optim.SGD([weight], lr=0.1, momentum=0.9), k=3)

    weight, optimizer = make()
    before = stepped(optimizer, weight, 4)
    state = saved_and_loaded(optimizer.state_dict())
    after = stepped(optimizer, weight, 5)
    other, resumed = make()
    other.data.fill_(before[-1])
    resumed.load_state_dict(state)
    assert stepped(resumed, other, 5) == after


def test_a_weight_that_thaws_later_gets_slow_weights_from_then_on():
    early, late = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = with_lookahead(torch.optim.SGD([{"params": [early]}, {"params": [late]}], lr=0.1), k=2)
    stepped(optimizer, early, 2)
    assert late.item() == 1
    late.grad = torch.ones(1)
    stepped(optimizer, early, 1)
    assert late.item() == pytest.approx(0.9)
    stepped(optimizer, early, 1)
    assert late.item() == pytest.approx(0.9)  # 0.8, half way back to 1


def test_a_step_without_gradients_is_none():
    weight = nn.Parameter(torch.ones(1))
    optimizer = with_lookahead(torch.optim.SGD([weight], lr=0.1), k=2)
    optimizer.step()
    assert stepped(optimizer, weight, 3) == pytest.approx([0.9, 0.9, 0.8])


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_overflowed_is_none(fused):
    weight = nn.Parameter(torch.ones(1))
    optimizer = with_lookahead(torch.optim.SGD([weight], lr=0.1, fused=fused), k=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    values = []
    for factor in (1.0, math.inf, 1.0, 1.0):
        optimizer.zero_grad()
        scaler.scale((weight * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        values.append(weight.item())
    assert values == pytest.approx([0.9, 0.9, 0.9, 0.8])


# ------------------------------------------------------------------------------------------- schedules


def two_rates():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.01)]
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9)


def schedule_of(node, optimizer, **ready):
    return build(SCHEDULERS, Section.model_validate(node), "x: lr_scheduler", optimizer=optimizer, **ready)


def rates(optimizer, schedule, steps):
    """The rates of the next steps, of the first group; the second's are 1 % of them."""
    first = []
    for _ in range(steps):
        one, other = (group["lr"] for group in optimizer.param_groups)
        assert other == pytest.approx(one / 100)
        first.append(one)
        optimizer.step()
        if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            schedule.step(1.0)
        else:
            schedule.step()
    return first


def test_the_rate_is_flat_for_30_epochs_and_falls_by_half_a_cosine_over_220():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (7e-5, 3e-3)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    schedule = FlatCosineLR(optimizer)
    factors = []
    for _ in range(301):
        factors.append(schedule.get_last_lr()[1] / 3e-3)
        assert schedule.get_last_lr()[0] == pytest.approx(7e-5 * factors[-1])
        optimizer.step()
        schedule.step()
    quarter = math.sqrt(1 / 2) / 2  # cos 45° / 2
    by_hand = {0: 1, 29: 1, 30: 1, 85: 0.5 + quarter, 140: 0.5, 195: 0.5 - quarter, 250: 0, 251: 0, 300: 0}
    assert {epoch: factors[epoch] for epoch in by_hand} == pytest.approx(by_hand, abs=1e-12)
    assert factors[31] < 1
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors))


@pytest.mark.parametrize("args", [{"flat_epochs": -1}, {"anneal_epochs": 0}])
def test_a_schedule_without_epochs_is_refused(args):
    ((name, value),) = args.items()
    (fault,) = check(SCHEDULERS, Section(type="FlatCosineLR", args=args), "x")
    assert fault.startswith(f"x.args.{name}: expected greater than or equal to")
    assert fault.endswith(f"received {value}")


def test_flat_then_cosine_by_step_has_the_factor_of_the_part_of_an_epoch():
    optimizer = two_rates()
    node = {"type": "FlatCosineLR", "args": {"flat_epochs": 1, "anneal_epochs": 2}}
    factors = rates(optimizer, schedule_of(node, optimizer, steps_per_epoch=4), 15)
    quarter = math.sqrt(1 / 2) / 2
    by_hand = {0: 1, 3: 1, 4: 1, 6: 0.5 + quarter, 8: 0.5, 10: 0.5 - quarter, 12: 0, 14: 0}
    assert {step: factors[step] for step in by_hand} == pytest.approx(by_hand, abs=1e-12)
    assert 0 < factors[11] < factors[10]


def test_the_steps_of_an_epoch_are_the_programs_to_say():
    node = {"type": "FlatCosineLR", "args": {"steps_per_epoch": 4}}
    (fault,) = check(SCHEDULERS, Section.model_validate(node), "x")
    assert "'steps_per_epoch' of FlatCosineLR is set by the program" in fault


def warmed(node, optimizer, length=4, start_factor=0.2):
    return with_warmup(schedule_of(node, optimizer), length, start_factor)


STEPS = {"type": "StepLR", "args": {"step_size": 2, "gamma": 0.1}}


@pytest.mark.parametrize(
    ("node", "course"),
    [
        (STEPS, [1, 1, 0.1, 0.1, 0.01, 0.01]),
        (
            {"type": "FlatCosineLR", "args": {"flat_epochs": 3, "anneal_epochs": 2}},
            [1, 1, 1, 1, 0.5, 0],
        ),
        (
            {
                "type": "ChainedScheduler",
                "args": {"schedulers": [STEPS, {"type": "ExponentialLR", "args": {"gamma": 0.5}}]},
            },
            [1, 0.5, 0.025, 0.0125, 0.000625, 0.0003125],
        ),
        (
            {
                "type": "SequentialLR",
                "args": {
                    "schedulers": [{"type": "ConstantLR", "args": {"factor": 0.5, "total_iters": 9}}, STEPS],
                    "milestones": [1],
                },
            },
            [0.5, 1, 1, 0.1, 0.1, 0.01],
        ),
    ],
    ids=["step", "flat cosine", "chained", "sequential"],
)
def test_a_warm_up_lowers_the_first_rates_and_leaves_the_course_where_it_is(node, course):
    optimizer = two_rates()
    factors = (0.2, 0.4, 0.6, 0.8, 1, 1)
    expected = [rate * factor for rate, factor in zip(course, factors, strict=True)]
    assert rates(optimizer, warmed(node, optimizer), 6) == pytest.approx(expected)


def test_a_warm_up_may_start_at_0():
    optimizer = two_rates()
    assert rates(optimizer, warmed(STEPS, optimizer, 2, 0.0), 4) == pytest.approx([0, 0.5, 0.1, 0.1])


def test_the_last_rates_of_a_warmed_up_schedule_are_those_of_the_optimizer():
    optimizer = two_rates()
    schedule = warmed(STEPS, optimizer)
    for _ in range(9):
        assert schedule.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    "node",
    [
        {"type": "ReduceLROnPlateau"},
        {"type": "OneCycleLR", "args": {"max_lr": 1.0, "total_steps": 20}},
        {"type": "CyclicLR", "args": {"base_lr": 0.1, "max_lr": 1.0}},
    ],
    ids=lambda node: node["type"],
)
def test_a_schedule_that_sets_rates_by_itself_is_not_warmed_up(node):
    with pytest.raises(ValueError, match=f"a {node['type']} sets rates by itself; remove the warm-up"):
        warmed(node, two_rates())
    with pytest.raises(ConfigError, match=f"{node['type']} cannot be one after another with others"):
        schedule_of(
            {"type": "SequentialLR", "args": {"schedulers": [STEPS, node], "milestones": [3]}}, two_rates()
        )


LINEAR = {"type": "LinearLR", "args": {"start_factor": 0.5, "total_iters": 4}}
CONSTANT = {"type": "ConstantLR", "args": {"factor": 0.5, "total_iters": 3}}


def test_schedules_one_after_another_each_begin_at_their_milestone():
    node = {"type": "SequentialLR", "args": {"schedulers": [LINEAR, STEPS, CONSTANT], "milestones": [2, 6]}}
    optimizer = two_rates()
    by_hand = [0.5, 0.625, 1, 1, 0.1, 0.1, 0.5, 0.5, 0.5, 1]
    assert rates(optimizer, schedule_of(node, optimizer), 10) == pytest.approx(by_hand)


def test_chained_schedules_are_multiplied():
    node = {"type": "ChainedScheduler", "args": {"schedulers": [CONSTANT, STEPS]}}
    optimizer = two_rates()
    assert rates(optimizer, schedule_of(node, optimizer), 6) == pytest.approx(
        [0.5, 0.5, 0.05, 0.1, 0.01, 0.01]
    )


CHAIN = {"type": "ChainedScheduler", "args": {"schedulers": [CONSTANT, STEPS]}}


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (
            {"type": "SequentialLR", "args": {"schedulers": [STEPS, CHAIN], "milestones": [3]}},
            "ChainedScheduler cannot be one",
        ),
        (
            {"type": "ChainedScheduler", "args": {"schedulers": [CHAIN, STEPS]}},
            "ChainedScheduler cannot be multiplied",
        ),
        (
            {"type": "ChainedScheduler", "args": {"schedulers": [STEPS, "FlatCosineLR"]}},
            "FlatCosineLR cannot be multiplied",
        ),
        (
            {"type": "ChainedScheduler", "args": {"schedulers": []}},
            r"expected a list of schedules, received \[\]",
        ),
        ({"type": "ChainedScheduler", "args": {"schedulers": STEPS}}, "expected a list of schedules"),
        (
            {"type": "SequentialLR", "args": {"schedulers": {"a": STEPS}, "milestones": []}},
            "expected a list of schedules",
        ),
        (
            {"type": "SequentialLR", "args": {"schedulers": [STEPS, CONSTANT], "milestones": [0]}},
            r"above 0 and to rise, received \[0\]",
        ),
        (
            {"type": "SequentialLR", "args": {"schedulers": [STEPS] * 3, "milestones": [4, 2]}},
            r"received \[4, 2\]",
        ),
        (
            {"type": "SequentialLR", "args": {"schedulers": [STEPS] * 3, "milestones": [4]}},
            "(?i)number of milestone",
        ),
        (
            {"type": "SequentialLR", "args": {"schedulers": [STEPS, "StpLR"], "milestones": [4]}},
            r"schedulers.1: 'StpLR' is not a known lr_scheduler. Did you mean 'StepLR'\?",
        ),
        (
            {"type": "SequentialLR", "args": {"schedulers": [{"type": "StepLR"}], "milestones": []}},
            "schedulers.0.args: StepLR needs 'step_size'",
        ),
        (
            {"type": "LambdaLR", "args": {"lr_lambda": "x"}},
            "'LambdaLR' cannot be used: it needs a function, which YAML cannot write",
        ),
        ({"type": "MultiplicativeLR"}, "'MultiplicativeLR' cannot be used: it needs a function"),
        (
            {"type": "StepLr", "args": {"step_size": 2}},
            r"'StepLr' is not a known lr_scheduler. Did you mean 'StepLR'\?",
        ),
    ],
)
def test_schedules_that_cannot_be_are_mistakes_of_the_config(node, reason):
    with pytest.raises(ConfigError, match=f"^x: lr_scheduler.*{reason}" if "(?i)" not in reason else reason):
        schedule_of(node, two_rates())


EVERY = {
    "ChainedScheduler": {"schedulers": [CONSTANT, STEPS]},
    "ConstantLR": {"total_iters": 4},
    "CosineAnnealingLR": {"T_max": 8, "eta_min": 0.0},
    "CosineAnnealingWarmRestarts": {"T_0": 3, "T_mult": 2},
    "CyclicLR": {"base_lr": [0.1, 0.001], "max_lr": [1.0, 0.01], "step_size_up": 3},
    "ExponentialLR": {"gamma": 0.9},
    "FlatCosineLR": {"flat_epochs": 2, "anneal_epochs": 6},
    "LinearLR": {"total_iters": 6},
    "MultiStepLR": {"milestones": [2, 4, 7]},
    "OneCycleLR": {"max_lr": [1.0, 0.01], "epochs": 10},
    "PolynomialLR": {"total_iters": 9, "power": 2.0},
    "ReduceLROnPlateau": {"patience": 2},
    "SequentialLR": {"schedulers": [LINEAR, STEPS], "milestones": [3]},
    "StepLR": {"step_size": 3},
}
WARMED = sorted(set(EVERY) - {"CyclicLR", "OneCycleLR", "ReduceLROnPlateau"})


def test_every_schedule_is_tried_here():
    assert sorted(EVERY) == SCHEDULERS.names()


@pytest.mark.parametrize(("name", "warm"), [(n, False) for n in EVERY] + [(n, True) for n in WARMED])
@pytest.mark.parametrize("at", [1, 4, 6])
def test_every_schedule_goes_on_exactly_from_a_saved_state(name, warm, at):
    def make():
        optimizer, node = two_rates(), {"type": name, "args": EVERY[name]}
        if warm:
            return optimizer, warmed(node, optimizer)
        return optimizer, schedule_of(node, optimizer, steps_per_epoch=1)

    whole = make()
    before = rates(*whole, at)
    states = saved_and_loaded([part.state_dict() for part in whole])
    after = rates(*whole, 10 - at)
    resumed = make()
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    assert rates(*resumed, 10 - at) == after
    assert len({*before, *after}) > 1


@pytest.mark.parametrize(("name", "warm"), [(n, False) for n in EVERY] + [(n, True) for n in WARMED])
def test_the_rates_for_a_plan_are_those_that_stepping_gives(name, warm):
    if name == "ReduceLROnPlateau":  # follows validations, and is not drawn
        return

    def make():
        optimizer, node = two_rates(), {"type": name, "args": EVERY[name]}
        if warm:
            return optimizer, warmed(node, optimizer)
        return optimizer, schedule_of(node, optimizer, steps_per_epoch=3)

    stepped_rates = rates(*make(), 30)
    points = [0, 1, 2, 3, 5, 6, 8, 11, 17, 29]
    found = rates_at(make()[1], points)
    assert [one for one, _ in found] == pytest.approx([stepped_rates[at] for at in points], abs=1e-12)
    assert [other for _, other in found] == pytest.approx([one / 100 for one, _ in found])


class Halving(torch.optim.lr_scheduler.LRScheduler):
    """A schedule of the user's own, whose rate depends on the one before."""

    def get_lr(self):
        return [group["lr"] * (1 if self.last_epoch == 0 else 0.5) for group in self.optimizer.param_groups]


def test_a_schedule_without_a_formula_is_stepped_as_far_as_that_is_quick(monkeypatch):
    points = [0, 1, 4, 9]
    assert [one for one, _ in rates_at(Halving(two_rates()), points)] == [1, 0.5, 0.5**4, 0.5**9]
    monkeypatch.setattr("sever.model.scheduler._MOST_STEPS", 5)
    assert moves_to_plot(Halving(two_rates()), 3) == 3
    assert moves_to_plot(Halving(two_rates()), 9) == 5
    assert moves_to_plot(FlatCosineLR(two_rates()), 9) == 9


def test_a_one_cycle_knows_the_steps_of_an_epoch():
    optimizer = two_rates()
    node = {"type": "OneCycleLR", "args": {"max_lr": [1.0, 0.01], "epochs": 3, "pct_start": 0.25}}
    cycle = rates(optimizer, schedule_of(node, optimizer, steps_per_epoch=4), 12)
    assert cycle[2] == max(cycle) == pytest.approx(1)
    assert cycle[-1] == pytest.approx(1 / 25 / 1e4)
