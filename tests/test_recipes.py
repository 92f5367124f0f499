"""Recipes: text, lists and YAML say the same; wrong orders and settings are refused with the reason."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from pocketzoo.compress.compression import Compression
from pocketzoo.compress.passes.kmeans import KMeans
from pocketzoo.compress.passes.prune import Prune
from pocketzoo.compress.recipes import passes, summaries, text_of
from pocketzoo.compress.run import compress_model
from pocketzoo.errors import InvalidSetting

TEXT = "prune(0.8, schedule=iterative, rounds=3) | kmeans(bits=4) | huffman"


def test_text_list_and_yaml_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("- prune: {sparsity: 0.8, schedule: iterative, rounds: 3}\n- kmeans(bits=4)\n- huffman\n")
    made = passes(TEXT)
    assert made[:2] == [Prune(0.8, "iterative", rounds=3), KMeans(4)]
    assert passes(file) == passes(str(file)) == passes(made) == made
    assert passes(text_of(made)) == made
    assert "sparsity=0.8" in text_of(made)


def test_mappings_survive_the_text() -> None:
    made = passes("prune({'conv1': 0.3, 'hidden': 0.9})")
    assert passes(text_of(made)) == made == [Prune({"conv1": 0.3, "hidden": 0.9})]


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("huffman | prune", "put prune before huffman"),
        ("kmeans | prune(0.5)", "sharing or rounding has to see what is left"),
        ("prune | svd", "what was pruned or quantised in them would be lost"),
        ("huffman | huffman", "once"),
        ("purne(0.5)", "did you mean prune"),
        ("prune(sparsty=0.5)", "did you mean sparsity"),
        ("prune(0.5, sparsity=0.6)", "given twice"),
        ("prune(2)", "share"),
        ("kmeans(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)", "takes"),
        ("prune(0.5", "is no pass"),
        ("__import__('os')", "__import__"),
        ("", "is no pass"),
    ],
)
def test_wrong_recipes(recipe: str, reason: str) -> None:
    with pytest.raises(InvalidSetting, match=reason):
        passes(recipe)


@pytest.mark.parametrize("text", ["prune: 0.5", "- 3", "- prune: [0.5]", "- {prune: {}, kmeans: {}}", "[", ""])
def test_wrong_yaml(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yml").write_text(text)
    with pytest.raises(InvalidSetting):
        passes(tmp_path / "recipe.yml")


def test_every_pass_says_what_it_does_and_runs_with_its_defaults() -> None:
    for name, summary, settings in summaries():
        assert summary.endswith((".", ":")) or len(summary) > 20, name
        assert text_of(passes(name)) == name
        assert isinstance(settings, dict)


@dataclass(frozen=True)
class Negate:
    """A user's own pass."""

    by: float = -1.0

    def apply(self, compression: Compression) -> Compression:
        model = compression.copied()
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(self.by)
        return compression.changed(model=model)


def test_a_users_own_pass_stands_anywhere() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    packed = compress_model(model, [Prune(0.5), Negate(-2.0), *passes("huffman")], input_shape=(1, 3, 2, 2))
    assert list(packed.steps["pass"]) == ["as it was", "prune", "Negate", "huffman"]
    kept = packed.model()[1].weight
    stays = kept != 0
    assert int(stays.sum()) == 24
    assert torch.equal(kept[stays], -2 * model[1].weight[stays])
    assert packed.recipe == "prune(sparsity=0.5) | Negate(by=-2.0) | huffman"
