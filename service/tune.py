"""Training an adapter (LoRA, arXiv 2106.09685) that makes a model answer a prompt of this project.

A pack of texts is one sequence: the beginning that their prompts share, then each text with its answer, which sees the
beginning and itself alone. The beginning is computed once a pack, nothing is padded, and every token has the place and
the view that it has in use. The loss is on the answers only.

A text that is also in the pack with an instruction to its reader adds how far the two answers differ: what the model
makes of the plain text is what it has to make of the other (consistency training, arXiv 2403.05518, here on
probabilities). The right label alone does not teach that where the model is unsure: any further sentence sways it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from itertools import accumulate, pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, scaled_dot_product_attention

from service.engine import Message
from service.engine.embedded import HUB_NAME, WEIGHTS, model_folder
from service.engine.tokenizer import Tokenizer
from service.errors import Invalid
from service.mixture import Pack, Training, held_out, plan, questions
from service.prompt import Prompt, load
from service.sets import Part, parse_declaration, read_file, read_sets
from service.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STEP_PACKS = 2
WARM_UP = 40  # steps, or a tenth of a short training
FLOOR = 0.02  # of the peak rate, at the end
DECAY = 0.01  # weight decay
CONSISTENCY = 2.0  # weight of a text's divergence from its plain twin, against that of its loss
CLIP = 1.0  # largest norm of a step's gradient
MEASURES = 8  # times that the held-out texts are measured, besides the beginning
CHECKPOINT_SECONDS = 300
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Laid:
    """A pack as tensors over its T tokens.

    ids, positions: (1, T). segment: (T,) 0 for the shared beginning, then 1, 2, … for the texts.
    asked: (A,) the places whose next token is an answer's; answer: (A,) that token; example: (A,) which text.
    swayed, plain: (P,) numbers within `asked`: the answer to a text with an instruction, and to the same text without.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    segment: torch.Tensor
    asked: torch.Tensor
    answer: torch.Tensor
    example: torch.Tensor
    swayed: torch.Tensor
    plain: torch.Tensor
    examples: int

    def to(self, device: torch.device) -> Laid:
        kept = {one.name: getattr(self, one.name) for one in fields(self)}
        moved: dict[str, Any] = {name: one.to(device) for name, one in kept.items() if isinstance(one, torch.Tensor)}
        return replace(self, **moved)

    @cached_property
    def beginning(self) -> int:
        """How many tokens the texts share."""
        return int((self.segment == 0).sum())

    @cached_property
    def rows(self) -> tuple[list[Rows], torch.Tensor]:
        """The texts' own tokens, one text a row, texts of about the same length together; (T - beginning,) where each
        token is among the real ones of all rows."""
        counts = torch.bincount(self.segment[self.beginning :] - 1)
        starts = counts.cumsum(0) - counts
        lengths = counts.log2().ceil()
        groups = []
        for length in set(lengths.tolist()):
            count, start = counts[lengths == length][:, None], starts[lengths == length][:, None]
            steps = torch.arange(int(count.max()), device=counts.device)
            place = start + torch.minimum(steps, count - 1)
            groups.append(Rows(place, (steps < count).flatten().nonzero()[:, 0], steps[None, :] > steps[:, None]))
        return groups, torch.cat([one.place.flatten()[one.real] for one in groups]).argsort()


