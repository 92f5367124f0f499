"""Integers, folding, distillation: grids that are exact, roundings with the right mean, gradients that go through."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import pocketzoo as pz
from pocketzoo.compress.compression import Compression
from pocketzoo.compress.export import export_integers
from pocketzoo.compress.passes.distil import Distil
from pocketzoo.compress.passes.fixed import Fixed, integer_bits, to_fixed
from pocketzoo.compress.passes.fold import Fold, foldable
from pocketzoo.compress.passes.prune import Prune
from pocketzoo.compress.passes.qat import NOTE, QAT, Quantiser, fake_quantised, scales_of
from pocketzoo.compress.recipes import passes
from pocketzoo.compress.tied import Codebook
from pocketzoo.errors import InvalidSetting
from pocketzoo.packing.forms import INTEGERS, Scaled, encode
from pocketzoo.packing.packed import pack_model, unpack_model
from pocketzoo.profiler.export import run_onnx
from pocketzoo.training.recipe import Recipe

from digit_tasks import digits  # isort: skip

SIDE = 32


class Residual(nn.Module):
    """Conv, batch norm, ReLU, then a branch that is added to it, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.branch(x)).relu().mean((2, 3)))


def unsettled(model: nn.Module) -> nn.Module:
    """With statistics and gains that a wrong fold would not survive."""
    torch.manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for values, low, high in ((norm.running_mean, -1, 1), (norm.running_var, 0.5, 2), (norm.weight, 0.5, 2),
                                      (norm.bias, -1, 1)):  # fmt: skip
                nn.init.uniform_(values, low, high)
    return model.eval()


def state_of(model: nn.Module, shape: tuple[int, ...] = (1, 1, SIDE, SIDE), **fields: object) -> Compression:
    torch.manual_seed(0)
    return Compression(model.eval(), shape, Recipe(epochs=1, batch_size=16), **fields)  # type: ignore[arg-type]


def residual(**fields: object) -> Compression:
    torch.manual_seed(0)
    return state_of(unsettled(Residual()), data=digits(), **fields)


# -- folding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mobilenet_v2", "cifar_resnet20", "shufflenet_v2_x0_5"])
def test_folding_leaves_no_batch_norm_and_the_same_outputs(name: str) -> None:
    model = unsettled(pz.create_model(name, num_classes=10, in_channels=1, resolution=SIDE))
    folded = Fold().apply(state_of(model)).model
    images = torch.randn(3, 1, SIDE, SIDE)
    expected = model(images)
    assert (folded(images) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())  # the one that was given


def test_a_folded_linear_layer() -> None:
    model = unsettled(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.Tanh()))
    state = Fold().apply(state_of(model, (1, 3, 2, 2)))
    images = torch.randn(4, 3, 2, 2)
    assert torch.allclose(state.model(images), model(images), atol=1e-6)
    assert [edit["replace"] for edit in state.edits] == ["1", "2"]


def test_a_layer_that_others_read_keeps_its_batch_norm() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.twice = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x = x + self.norm(x)  # the sum reads it too
            return self.twice(self.twice(x)).flatten(1)

    assert foldable(unsettled(Shared()), (1, 3, 2, 2)) == {}
    own = nn.BatchNorm2d(4, track_running_stats=False)  # statistics of the batch at hand
    assert foldable(nn.Sequential(nn.Conv2d(3, 4, 1), own).eval(), (2, 3, 2, 2)) == {}
    assert foldable(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)).eval(), (1, 3, 2, 2)) == {}
    reflecting = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")  # no edit can say so
    assert foldable(nn.Sequential(reflecting, nn.BatchNorm2d(4)).eval(), (1, 3, 4, 4)) == {}


def test_a_folded_model_is_packed_and_unpacked_into_the_one_before() -> None:
    state = Fold().apply(residual())
    packed = pack_model(state.model, edits=state.edits).data
    again = unpack_model(packed, into=Residual()).model
    images = torch.randn(2, 1, SIDE, SIDE)
    assert torch.equal(again(images), state.model(images))


