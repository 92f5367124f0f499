"""The channel graph on networks that are not ours: each kind of code that people write."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import pocketzoo as pz
from properties import check_all, counted


def conv(c_in: int, c_out: int, kernel: int = 3, **options: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False, **options), nn.BatchNorm2d(c_out), nn.ReLU()
    )


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def test_sequential_with_flatten_before_the_classifier() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 11, 3, stride=2), nn.Flatten(), nn.Linear(11 * 49, 5)
    )
    graph = check_all(model, (1, 3, 17, 17))
    assert graph.groups == {"0": 7, "2": 11}
    assert graph.frozen == {"4": "output of the model"}
    # 7 maps of 15x15 from 3 channels, 5 maps of 7x7 from 7, and 5*49 inputs of the classifier; biases in params
    assert graph.price({"2": 5}).macs == 9 * 3 * 7 * 225 + 9 * 7 * 5 * 49 + 5 * 49 * 5
    assert graph.price({"2": 5}).params == 9 * 3 * 7 + 7 + 9 * 7 * 5 + 5 + 5 * 49 * 5 + 5


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = conv(3, 6), conv(6, 10), conv(10, 14)
        self.up2, self.up1 = nn.ConvTranspose2d(14, 9, 2, stride=2), nn.ConvTranspose2d(8, 5, 2, stride=2)
        self.merge2, self.merge1 = conv(9 + 10, 8), conv(5 + 6, 7)
        self.out = nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.merge2(torch.cat([self.up2(self.middle(F.max_pool2d(b, 2))), b], 1))
        result: Tensor = self.out(self.merge1(torch.cat([self.up1(c), a], 1)))
        return result


def test_unet_with_concatenated_skips() -> None:
    graph = check_all(UNet(), (1, 3, 16, 16))
    assert list(graph.groups.values()) == [6, 10, 14, 9, 8, 5, 7]


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.head = head(8 + 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        result: Tensor = self.head(x)
        return result


def test_dense_concatenation() -> None:
    graph = check_all(Dense(), (1, 3, 8, 8))
    assert graph.groups == {"stem": 8, "convs.0": 4, "convs.1": 4, "convs.2": 4}


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = conv(3, 9), conv(9, 9), head(9)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.block(self.block(self.stem(x))))
        return result


def test_shared_modules_tie_what_they_read_to_what_they_write() -> None:
    graph = check_all(Shared(), (1, 3, 6, 6))
    assert list(graph.groups.values()) == [9]
    assert graph.price().macs == 36 * 9 * (3 * 9 + 2 * 9 * 9) + 9 * 5  # the block runs twice, its parameters count once


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(10, 3, 3, 3))
        self.depth = nn.Parameter(torch.randn(10, 1, 3, 3))
        self.last = nn.Parameter(torch.randn(6, 10, 1, 1))
        self.head = head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.first, padding=1))
        x = F.conv2d(x, self.depth, padding=1, groups=x.shape[1])
        result: Tensor = self.head(F.conv2d(x, self.last))
        return result


def test_functional_convolutions() -> None:
    assert check_all(Functional(), (1, 3, 7, 7)).groups == {"first": 10, "last": 6}


class FunctionalLiteralGroups(Functional):
    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(F.relu(F.conv2d(x, self.first, padding=1)), self.depth, padding=1, groups=10)
        result: Tensor = self.head(F.conv2d(x, self.last))
        return result


def test_a_literal_group_number_freezes_its_channels() -> None:
    graph = check_all(FunctionalLiteralGroups(), (1, 3, 7, 7))
    assert list(graph.groups) == ["last"]
    assert "group number" in graph.frozen["first"]


class Shuffle(nn.Module):
    """Split in halves, transform one, concatenate, shuffle: written out by hand."""

    def __init__(self, reshapes: bool) -> None:
        super().__init__()
        self.reshapes = reshapes
        self.stem, self.head = conv(3, 16), head(16)
        self.inner = nn.ModuleList(conv(8, 6, 1) for _ in range(3))
        self.outer = nn.ModuleList(conv(6, 8, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            left, right = torch.split(x, x.shape[1] // 2, dim=1)
            x = torch.cat([left, outer(inner(right))], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2)
            x = x.reshape(n, c, h, w) if self.reshapes else x.contiguous().view(n, c, h, w)
        result: Tensor = self.head(x)
        return result


@pytest.mark.parametrize("reshapes", [False, True])
def test_split_and_channel_shuffle(reshapes: bool) -> None:
    graph = check_all(Shuffle(reshapes), (1, 3, 6, 6))
    assert {"inner.0.0", "inner.1.0", "inner.2.0"} < graph.groups.keys()
    assert graph.steps["stem.0"] == 4  # the last shuffle halves stem / 2 + outer.2
    with pytest.raises(pz.InvalidWidths, match="steps are"):
        graph.price({"stem.0": 7})


class WithLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.second = conv(3, 6), conv(6, 8)
        self.lstm, self.head = nn.LSTM(8, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.stem(x)).mean(2).transpose(1, 2)  # [N, W, C]
        out, _ = self.lstm(x)
        result: Tensor = self.head(out[:, -1])
        return result


def test_lstm_head_is_frozen_and_said_so() -> None:
    graph = check_all(WithLSTM(), (1, 3, 6, 6))
    assert "stem.0" in graph.groups
    assert "second.0" not in graph.groups
    assert "second.0" in graph.frozen
    assert any("lstm" in name for name in graph.frozen) or "lstm" in graph.frozen["second.0"]


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 4, stride=4), nn.LayerNorm(12)
        self.qkv, self.project = nn.Linear(12, 36), nn.Linear(12, 12)
        self.up, self.down, self.head = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        n, length, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, length, 3, 3, c // 3).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        x = x + self.project(y.transpose(1, 2).reshape(n, length, c))
        x = x + self.down(F.gelu(self.up(x)))
        result: Tensor = self.head(x.mean(1))
        return result


def test_transformer_block_is_frozen_and_said_so() -> None:
    graph = check_all(Transformer(), (1, 3, 16, 16))
    assert graph.groups == {"up": 20}  # what lies between two linear layers of the MLP is free
    assert "layer norm" in graph.frozen["stem"]
    assert "qkv" in graph.frozen


class Sliced(nn.Module):
    def __init__(self, derived: bool) -> None:
        super().__init__()
        self.derived = derived
        self.stem, self.left, self.right, self.head = conv(3, 16), conv(4, 6), conv(12, 6), head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        border = x.shape[1] // 4 if self.derived else 4
        result: Tensor = self.head(torch.cat([self.left(x[:, :border]), self.right(x[:, border:])], 1))
        return result


def test_a_derived_slice_follows_and_a_literal_one_is_frozen() -> None:
    derived = check_all(Sliced(derived=True), (1, 3, 6, 6))
    assert derived.groups["stem.0"] == 16
    assert derived.steps["stem.0"] == 4
    literal = check_all(Sliced(derived=False), (1, 3, 6, 6))
    assert "stem.0" not in literal.groups
    assert "would follow" in literal.frozen["stem.0"] or "arrive" in literal.frozen["stem.0"]


class AmbiguousView(nn.Module):
    """16 channels seen as 4 x 4: which 4 is a quarter of the channels only shows at other widths."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first, self.stem, self.read = first, conv(3, 16), conv(4, 6)
        self.head = head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        x = x.view(n, c // 4, 4, h, w).sum(2) if self.first else x.view(n, 4, c // 4, h, w).sum(1)
        result: Tensor = self.head(self.read(x))
        return result


@pytest.mark.parametrize("first", [False, True])
def test_a_view_with_an_ambiguous_factor_is_read_off_a_second_run(first: bool) -> None:
    graph = check_all(AmbiguousView(first), (1, 3, 6, 6))
    assert graph.steps["stem.0"] == 4


class Constant(nn.Module):
    def __init__(self, follows: bool) -> None:
        super().__init__()
        self.follows, self.stem, self.head = follows, conv(3, 8), head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        result: Tensor = self.head(x * torch.ones(1, x.shape[1] if self.follows else 8, 1, 1))
        return result


def test_a_constant_made_in_forward() -> None:
    assert "stem.0" in check_all(Constant(follows=True), (1, 3, 6, 6)).groups
    graph = check_all(Constant(follows=False), (1, 3, 6, 6))
    assert not graph.groups
    assert "stem.0" in graph.frozen


class Held(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.second, self.head = conv(3, 8), conv(8, 6), head(6)
        self.scale = torch.rand(1, 8, 1, 1)  # neither parameter nor buffer: cannot be resized

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.second(self.stem(x) * self.scale))
        return result


def test_a_tensor_held_outside_parameters_freezes_what_it_meets() -> None:
    graph = check_all(Held(), (1, 3, 6, 6))
    assert list(graph.groups) == ["second.0"]
    assert "fixed size" in graph.frozen["stem.0"]


class ReadsAValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8), head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.mean() > 0:
            x = x + 1
        result: Tensor = self.head(x)
        return result