@dataclass(frozen=True)
class Rows:
    """Texts of a pack, padded with their last token. place: (R, W) of each token, counted from the beginning's end;
    real: the numbers of those that are no padding, in the flattened rows; hidden: (W, W) what a token does not see."""

    place: torch.Tensor
    real: torch.Tensor
    hidden: torch.Tensor


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    pack: Laid,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within a pack: the beginning over itself, each text over the beginning and itself.

    query (1, heads, T, size), key and value (1, key heads, T, size); the result is (1, T, heads, size). One masked
    attention over all T tokens would say the same, and compute mostly what nobody sees.
    """
    first, (groups, order) = pack.beginning, pack.rows
    heads, key_heads, size = query.shape[1], key.shape[1], key.shape[3]
    ahead = scaled_dot_product_attention(
        query[:, :, :first], key[:, :, :first], value[:, :, :first], is_causal=True, scale=scaling, enable_gqa=True
    )
    # What all texts see and what each sees of itself are summed apart and joined (as FlashAttention does with blocks,
    # arXiv 2205.14135, section 3.1): the beginning is neither copied for every text nor asked by padding.
    asked = (query[0, :, first:] * scaling).reshape(key_heads, heads // key_heads, -1, size)
    common = _summed(asked.flatten(1, 2) @ key[0, :, :first].mT, value[0, :, :first])
    found = [_own(asked, key[0, :, first:], value[0, :, first:], one) for one in groups]
    own = [torch.cat(parts, 2).index_select(2, order).flatten(1, 2) for parts in zip(*found, strict=True)]
    behind = _joined(common, own).to(query.dtype).reshape(heads, -1, size).transpose(0, 1)
    return torch.cat([ahead[0].transpose(0, 1), behind])[None], None


def _own(asked: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: Rows) -> list[torch.Tensor]:
    """`_summed` over each text's own tokens, for the real ones: asked (key heads, heads each, n, size), key and value
    (key heads, n, size); the results are (key heads, heads each, real tokens, 1 or size)."""
    (key_heads, each, _, size), (count, width), place = asked.shape, rows.place.shape, rows.place.flatten()
    asked = asked.index_select(2, place).reshape(key_heads, each, count, width, size).transpose(1, 2).flatten(2, 3)
    keys, values = (x.index_select(1, place).reshape(key_heads, count, width, size) for x in (key, value))
    found = _summed((asked @ keys.mT).masked_fill_(rows.hidden.repeat(each, 1), -torch.inf), values)
    apart = (x.reshape(key_heads, count, each, width, -1).transpose(1, 2).flatten(2, 3) for x in found)
    return [x.index_select(2, rows.real) for x in apart]


def _summed(scores: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of scores (…, n, m) and values (…, m, size): their largest (…, n, 1), and relative to it the sums of exponentials
    (…, n, 1) and of values by them (…, n, size). Takes the scores' memory."""
    scores = scores.float()
    highest = scores.detach().amax(-1, keepdim=True)
    weights = scores.sub_(highest).exp_()
    return highest, weights.sum(-1, keepdim=True), (weights.to(values.dtype) @ values).float()