def test_pruned_weights_stay_pruned_and_tied_ones_are_not_tied_any_more() -> None:
    pruned = Prune(0.5).apply(residual())
    weight = pruned.model.get_parameter("branch.0.weight")
    levels, assigned = weight.detach().unique(return_inverse=True)
    state = Fold().apply(pruned.changed(codebooks={"branch.0.weight": Codebook(levels, assigned)}))
    assert state.masks.keys() == pruned.masks.keys()
    assert not state.model.get_parameter("branch.0.weight")[~state.masks["branch.0.weight"]].any()
    assert state.codebooks == {}


# -- fixed point ------------------------------------------------------------------------------------------------------


def test_nearest_rounding_and_saturation() -> None:
    """Gupta et al. 2015, section 3: <3, 2> has steps of 1/4 from -4 to 3.75; halves of a step go up."""
    values = torch.tensor([0.0, 0.1, 0.125, 0.3, -0.1, -0.125, -0.126, 3.8, 9.0, -4.0, -7.0])
    expected = torch.tensor([0.0, 0.0, 0.25, 0.25, 0.0, 0.0, -0.25, 3.75, 3.75, -4.0, -4.0])
    assert torch.equal(to_fixed(values, 3, 2), expected)


def test_stochastic_rounding_has_the_value_as_its_mean() -> None:
    """x = 0.3 in steps of 1/4 is 0.25 with probability 0.8 and 0.5 with 0.2."""
    n, generator = 40_000, torch.Generator().manual_seed(0)
    for value in (0.3, -0.3, 0.0625):
        rounded = to_fixed(torch.full((n,), value), 3, 2, generator)
        below = np.floor(value * 4) / 4
        up = (value - below) / 0.25
        assert set(rounded.tolist()) <= {below, below + 0.25}
        assert abs(float(rounded.double().mean()) - value) < 4 * 0.25 * np.sqrt(up * (1 - up) / n)  # four deviations
    on_grid = torch.tensor([0.25, -1.5])
    assert torch.equal(to_fixed(on_grid, 3, 2, generator), on_grid)


@pytest.mark.parametrize(("largest", "bits"), [(0.9, 1), (1.0, 1), (1.1, 2), (3.9, 3), (0.24, -1), (0.0, 1)])
def test_the_fewest_integer_bits_that_reach_a_magnitude(largest: float, bits: int) -> None:
    """2^(il - 1) >= largest > 2^(il - 2)."""
    assert integer_bits(largest) == bits


def test_dynamic_fixed_point_gives_each_tensor_its_own_radix() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.11, -0.2, 0.05, 0.01], [0.1, 0.2, 0.124, -0.12]]))
        model[2].weight.copy_(torch.tensor([[5.0, -3.3], [0.7, 1.2]]))
    state = Fixed(bits=8).apply(state_of(model, (1, 1, 2, 2)))
    # 0.2 <= 2^-2: il = -1, 9 fractional bits; 5 <= 2^3: il = 4, 4 fractional bits
    for name, fl, before in (("1.weight", 9, model[1].weight), ("2.weight", 4, model[2].weight)):
        weight = state.model.get_parameter(name)
        steps = weight * 2**fl
        assert torch.equal(steps, steps.round())
        assert (weight - before).abs().max() <= 2.0**-fl / 2
        hint = state.hints[name]
        assert isinstance(hint, Scaled)
        assert hint.scales.tolist() == [2.0**-fl]


def test_the_packed_file_holds_the_integers() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 300))
    state = Fixed(bits=12, il=2).apply(state_of(model, (1, 1, 8, 8)))
    weight = state.model.get_parameter("1.weight")
    stored = encode(weight, state.hints["1.weight"])
    assert len(stored) < weight.numel() * 12 / 8
    again = unpack_model(pack_model(state.model, hints=state.hints).data, into=model).model
    assert torch.equal(again.get_parameter("1.weight"), weight)


def test_training_stays_on_the_grid_and_within_the_masks() -> None:
    pruned = Prune(0.5).apply(residual())
    state = Fixed(bits=8, il=2, rounding="stochastic", epochs=1, lr=0.05).apply(pruned)
    for name, mask in pruned.masks.items():
        steps = state.model.get_parameter(name) * 2**6
        assert torch.equal(steps, steps.round())
        assert steps.abs().max() <= 128
        assert not steps[~mask].any()
    moved = state.model.get_parameter("head.weight") != to_fixed(pruned.model.get_parameter("head.weight"), 2, 6)
    assert moved.any()


