"""Where checkpoints come in: from a path or a hub name to a flat dict of tensors, and strictly into a module.

Pickles are only read with `weights_only=True`: a checkpoint that holds code is refused, never run.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from riverrun.models.base import BadRequest, Unavailable

Sizes = TypeVar("Sizes")

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *PICKLES)
WRAPPERS = ("generator", "generator_ema", "model", "model_state", "state_dict")
"""Keys under which training scripts put the weights proper, the preferred one first."""
ADAPTER_WRAPPERS = ("generator_lora", *WRAPPERS)
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "module.", "_orig_mod.")
"""What wrapper modules put before every key."""
INFIXES = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What sharding and recomputation put anywhere into a key."""
_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<inside>.+))?")


def locate(source: str | Path) -> Path:
    """The local file or folder behind a path, or a hub name `org/name` or `org/name:file or folder`.

    A path that exists wins. Hub files come from the local cache where it has them. Raises BadRequest for what is
    neither, Unavailable when the hub can't be reached and the cache doesn't hold it.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    name = _HUB_NAME.fullmatch(str(source))
    if name is None or (name["inside"] is None and path.suffix in SUFFIXES):
        raise BadRequest(f"no such file or folder: {source} (a hub name is org/name or org/name:file)")
    return _fetch(name["repo"], name["inside"] or "")


def _fetch(repo: str, inside: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    is_file = inside.endswith((*SUFFIXES, ".json", ".model"))
    folder = f"{inside.rstrip('/')}/" if inside and not is_file else ""
    kinds = ("*.safetensors", "*.json", "*.model", "merges.txt")  # the last: of tokenizers without a tokenizer.json
    wanted = [inside] if is_file else [f"{folder}{kind}" for kind in kinds]
    try:
        path = Path(snapshot_download(repo, allow_patterns=wanted)) / inside
    except LocalEntryNotFoundError as error:
        raise Unavailable(f"{repo} isn't in the local hub cache and the hub can't be reached; give a path") from error
    except (EntryNotFoundError, HfHubHTTPError) as error:
        raise BadRequest(f"the hub refused {repo}: {str(error).splitlines()[0]}") from error
    if not path.exists():
        raise BadRequest(f"{repo} on the hub, or what the local cache has of it, holds no {inside}")
    return path


def weight_files(path: Path) -> list[Path]:
    """The files that make up one checkpoint: a file is itself; of a folder the index's shards or the only candidate.

    Raises BadRequest where a folder holds none or several.
    """
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise BadRequest(f"{path.name}: weights end in {', '.join(SUFFIXES)}")
        return [path]
    indices = sorted(path.glob("*.safetensors.index.json"))
    if len(indices) == 1:
        return _shards(indices[0])
    for suffix in SUFFIXES:
        found = sorted(path.glob(f"*{suffix}"))
        if len(found) == 1:
            return found
        if found:
            raise BadRequest(f"{path} holds {len(found)} {suffix} files, name one: {shortened(f.name for f in found)}")
    raise BadRequest(f"{path} holds no weights ({', '.join(SUFFIXES)})")


def _shards(index: Path) -> list[Path]:
    shards = [index.parent / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise BadRequest(f"{index.name} names {len(absent)} files that aren't there: {shortened(absent)}")
    return shards


def read(source: str | Path, *, wrappers: tuple[str, ...] = WRAPPERS, device: str = "cpu") -> dict[str, Tensor]:
    """A checkpoint's tensors by their own names, taken out of wrappers and freed of prefixes.

    source: as for `locate`. device: "meta" reads shapes and dtypes only, where the format allows it.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(locate(source)):
        part = _read_safetensors(file, device) if file.suffix == ".safetensors" else read_pickle(file, device)
        tensors.update(unwrap(part, wrappers))
    return tensors