def _joined(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> torch.Tensor:
    """The attention over two sets of keys, of which `_summed` found highest, total and sum."""
    highest = torch.maximum(one[0], other[0])
    left, right = (one[0] - highest).exp(), (other[0] - highest).exp()
    return (left * one[2] + right * other[2]) / (left * one[1] + right * other[1])


@dataclass
class Progress:
    """Where a training is. loss: mean over a step's texts; held_out: one entry a measure, see `measure`."""

    step: int = 0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    held_out: list[dict[str, Any]] = field(default_factory=list)

    @property
    def measured(self) -> bool:
        """Whether the held-out texts were measured after this very step."""
        return bool(self.held_out) and self.held_out[-1]["step"] == self.step

    def line(self) -> str:
        last = self.held_out[-1]
        recent = self.losses[-20:] or [math.nan]
        return (
            f"step {self.step} of {self.steps}, loss {sum(recent) / len(recent):.2f}; "
            f"held out: loss {last['loss']:.2f}, {last['exact']:.1%} exact; "
            f"{self.tokens / max(1e-9, self.seconds):.0f} tokens/s, {self.left / 60:.0f} min left"
        )

    @property
    def left(self) -> float:
        """Seconds to go at the speed so far."""
        return self.seconds / max(1, self.step) * (self.steps - self.step)


def lay_out(pack: Pack, prompt: Prompt, tokenizer: Tokenizer) -> Laid | None:
    """The pack's texts as one sequence; None where none of them can be asked."""
    asked = list(questions(pack, prompt))
    if not asked:
        return None
    end = tokenizer.hf.eos_token_id
    prompts = [tokenizer.encode((Message("system", s), Message("user", u))) for _, (s, u), _ in asked]
    answers = [[*tokenizer.plain(completion), end] for _, _, completion in asked]
    alike = (len(set(column)) == 1 for column in zip(*prompts, strict=False))
    shared = min(sum(takewhile(bool, alike)), min(map(len, prompts)) - 1)
    ids, positions, segment = prompts[0][:shared], list(range(shared)), [0] * shared
    places: list[int] = []
    targets: list[int] = []
    example: list[int] = []
    for number, (question, answer) in enumerate(zip(prompts, answers, strict=True)):
        branch = question[shared:] + answer[:-1]  # the end token is asked for, never read
        first = len(ids) + len(question) - shared - 1
        places += range(first, first + len(answer))
        targets += answer
        example += [number] * len(answer)
        ids = ids + branch
        positions += range(shared, shared + len(branch))
        segment += [number + 1] * len(branch)
    swayed, plain = _twins(pack, [number for number, _, _ in asked], answers)
    return Laid(
        torch.tensor([ids]),
        torch.tensor([positions]),
        torch.tensor(segment),
        torch.tensor(places),
        torch.tensor(targets),
        torch.tensor(example),
        torch.tensor(swayed, dtype=torch.long),
        torch.tensor(plain, dtype=torch.long),
        len(asked),
    )


def _twins(pack: Pack, numbers: Sequence[int], answers: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """`Laid.swayed` and `Laid.plain`. numbers: of the texts asked, in the pack; answers: theirs."""
    place = {number: at for at, number in enumerate(numbers)}
    ends = list(accumulate(map(len, answers)))
    swayed: list[int] = []
    plain: list[int] = []
    for one, other in pack.plain.items():
        mine, twin = place.get(one), place.get(other)
        # a marked mention may be another occurrence with the instruction before it
        if mine is not None and twin is not None and answers[mine] == answers[twin]:
            swayed += range(ends[mine] - len(answers[mine]), ends[mine])
            plain += range(ends[twin] - len(answers[twin]), ends[twin])
    return swayed, plain


def declared(
    sources: Sequence[str], schema_name: str | None, data: Path, passes: float, settings: Settings
) -> tuple[Training, list[Part]]:
    """What to train on: the sets that one YAML file declares, or gold files as they are, each read `passes` times."""
    if len(sources) == 1 and Path(sources[0]).suffix in (".yaml", ".yml"):
        training = parse_declaration(Path(sources[0]), Training)
        read = {name: one for name, one in training.sets.items() if one.examples}
        wanted = [*read, *{name for one in read.values() for name in one.strangers} - {*read}]
        return training, read_sets(training, data, ["train", "dev"], wanted)
    parts = [read_file(source, schema_name, settings, "train") for source in sources]
    return Training(sets={}), [replace(part, examples=math.ceil(passes * len(part.splits["train"]))) for part in parts]


def open_trainer(
    training: Training, parts: Sequence[Part], folder: Path, start: Path | None, settings: Settings
) -> Trainer:
    """A training of the settings' model, at its beginning or at its last checkpoint in `folder`.

    start: the folder of an adapter whose weights it begins with; else they are new.
    """
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(settings.threads or os.cpu_count() or 1)
    where = model_folder(settings)
    prompt = load(settings.prompts, training.prompt)
    model = AutoModelForCausalLM.from_pretrained(where, revision=settings.revision or "main", dtype=torch.float32)
    packs, kept = plan(parts, training), held_out(parts, training)
    base = HUB_NAME if settings.model == "embedded" else settings.model
    return Trainer(model, Tokenizer(where, settings.revision), prompt, training, packs, kept, folder, start, base)


class Trainer:
    """One training, from the beginning or from its last checkpoint in `folder`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        prompt: Prompt,
        training: Training,
        packs: Sequence[Pack],
        kept: Sequence[Pack],
        folder: Path,
        start: Path | None = None,
        base: str = "",
    ) -> None:
        """base: the model's public name, for the adapter's description."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.half = _has_bfloat16(self.device)
        torch.manual_seed(training.seed)
        self.model = _with_adapter(model, training, self.half, start).to(self.device)
        self.tokenizer, self.prompt, self.training = tokenizer, prompt, training
        self.packs, self.kept, self.folder, self.base = packs, kept, folder, base
        self.weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=training.rate, betas=(0.9, 0.98), weight_decay=DECAY)
        self.progress = Progress(steps=math.ceil(len(packs) / STEP_PACKS))
        self._resume()

    def describe(self) -> str:
        texts = sum(len(pack.gold) for pack in self.packs)
        kept = sum(len(pack.gold) for pack in self.kept)
        kind = "bfloat16" if self.half else "float32"
        went = f", going on at step {self.progress.step}" if self.progress.step else ""
        return (
            f"{texts} texts in {len(self.packs)} packs, {self.progress.steps} steps on {self.device.type} in {kind}, "
            f"{sum(weight.numel() for weight in self.weights) / 1e6:.1f} M weights; {kept} texts held out{went}"
        )

    def run(self, report: Callable[[Progress], None]) -> None:
        """Train to the end, reporting after every step; the adapter, its curve and its log are in `folder` then."""
        self.folder.mkdir(parents=True, exist_ok=True)
        progress = self.progress
        every = max(1, progress.steps // MEASURES)
        if not progress.held_out:
            progress.held_out.append(self.measure())
        saved = time.monotonic()
        try:
            while progress.step < progress.steps:
                started = time.monotonic()
                self._step()
                progress.step += 1
                progress.seconds += time.monotonic() - started
                if progress.step % every == 0 or progress.step == progress.steps:
                    progress.held_out.append(self.measure())
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self._checkpoint()
                    saved = time.monotonic()
                report(progress)
        except KeyboardInterrupt:
            self._checkpoint()
            raise
        self._finish()

    def measure(self) -> dict[str, Any]:
        """{"step", "loss", "exact", "sets"}: of the held-out texts, the mean loss (nats a text) and the share whose
        whole answer is the model's first choice at every token, i.e. what it would say; "sets" has both by set."""
        self.model.eval()
        sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0])  # texts, loss, exact
        for pack in self.kept:
            laid = self._laid_out(pack)
            if laid is None:
                continue
            with torch.no_grad(), self._precision():
                logits = self._logits(laid)
            wrong = torch.zeros(laid.examples, device=self.device)
            wrong.index_add_(0, laid.example, (logits.argmax(-1) != laid.answer).float())
            loss = cross_entropy(logits.float(), laid.answer, reduction="sum").item()
            found = (laid.examples, loss, int((wrong == 0).sum()))
            sums[pack.name] = [a + b for a, b in zip(sums[pack.name], found, strict=True)]
        self.model.train()
        sets = {name: {"texts": n, "loss": loss / n, "exact": exact / n} for name, (n, loss, exact) in sums.items()}
        total = sum(n for n, _, _ in sums.values()) or 1
        means = {"loss": sum(loss for _, loss, _ in sums.values()) / total}
        means["exact"] = sum(exact for _, _, exact in sums.values()) / total
        return {"step": self.progress.step, **means, "sets": sets}

    def _step(self) -> None:
        number = self.progress.step
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.rate * _schedule(number, self.progress.steps)
        laid = [self._laid_out(pack) for pack in self.packs[number * STEP_PACKS : (number + 1) * STEP_PACKS]]
        texts = sum(one.examples for one in laid if one) or 1
        total = 0.0
        for one in laid:
            if one is None:
                continue
            with self._precision():
                logits = self._logits(one).float()
            loss = cross_entropy(logits, one.answer, reduction="sum") / texts
            total += loss.item()
            torch.autograd.backward(loss + CONSISTENCY * _divergence(logits, one) / texts)
            self.progress.tokens += one.ids.shape[1]
        torch.nn.utils.clip_grad_norm_(self.weights, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.losses.append(total)

    def _laid_out(self, pack: Pack) -> Laid | None:
        laid = lay_out(pack, self.prompt, self.tokenizer)
        if laid is None:
            return None
        return laid.to(self.device)

    def _logits(self, laid: Laid) -> torch.Tensor:
        output = self.model(
            input_ids=laid.ids,
            position_ids=laid.positions,
            attention_mask=None,
            pack=laid,
            use_cache=False,
            logits_to_keep=laid.asked,
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    def _identity(self) -> str:
        """What a checkpoint must match: the training and every text of it, in order."""
        digest = hashlib.sha256(self.training.model_dump_json().encode())
        digest.update(self.prompt.sha256.encode())
        for pack in self.packs:
            digest.update(pack.schema.model_dump_json().encode())
            digest.update("\0".join(gold.text for gold in pack.gold).encode())
        return digest.hexdigest()

    @property
    def _checkpoint_file(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _checkpoint(self) -> None:
        state = {
            "identity": self._identity(),
            "weights": [weight.detach().cpu() for weight in self.weights],
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
        }
        work = self._checkpoint_file.with_suffix(".writing")
        torch.save(state, work)
        work.replace(self._checkpoint_file)  # in one step: a kill leaves the one before

    def _resume(self) -> None:
        if not self._checkpoint_file.is_file():
            return
        state = torch.load(self._checkpoint_file, map_location="cpu", weights_only=True)
        if state["identity"] != self._identity():
            raise Invalid(
                f"{self._checkpoint_file} belongs to another training; remove it, or choose another folder with --out"
            )
        with torch.no_grad():
            for weight, kept in zip(self.weights, state["weights"], strict=True):
                weight.copy_(kept)
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def _finish(self) -> None:
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        state = {
            k: v.detach().to(torch.bfloat16).cpu().contiguous()
            for k, v in get_peft_model_state_dict(self.model).items()
        }
        config = self.model.peft_config["default"]
        config.inference_mode = True
        config.base_model_name_or_path = self.base
        config.save_pretrained(self.folder)
        save_file(state, self.folder / WEIGHTS, metadata={"format": "pt"})
        log = {k: v for k, v in asdict(self.progress).items() if k != "losses"}
        (self.folder / "training.json").write_text(json.dumps(log, indent=1) + "\n")
        plot(self.progress, self.folder / "training.svg")
        self._checkpoint_file.unlink(missing_ok=True)


def plot(progress: Progress, path: Path) -> None:
    """The curves of a training: loss of each step, and loss and exact answers on the held-out texts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    width = max(1, len(progress.losses) // 60)
    edges = list(range(0, len(progress.losses) + 1, width))
    smooth = [sum(progress.losses[a:b]) / (b - a) for a, b in pairwise(edges)]
    left.plot([b for _, b in pairwise(edges)], smooth, label=f"training, mean of {width} steps", color="0.6")
    steps = [one["step"] for one in progress.held_out]
    left.plot(steps, [one["loss"] for one in progress.held_out], marker="o", label="held out")
    left.set(xlabel="step", ylabel="loss (nats a text)", ylim=(0, None))
    left.set_ylim(0, max([one["loss"] for one in progress.held_out[1:]] + smooth[3:] or [1]) * 1.2)
    left.legend()
    for name in progress.held_out[-1]["sets"]:
        right.plot(steps, [one["sets"][name]["exact"] for one in progress.held_out], color="0.85", linewidth=0.8)
    right.plot(steps, [one["exact"] for one in progress.held_out], marker="o", label="all sets")
    right.set(xlabel="step", ylabel="held-out texts answered exactly", ylim=(0, 1))
    right.legend(loc="lower right")
    figure.savefig(path)
    pyplot.close(figure)


def _with_adapter(model: PreTrainedModel, training: Training, half: bool, start: Path | None) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AttentionInterface

    if half:
        torch.nn.Module.to(model, torch.bfloat16)
    AttentionInterface.register("concord-packs", attend)
    model.set_attn_implementation("concord-packs")
    for weight in model.parameters():
        weight.requires_grad_(False)
    if start is not None:
        return PeftModel.from_pretrained(model, start, is_trainable=True, autocast_adapter_dtype=True).train()
    config = LoraConfig(r=training.rank, lora_alpha=training.alpha, target_modules=MODULES, bias="none")
    return get_peft_model(model, config, autocast_adapter_dtype=True).train()


def _divergence(logits: torch.Tensor, laid: Laid) -> torch.Tensor:
    """Kullback-Leibler divergence, in nats, of what is said of texts with an instruction from what is said without."""
    said = log_softmax(logits[laid.swayed], -1)
    meant = log_softmax(logits[laid.plain].detach(), -1)
    return kl_div(said, meant, reduction="sum", log_target=True)


def _schedule(step: int, steps: int) -> float:
    """Share of the peak rate: linear warm-up, then cosine decay to FLOOR."""
    warm_up = min(WARM_UP, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    through = (step - warm_up) / max(1, steps - warm_up)
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * through)) / 2


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 matrices itself; one that emulates it is several times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