def test_tied_weights_stay_tied_when_they_are_rounded() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 4))
    assigned = torch.randint(-1, 3, (4, 8), generator=torch.Generator().manual_seed(0))
    book = Codebook(torch.tensor([0.3, -0.7, 0.11]), assigned)
    model[1].weight.data.copy_(book.weight())
    state = state_of(model, (1, 1, 2, 4)).changed(codebooks={"1.weight": book})
    rounded = Fixed(bits=4, il=1, rounding="stochastic").apply(state)
    assert torch.equal(rounded.model.get_parameter("1.weight"), rounded.codebooks["1.weight"].weight())
    with pytest.raises(InvalidSetting, match="tied weights"):
        Fixed(epochs=1).apply(state)


# -- quantisation-aware training --------------------------------------------------------------------------------------


def test_a_quantiser_has_zero_on_its_grid_and_follows_slowly() -> None:
    """0 to 2 in 255 steps; then 1 % of the way to 0 to 4."""
    quantiser = Quantiser().train()
    quantiser(torch.tensor([1.0, 2.0]))
    assert (float(quantiser.low), float(quantiser.high), int(quantiser.zero_point)) == (0.0, 2.0, 0)
    quantiser(torch.tensor([0.5, 4.0]))
    assert float(quantiser.high) == pytest.approx(0.99 * 2 + 0.01 * 4)
    quantiser.take(torch.tensor(-1.0), torch.tensor(3.0))
    assert float(quantiser.eval()(torch.zeros(1))) == 0.0
    assert float(quantiser(torch.tensor([9.0]))) == pytest.approx((255 - 64) * 4 / 255)  # the end of the range
    x = torch.tensor([0.3, 9.0], requires_grad=True)
    quantiser(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 0.0]  # straight through, and nothing beyond the range


def test_weights_end_on_the_grids_and_the_file_holds_bytes() -> None:
    pruned = Prune(0.3).apply(residual())
    state = QAT(epochs=1, lr=0.01).apply(pruned)
    for name in ("stem.0.weight", "branch.0.weight", "head.weight"):
        weight, hint = state.model.get_parameter(name).detach(), state.hints[name]
        assert isinstance(hint, Scaled)
        whole = (weight.flatten(1) / torch.from_numpy(hint.scales)[:, None]).round()
        assert torch.equal(whole * torch.from_numpy(hint.scales)[:, None], weight.flatten(1))
        assert (whole.abs().amax(1) == 127).all()
        assert not weight[~pruned.masks[name]].any()
        assert torch.equal(scales_of(weight).round(decimals=6), torch.from_numpy(hint.scales).round(decimals=6))
    assert not torch.equal(state.model.get_parameter("head.weight"), pruned.model.get_parameter("head.weight"))
    assert type(state.model.get_submodule("stem.0")) is nn.Conv2d
    stored = encode(state.model.get_parameter("branch.0.weight"), state.hints["branch.0.weight"])
    assert stored[0] == INTEGERS or len(stored) < 6 * 6 * 9 * 1.2


def test_what_qat_has_trained_is_unpacked_to_the_bit() -> None:
    state = QAT(epochs=0).apply(residual())
    again = unpack_model(pack_model(state.model, edits=state.edits, hints=state.hints).data, into=Residual()).model
    for name, tensor in state.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert list(again.state_dict()) == list(state.model.state_dict())


def test_what_is_added_is_quantised_too() -> None:
    ranges = QAT(epochs=0).apply(residual()).notes[NOTE]
    assert list(zip(ranges["layer"], ranges["place"], strict=True)) == [
        ("stem.0", "input"), ("branch.0", "input"), ("branch.0", "output"), ("head", "input"),
    ]  # fmt: skip