def _read_safetensors(file: Path, device: str) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            if device != "meta":
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return {name: _on_meta(opened.get_slice(name)) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise BadRequest(f"{file.name} is no whole safetensors file: {error}") from error


def _on_meta(part: Any) -> Tensor:
    name = part.get_dtype()
    if name not in _DTYPES:
        raise BadRequest(f"a tensor is of dtype {name}; there are {', '.join(_DTYPES)}")
    return torch.empty(part.get_shape(), dtype=_DTYPES[name], device="meta")


def read_pickle(file: Path, device: str = "cpu") -> Any:
    """What a .pt or .pth file holds. Raises BadRequest if that is more than tensors and plain containers."""
    try:
        with open(file, "rb") as head:
            is_zip = head.read(2) == b"PK"  # the older format can't be mapped into memory
        return torch.load(file, map_location=device, weights_only=True, mmap=is_zip or None)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:  # RuntimeError: of the zip reader
        raise BadRequest(f"{file.name} is damaged, or holds more than tensors and is refused") from error


def unwrap(loaded: Any, wrappers: tuple[str, ...] = WRAPPERS) -> dict[str, Tensor]:
    """The flat dict of tensors inside what a file held, without wrapper keys and prefixes."""
    while isinstance(loaded, Mapping) and (inner := next((w for w in wrappers if _is_dict(loaded.get(w))), None)):
        loaded = loaded[inner]
    if not _is_dict(loaded) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise BadRequest(f"found no tensors by name, nor any of {', '.join(wrappers)}")
    return strip_prefixes(dict(loaded))


def _is_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0


def strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys without `INFIXES`, and without those `PREFIXES` that every key begins with."""
    for infix in INFIXES:
        tensors = {key.replace(infix, ""): tensor for key, tensor in tensors.items()}
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


def merge_lora(
    tensors: Mapping[str, Tensor], adapter: Mapping[str, Tensor], alpha: float | None = None
) -> dict[str, Tensor]:
    """W + (alpha / rank) B A for every layer of a PEFT adapter, in float32 and cast back.

    alpha: the adapter's, its rank if None (the file stores neither; the rank is read from A). Raises BadRequest for
    a half pair, a layer the weights don't have, or shapes that don't fit.
    """
    merged = dict(tensors)
    pairs = lora_pairs(adapter)
    unknown = [name for name in pairs if name not in merged]
    if unknown:
        raise BadRequest(f"the adapter changes {len(unknown)} layers that aren't there: {shortened(unknown)}")
    for name, (down, up) in pairs.items():
        weight, rank = merged[name], down.shape[0]
        if up.shape[1] != rank or weight.shape != (up.shape[0], down.shape[1]):
            raise BadRequest(
                f"{name} is {tuple(weight.shape)}, the adapter's are {tuple(up.shape)} {tuple(down.shape)}"
            )
        scale = (rank if alpha is None else alpha) / rank
        merged[name] = (weight.float() + scale * (up.float() @ down.float())).to(weight.dtype)
    return merged


def lora_pairs(adapter: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """PEFT's keys -> {name of the weight: (A [rank, in], B [out, rank])}."""
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in adapter.items():
        found = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_(A|B)(?:\.default)?\.weight", key)
        if found is None:
            raise BadRequest(f"{key!r} is no key of a LoRA adapter (... .lora_A.weight, ... .lora_B.weight)")
        halves.setdefault(f"{found[1]}.weight", {})[found[2]] = tensor
    lonely = [name for name, half in halves.items() if len(half) != 2]
    if lonely:
        raise BadRequest(f"{len(lonely)} layers of the adapter lack their A or B: {shortened(lonely)}")
    return {name: (half["A"], half["B"]) for name, half in halves.items()}


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives the module exactly these tensors, in their dtype (it may stand on the meta device).

    Raises BadRequest that lists missing keys, unexpected keys and wrong shapes, all three.
    """
    problem = misfit({name: t.shape for name, t in module.state_dict().items()}, tensors)
    if problem:
        raise BadRequest(f"the weights don't fit {type(module).__name__}: {problem}")
    module.load_state_dict(tensors, strict=True, assign=True)


@dataclass(frozen=True)
class Misfit:
    """What keeps tensors from being a module's, by name; false if nothing does."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        parts = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.misshapen}
        return "; ".join(f"{len(names)} {what}: {shortened(names)}" for what, names in parts.items() if names)


def misfit(expected: Mapping[str, Iterable[int]], tensors: Mapping[str, Tensor]) -> Misfit:
    """How `tensors` differ from the expected names and shapes."""
    shapes = {name: (list(shape), list(tensors[name].shape)) for name, shape in expected.items() if name in tensors}
    return Misfit(
        missing=tuple(sorted(expected.keys() - tensors.keys())),
        unexpected=tuple(sorted(tensors.keys() - expected.keys())),
        misshapen=tuple(f"{name} is {got}, not {want}" for name, (want, got) in shapes.items() if want != got),
    )


def read_sizes(cls: type[Sizes], path: str | None, default: Sizes) -> Sizes:
    """A model's sizes from a JSON file of the fields of `cls`, or `default` where there is no path."""
    return default if path is None else cls(**as_tuples(json.loads(Path(path).read_text())))


def as_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON and YAML have lists where frozen dataclasses have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def default_device(name: str | None) -> torch.device:
    """The device of that name; for None CUDA where there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_frozen(
    module: nn.Module, tensors: Mapping[str, Tensor], device: torch.device | str, dtype: torch.dtype
) -> None:
    """As `load_strict`, on `device` and in `dtype`; nothing of it is trained. module: on the meta device."""
    load_strict(module, {name: tensor.to(device, dtype) for name, tensor in tensors.items()})
    module.requires_grad_(False)


def float_dtype(name: str) -> torch.dtype:
    """The dtype a model is to run in. Raises BadRequest for a name that isn't one."""
    if name not in _FLOATS:
        raise BadRequest(f"dtype must be one of {', '.join(_FLOATS)}, got {name!r}")
    return _FLOATS[name]


def shortened(names: Iterable[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


_FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