def test_an_if_on_a_value_is_refused_with_file_and_line() -> None:
    with pytest.raises(pz.UntraceableModel, match=r"test_graph_foreign\.py:\d+"):
        pz.trace(ReadsAValue(), (1, 3, 6, 6))


class WeightNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = weight_norm(nn.Conv2d(3, 8, 3, padding=1))
        self.second = weight_norm(nn.Conv2d(8, 6, 3, padding=1))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), weight_norm(nn.Linear(6, 5)))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(F.relu(self.second(F.relu(self.first(x)))))
        return result


def test_weight_norm_parametrisation() -> None:
    graph = check_all(WeightNorm(), (1, 3, 6, 6))
    assert graph.groups == {"first": 8, "second": 6}


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.second, self.head = conv(3, 8), conv(8, 6), head(6)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.second(torch.renorm(self.stem(x), 2, 1, 1.0)))
        return result


def test_unknown_operators_are_reported_by_name_and_place() -> None:
    graph = pz.trace(Unknown(), (1, 3, 6, 6))
    (name,) = graph.unknown
    assert "renorm" in name
    assert "test_graph_foreign.py" in graph.unknown[name]
    assert "stem.0" not in graph.groups
    assert "renorm" in graph.frozen["stem.0"]
    assert graph.price().macs == counted(Unknown(), (1, 3, 6, 6))[1]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8), head(8)
        self.blocks = nn.ModuleList(nn.Sequential(conv(8, 5), nn.Conv2d(5, 8, 1), nn.BatchNorm2d(8)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        result: Tensor = self.head(x)
        return result


def test_width_zero_takes_a_residual_branch_out() -> None:
    from properties import randomise

    model = randomise(Residual())
    graph = check_all(model, (1, 3, 6, 6))
    assert graph.removable == {"blocks.0.0.0", "blocks.1.0.0"}
    price = graph.price({"blocks.0.0.0": 0})
    gone = graph.resize(model, {"blocks.0.0.0": 0}).eval()
    assert (price.params, price.macs) == counted(gone, (1, 3, 6, 6))
    assert not list(gone.blocks[0].parameters())  # type: ignore[union-attr, operator]
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        kept = F.relu(model.stem(x))  # type: ignore[operator]
        kept = F.relu(kept + model.blocks[1](kept))  # type: ignore[index, operator]
        torch.testing.assert_close(gone(x), model.head(kept))  # type: ignore[operator]
    with pytest.raises(pz.InvalidWidths, match="residual"):
        graph.price({"stem.0": 0})
    many = graph.price_many([[8, 0, 5], [8, 5, 0], [8, 0, 0], [8, 5, 5]])
    assert many.params[0] == many.params[1] == price.params
    assert many.params[3] - many.params[0] == many.params[0] - many.params[2]


def test_the_model_is_not_touched() -> None:
    model = Residual().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = len(torch.nn.modules.module._global_forward_hooks)
    graph = pz.trace(model, (1, 3, 6, 6))
    assert graph.groups
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert len(torch.nn.modules.module._global_forward_hooks) == hooks
    assert not any(m._forward_hooks for m in model.modules())


def test_wrong_widths_and_kept_channels_are_named() -> None:
    model = Residual().eval()
    graph = pz.trace(model, (1, 3, 6, 6))
    with pytest.raises(pz.InvalidWidths, match=r"did you mean stem\.0"):
        graph.price({"stem.1": 4})
    with pytest.raises(pz.InvalidWidths, match="output of the model"):
        graph.price({"head.2": 4})
    with pytest.raises(pz.InvalidWidths, match=r"distinct"):
        graph.resize(model, keep={"stem.0": [1, 1]})
    with pytest.raises(pz.InvalidWidths, match="has 8 channels"):
        graph.select({"stem.0": np.ones(3)}, {"stem.0": 4})
    with pytest.raises(pz.InvalidWidths, match="cannot make"):
        graph.select({}, {"stem.0": 9})


def test_larger_widths_keep_the_old_weights_and_draw_the_rest() -> None:
    model = Residual().eval()
    graph = pz.trace(model, (1, 3, 6, 6))
    wider = graph.resize(model, {"stem.0": 12})
    old, new = model.stem[0].weight, wider.stem[0].weight  # type: ignore[index, union-attr]
    assert new.shape == (12, 3, 3, 3)
    assert torch.equal(new[:8], old)
    assert new[8:].std() > 0


def test_a_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(pz.UntraceableModel, match=r"4 channels arrive"):
        pz.trace(Residual(), (1, 4, 6, 6))


class AuxiliaryHead(nn.Module):
    """A branch that runs in training only; with `too_small` it cannot run on a small image."""

    def __init__(self, too_small: bool) -> None:
        super().__init__()
        self.stem, self.second, self.head = conv(3, 8), conv(8, 6), head(6)
        self.pool = nn.AvgPool2d(9 if too_small else 2)
        self.auxiliary = nn.Sequential(nn.Conv2d(8, 7, 1), head(7))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x)
        logits: Tensor = self.head(self.second(x))
        return (logits, self.auxiliary(self.pool(x))) if self.training else logits


def test_branches_of_training_are_resized_and_counted_in_params_only() -> None:
    model = AuxiliaryHead(too_small=False)
    graph = check_all(model, (1, 3, 6, 6))
    assert graph.groups == {"stem.0": 8, "second.0": 6, "auxiliary.0": 7}
    without, with_ = graph.price({"auxiliary.0": 3}), graph.price()
    assert with_.macs == without.macs == 36 * 9 * (3 * 8 + 8 * 6) + 6 * 5
    assert with_.params - without.params == 4 * (8 + 1 + 5)  # weights read and written, and a bias, for each channel
    narrow = graph.resize(model, {"stem.0": 4, "auxiliary.0": 3}).train()
    assert [tuple(out.shape) for out in narrow(torch.randn(2, 3, 6, 6))] == [(2, 5), (2, 5)]


def test_a_training_pass_that_cannot_be_followed_freezes_what_it_may_read() -> None:
    graph = check_all(AuxiliaryHead(too_small=True), (1, 3, 6, 6))
    assert not graph.groups
    assert "training" in graph.frozen["stem.0"]


class GroupedBesideConstant(nn.Module):
    """A grouped convolution beside channels that cannot vary: no entry of one may stand in for one of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = conv(3, 8), conv(8, 12, 1)
        self.grouped, self.narrow, self.head = conv(12, 12, groups=3), conv(12, 4, 1), head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        kept, changed = x[:, :4], x[:, 4:]
        result: Tensor = self.head(torch.cat([kept, changed + self.narrow(self.grouped(self.branch(x)))], 1))
        return result


def test_entries_that_nothing_ties_stay_where_they_are() -> None:
    graph = check_all(GroupedBesideConstant(), (1, 3, 6, 6))
    assert graph.groups == {"branch.0": 12, "grouped.0": 12}


class TwoSums(nn.Module):
    """Two concatenations that a residual addition equates: one width falls as another rises."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(3, 4), conv(3, 8), conv(12, 6), conv(12, 6)
        self.head = head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x), self.b(x)], 1)
        result: Tensor = self.head(x + torch.cat([self.c(x), self.d(x)], 1))
        return result


def test_sums_of_widths_that_an_addition_equates() -> None:
    graph = check_all(TwoSums(), (1, 3, 6, 6))
    assert graph.groups == {"a.0": 4, "b.0": 8, "c.0": 6}
    with pytest.raises(pz.InvalidWidths, match=r"no set of channels fits"):
        graph.select({}, {"c.0": 3})  # d would need 9 of its 6
