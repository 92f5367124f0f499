"""Guided pruning: the pattern of one network's widths, and what becomes of it on another."""

import json
from pathlib import Path

import pytest

import pocketzoo as pz
from digit_tasks import check_proposal, task_of
from pocketzoo.errors import InvalidSetting
from pocketzoo.search.methods.guided import Guided
from pocketzoo.search.methods.magnitude import Magnitude
from pocketzoo.search.patterns import FILE, Pattern, pattern_of


def graph_of(name: str) -> pz.ChannelGraph:
    return pz.trace(pz.create_model(name, num_classes=10, in_channels=1, resolution=32), (1, 1, 32, 32))


def writers(graph: pz.ChannelGraph, group: str) -> int:
    """How many layers write a group's first channel."""
    channel = graph.channels_of(group)[0]
    return sum(channel in graph.channels_of(maker) for maker in graph.makers())


def test_a_pattern_is_the_mean_of_each_stage() -> None:
    # ResNet-20: three stages of three blocks; the stem's width is the first stage's. In the order of the groups the
    # tied widths stand at 0, 4 and 8 of 11, the inner ones between them.
    graph = graph_of("cifar_resnet20")
    shares = dict(zip(graph.groups, [0.5, 0.25, 0.5, 0.75, 0.25, 1, 1, 0.25, 0.75, 0.5, 0.5, 0.125], strict=True))
    widths = {group: round(share * graph.groups[group]) for group, share in shares.items()}
    tied = [group for group in graph.groups if writers(graph, group) > 1]
    inner = [group for group in graph.groups if group not in tied]
    depth = dict(zip(graph.groups, [i / 11 for i in range(12)], strict=True))
    pattern = pattern_of(graph, widths)
    assert pattern.points["stage"] == tuple((pytest.approx(depth[group]), shares[group]) for group in tied)
    thirds = [inner[i : i + 3] for i in (0, 3, 6)]
    assert pattern.points["inner"] == tuple(
        (pytest.approx(sum(depth[g] for g in own) / 3), pytest.approx(sum(shares[g] for g in own) / 3))
        for own in thirds
    )
    assert Pattern.from_json(pattern.to_json()) == pattern
    back = pattern.proportions(graph)  # on the same network: every stage its mean
    assert [back[group] for group in inner] == pytest.approx(
        [sum(shares[g] for g in own) / 3 for own in thirds for _ in own]
    )
    assert [back[group] for group in tied] == pytest.approx([shares[group] for group in tied])


def test_between_stages_it_is_interpolated_and_beyond_them_constant() -> None:
    graph = graph_of("lenet5")  # three groups of a stage each, at depths 0, 1/2 and 1; none is tied
    assert Pattern({"inner": ((0.25, 0.2), (0.75, 0.6))}).proportions(graph) == dict(
        zip(graph.groups, [pytest.approx(0.2), pytest.approx(0.4), pytest.approx(0.6)], strict=True)
    )
    only_tied = Pattern({"stage": ((0.0, 0.0), (1.0, 1.0))})  # what LeNet lacks; nothing falls below a channel
    narrowest = 1 / next(iter(graph.groups.values()))
    assert list(only_tied.proportions(graph).values()) == pytest.approx([narrowest, 0.5, 1.0])


def test_a_tapering_pattern_tapers_another_network(tmp_path: Path) -> None:
    (tmp_path / "taper.json").write_text(Pattern({"inner": ((0.0, 1.0), (1.0, 0.1))}).to_json())
    for name in ("cifar_resnet20", "mobilenet_v2_x0_35", "googlenet"):
        task = task_of(name)
        proposal = Guided(pattern=str(tmp_path / "taper.json")).propose(task)
        check_proposal(task, proposal)
        kept = [proposal.widths[group] / width for group, width in task.graph.groups.items()]
        assert sum(kept[:3]) > 2 * sum(kept[-3:])


def test_a_method_hands_its_pattern_to_another_network_by_a_folder(tmp_path: Path) -> None:
    source, target = task_of("cifar_resnet20"), task_of("mobilenet_v2_x0_35")
    found = Magnitude(sparsity=0.8).propose(source)
    (tmp_path / FILE).write_text(pattern_of(source.graph, found.widths).to_json())
    proposal = Guided(pattern=str(tmp_path)).propose(target)
    check_proposal(target, proposal)
    assert proposal.model is target.model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a pattern in JSON"),
        ("[1]", "not a pattern in JSON"),
        (json.dumps({"outer": [[0, 1]]}), "expected inner or stage"),
        (json.dumps({"inner": [[1.5, 1]]}), "depth from 0 to 1"),
        ('{"inner": [[0, NaN]]}', "proportion of the channels from 0"),
        ("{}", "expected inner or stage"),
    ],
)
def test_what_is_no_pattern_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(InvalidSetting, match=message):
        Guided(pattern=str(file))


def test_no_pattern_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="guided needs a pattern"):
        Guided()
    with pytest.raises(InvalidSetting, match="No such file"):
        Guided(pattern=str(tmp_path / "none.json"))
    with pytest.raises(InvalidSetting, match=r"pattern\.json: No such file"):
        Guided(pattern=str(tmp_path))
