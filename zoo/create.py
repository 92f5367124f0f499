"""From a name to a network, with fresh or pretrained weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import WeightsMismatch
from .architecture import Architecture

HUB = "hf_hub:"
OURS = "pocketzoo"
SHOWN = 3  # keys that an error lists before it only counts


def create_model(name: str | Architecture, *, weights: str | None = None, **settings: Any) -> nn.Module:
    """The network of a zoo name, `module:factory` or Architecture, with settings on top.

    `weights` is the path of a safetensors file of our own, or `hf_hub:org/repo` for a repository of the Hugging Face
    Hub with a `model.safetensors` (read as timm's where the organisation is timm, as ours otherwise).
    Raises UnknownModel, InvalidSetting, WeightsMismatch.
    """
    arch = name.with_settings(**settings) if isinstance(name, Architecture) else Architecture.of(name, **settings)
    model = arch.build()
    return model if weights is None else load_weights(model, *_read(weights))


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: str = "torchvision") -> nn.Module:
    """Copy a state dict into the model and return it; `source` says whose names it has.

    Sources are "torchvision", "timm" (where the family knows them) and "pocketzoo" for our own names. 1x1 convolution
    weights fit linear layers and the other way round. WeightsMismatch lists what is missing, left over or of
    another shape; the model is then as it was.
    """
    own = model.state_dict()
    names = _names(model, source)
    # Batch counters only matter to a momentum of None, and some files lack them.
    names = {key: name for key, name in names.items() if name in state_dict or not key.endswith("num_batches_tracked")}
    if problems := _key_problems(names, state_dict):
        raise WeightsMismatch(f"{source} weights do not fit {type(model).__name__}: {problems}")
    loaded = {key: _as_shape_of(own[key], state_dict[name]) for key, name in names.items()}
    if wrong := {key: tensor for key, tensor in loaded.items() if tensor.shape != own[key].shape}:
        raise WeightsMismatch(f"{source} weights do not fit {type(model).__name__}: {_shape_problems(wrong, own)}")
    model.load_state_dict(loaded, strict=False)
    return model


def _names(model: nn.Module, source: str) -> dict[str, str]:
    """{our key: the source's key} for every key of ours."""
    if source == OURS:
        return {key: key for key in model.state_dict()}
    known: Mapping[str, Callable[[nn.Module], dict[str, str]]] = getattr(model, "checkpoints", {})
    if source not in known:
        raise WeightsMismatch(f"{type(model).__name__} knows weights of {[OURS, *known]}, not of {source!r}")
    return known[source](model)


def _key_problems(names: Mapping[str, str], state_dict: Mapping[str, Tensor]) -> str:
    missing = [name for name in names.values() if name not in state_dict]
    used = set(names.values())
    unexpected = [key for key in state_dict if key not in used and not key.endswith("num_batches_tracked")]
    lists = {"missing": missing, "unexpected": unexpected}
    return "; ".join(f"{len(keys)} {word} keys ({_few(keys)})" for word, keys in lists.items() if keys)


def _shape_problems(wrong: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    head = list(own)[-1].rpartition(".")[0]
    outputs = {(len(tensor), len(own[key])) for key, tensor in wrong.items() if tensor.shape[1:] == own[key].shape[1:]}
    if len(outputs) == 1 and all(key.rpartition(".")[0] == head for key in wrong):
        theirs, ours = outputs.pop()
        return f"they tell {theirs} classes apart and the model {ours}; build it with num_classes={theirs}"
    shapes = [f"{key} is {list(tensor.shape)}, expected {list(own[key].shape)}" for key, tensor in wrong.items()]
    return f"{len(wrong)} shapes differ ({_few(shapes)}); build the model with the settings that the weights have"


def _few(words: list[str]) -> str:
    return ", ".join(words[:SHOWN]) + (", ..." if len(words) > SHOWN else "")


def _as_shape_of(own: Tensor, tensor: Tensor) -> Tensor:
    """The tensor without or with 1-sized trailing sides, where only those differ."""
    longer, shorter = sorted((tuple(tensor.shape), tuple(own.shape)), key=len, reverse=True)
    padded = shorter + (1,) * (len(longer) - len(shorter))
    return tensor.reshape(own.shape) if longer == padded else tensor


def _read(weights: str) -> tuple[dict[str, Tensor], str]:
    """The state dict of a file or hub repository, and its source."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    repository = weights.removeprefix(HUB) if weights.startswith(HUB) else None
    path = Path(weights) if repository is None else _download(repository)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsMismatch(
            f"weights {weights!r} cannot be read as safetensors ({error}); expected a file or {HUB}org/repo"
        ) from None
    return tensors, "timm" if repository and repository.startswith("timm/") else OURS


def _download(repository: str) -> Path:
    """The repository's `model.safetensors`, from the local cache where it is there."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(huggingface_hub.hf_hub_download(repository, "model.safetensors"))
    except (OSError, ValueError, EntryNotFoundError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise WeightsMismatch(
            f"model.safetensors of {repository!r} cannot be fetched from the Hugging Face Hub ({reason});"
            f" check the name org/repo and the network, or pass the path of a downloaded file"
        ) from None