def test_the_onnx_file_computes_what_the_fake_quantised_network_computes(tmp_path: Path) -> None:
    """Within a step: the classifier's, which are those of its input times its weights' largest, 127 of its steps."""
    state = QAT(epochs=1, lr=0.01).apply(residual())
    export_integers(state, tmp_path / "whole.onnx")
    images = state.the_data("test").info.normalise(digits().val.images)
    network = fake_quantised(state)
    with torch.no_grad():
        expected = network(images)
        plain = state.model(images)
    actual = torch.from_numpy(run_onnx(tmp_path / "whole.onnx", images))
    step = float(state.notes[NOTE].iloc[-1]["scale"]) * state.model.get_parameter("head.weight").abs().max()
    assert (actual - expected).abs().max() <= step
    assert (plain - expected).abs().max() > 1e-3  # that there is something to quantise
    proto = onnx.load(tmp_path / "whole.onnx")
    stored = {i.name: i.data_type for i in proto.graph.initializer}
    kinds = [stored[node.input[0]] for node in proto.graph.node
             if node.op_type == "DequantizeLinear" and node.input[0] in stored]  # fmt: skip
    assert kinds == [onnx.TensorProto.INT8] * 3
    assert sum(i.data_type == onnx.TensorProto.FLOAT and len(i.dims) > 1 for i in proto.graph.initializer) == 0


def test_what_qat_refuses() -> None:
    before = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 30 * 30, 10))
    with pytest.raises(InvalidSetting, match="1 batch norms stay, such as 0"):
        QAT().apply(state_of(before, data=digits()))
    with pytest.raises(InvalidSetting, match="qat needs data"):
        QAT().apply(state_of(Residual()))
    with pytest.raises(InvalidSetting, match="put qat in the recipe"):
        fake_quantised(residual())
    state = QAT(epochs=0).apply(residual())
    with pytest.raises(InvalidSetting, match="is no longer as qat left it"):
        fake_quantised(Fixed(bits=5).apply(state))


# -- distillation -----------------------------------------------------------------------------------------------------


class Recorded(nn.Module):
    """A teacher that counts its batches."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.net, self.batches = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, classes)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.batches += 1
        return self.net(x)


def test_a_student_comes_to_what_its_teacher_says() -> None:
    """With all the loss the teacher's, labels do not matter: the outputs move towards the teacher's."""
    torch.manual_seed(3)
    teacher, student = Recorded(), nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 10))
    state = state_of(student, data=digits(), teacher=teacher)
    taught = Distil(epochs=8, weight=1.0, temperature=2.0, lr=0.02).apply(state)
    images = digits().info.normalise(digits().val.images)
    with torch.no_grad():
        apart = [float((net(images) - teacher(images)).std()) for net in (student, taught.model)]
    assert apart[1] < 0.8 * apart[0]
    assert (taught.recipe.distill_weight, taught.recipe.temperature) == (1.0, 2.0)


def test_later_passes_learn_from_the_same_teacher() -> None:
    teacher = Recorded()
    state = Distil(epochs=0).apply(residual(teacher=teacher))
    before = teacher.batches
    Prune(0.5, epochs=1).apply(state)
    assert teacher.batches == before + 64 // 16


def test_a_teacher_from_a_run(tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, batch_size=16)
    pz.train("lenet5", digits(), tmp_path / "big", recipe)
    taught = Distil(1, teacher=str(tmp_path / "big")).apply(residual())
    assert type(taught.teacher).__name__ == "LeNet5"


def test_teachers_that_cannot_teach() -> None:
    with pytest.raises(InvalidSetting, match="nobody to learn from"):
        Distil().apply(residual())
    with pytest.raises(InvalidSetting, match=r"expected \[1, 10\]"):
        Distil().apply(residual(teacher=Recorded(7)))
    with pytest.raises(InvalidSetting, match="does not take images"):
        Distil().apply(residual(teacher=nn.Sequential(nn.Flatten(), nn.Linear(5, 10))))
    with pytest.raises(InvalidSetting, match="distil needs data"):
        Distil().apply(state_of(Residual(), teacher=Recorded()))


def test_recipes_know_the_passes() -> None:
    steps = passes("fold | prune(0.5) | fixed(8, il=2, rounding=stochastic) | huffman")
    assert steps[2] == Fixed(8, 2, "stochastic")
    with pytest.raises(InvalidSetting, match="fold after prune"):
        passes("prune(0.5) | fold")
    for wrong in (lambda: Fixed(bits=1), lambda: Fixed(rounding="up"), lambda: QAT(epochs=-1), lambda: Distil(-1)):
        with pytest.raises(InvalidSetting):
            wrong()
