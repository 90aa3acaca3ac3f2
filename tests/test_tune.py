"""Training an adapter: a pack computes what its texts would alone, a stop loses nothing, and engines use the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import prompt, sets, tune
from service.engine import Message
from service.engine.tokenizer import Tokenizer
from service.errors import EngineError, Invalid
from service.mixture import Training, held_out, plan, questions
from service.sets import Part
from service.settings import PROJECT, Settings
from tests.test_cli import concord
from tests.test_mixture import PARTS, TRAINING

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

SMALL = {"rank": 4, "alpha": 8, "rate": 0.05, "seed": 3}
PROMPT = prompt.load(PROJECT / "prompts", "line.v2")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A model of the embedded one's kind, three thousand times smaller, that knows nothing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.5}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    ends = {"eos_token_id": tokenizer.hf.eos_token_id, "bos_token_id": tokenizer.hf.bos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer.hf), max_position_embeddings=4096, **size, **heads, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.hf.save_pretrained(folder)
    return folder


def trainer(tiny: Path, folder: Path, start: Path | None = None, **changes: Any) -> tune.Trainer:
    training = TRAINING.model_copy(update=SMALL | changes)
    parts = [Part(p.name, p.of, p.schema, p.splits, p.other, p.examples // 2) for p in PARTS]
    return tune.open_trainer(training, parts, folder, start, Settings(model=str(tiny), adapter="none"))


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def test_each_text_of_a_pack_is_seen_as_it_is_seen_alone(tiny: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    from transformers import AutoModelForCausalLM

    one = trainer(tiny, tmp_path)
    one.model.eval()
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    for pack in plan(PARTS, TRAINING)[:6]:
        laid = tune.lay_out(pack, PROMPT, tokenizer)
        assert laid is not None
        with torch.no_grad():
            together = one._logits(laid)
        at = apart = 0
        for _, (system, user), completion in questions(pack, PROMPT):
            question = tokenizer.encode((Message("system", system), Message("user", user)))
            answer = [*tokenizer.plain(completion), tokenizer.hf.eos_token_id]
            with torch.no_grad():
                alone = plain(torch.tensor([question + answer[:-1]])).logits[0, len(question) - 1 :]
            assert laid.answer[at : at + len(answer)].tolist() == answer
            torch.testing.assert_close(together[at : at + len(answer)], alone, atol=1e-4, rtol=1e-4)
            at += len(answer)
            apart += len(question) + len(answer)
        assert at == len(laid.answer)
        assert len(laid.segment) < apart


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 99))
def test_attention_within_a_pack_is_one_masked_attention_in_value_and_gradient(
    beginning: int, texts: list[int], seed: int
) -> None:
    torch.manual_seed(seed)
    segment = torch.tensor([0] * beginning + [n + 1 for n, length in enumerate(texts) for _ in range(length)])
    none = torch.zeros(0)
    pack = tune.Laid(none, none, segment, none, none, none, none, none, len(texts))
    size = len(segment)
    tensors = [torch.randn(1, heads, size, 8, requires_grad=True) for heads in (6, 2, 2)]
    visible = (segment[:, None] == segment) | (segment == 0)
    visible &= torch.arange(size) <= torch.arange(size)[:, None]
    whole = torch.nn.functional.scaled_dot_product_attention
    masked = whole(*tensors, attn_mask=visible, scale=0.4, enable_gqa=True).transpose(1, 2)
    packed, _ = tune.attend(torch.nn.Identity(), *tensors, None, 0.4, pack)
    torch.testing.assert_close(packed, masked, atol=1e-5, rtol=1e-4)
    towards = torch.randn_like(masked)
    wanted = torch.autograd.grad(masked, tensors, towards)
    for found, right in zip(torch.autograd.grad(packed, tensors, towards), wanted, strict=True):
        torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-3)


def test_what_is_said_with_an_instruction_is_held_to_what_is_said_without(tiny: Path, tmp_path: Path) -> None:
    one = trainer(tiny, tmp_path)
    one.model.eval()
    pack = next(pack for pack in one.packs if len(pack.plain) > 1)
    laid = one._laid_out(pack)
    assert laid is not None
    assert laid.answer[laid.swayed].tolist() == laid.answer[laid.plain].tolist()
    asked = set(laid.example[laid.swayed].tolist())
    assert asked <= set(pack.plain)
    assert {pack.plain[number] for number in asked} == set(laid.example[laid.plain].tolist())

    def apart() -> float:
        with torch.no_grad():
            return float(tune._divergence(one._logits(laid), laid))

    first = apart()
    assert first > 0
    optimizer = torch.optim.AdamW(one.weights, lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        torch.autograd.backward(tune._divergence(one._logits(laid), laid))
        optimizer.step()
    assert apart() < first / 2


def test_a_training_learns_and_leaves_adapter_curve_and_log(tiny: Path, tmp_path: Path) -> None:
    one = trainer(tiny, tmp_path)
    one.run(lambda _: None)
    first, *_, last = one.progress.held_out
    assert last["loss"] < 0.9 * first["loss"]
    assert set(last["sets"]) == {part.name for part in PARTS}
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "training.json",
        "training.svg",
    }
    log = json.loads((tmp_path / "training.json").read_text())
    assert log["step"] == log["steps"] == one.progress.steps
    assert log["tokens"] == one.progress.tokens > 0


def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(tiny: Path, tmp_path: Path) -> None:
    trainer(tiny, tmp_path / "whole").run(lambda _: None)

    def stop(now: tune.Progress) -> None:
        if now.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tiny, tmp_path / "halves").run(stop)
    second = trainer(tiny, tmp_path / "halves")
    assert second.progress.step == 7
    assert "going on at step 7" in second.describe()
    second.run(lambda _: None)
    whole, halves = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_a_checkpoint_of_another_training_is_refused(tiny: Path, tmp_path: Path) -> None:
    def stop(now: tune.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tiny, tmp_path).run(stop)
    with pytest.raises(Invalid, match="belongs to another training"):
        trainer(tiny, tmp_path, seed=4)


def test_a_training_can_go_on_from_an_adapter(tiny: Path, tmp_path: Path) -> None:
    first = trainer(tiny, tmp_path / "first")
    first.run(lambda _: None)
    second = trainer(tiny, tmp_path / "second", start=tmp_path / "first", seed=9)
    begun = second.measure()
    assert begun["loss"] == pytest.approx(first.progress.held_out[-1]["loss"], rel=0.05)  # the kept weights are rounded


def test_the_merged_adapter_says_what_the_trained_model_said(tiny: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    from transformers import AutoModelForCausalLM

    from service.engine.embedded import merge

    one = trainer(tiny, tmp_path)
    one.run(lambda _: None)
    one.model.eval()
    merged = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    untouched = merged.lm_head.weight.clone()
    merge(merged, tmp_path)
    assert torch.equal(merged.lm_head.weight, untouched)
    pack = held_out(PARTS, TRAINING)[0]
    laid = tune.lay_out(pack, PROMPT, tokenizer)
    assert laid is not None
    _, (system, user), completion = next(questions(pack, PROMPT))
    ids = tokenizer.encode((Message("system", system), Message("user", user)))
    count = len(tokenizer.plain(completion)) + 1
    with torch.no_grad():
        for weight in one.weights:
            weight.copy_(weight.bfloat16())  # as they are kept
        trained = one._logits(laid)[:count]
        said = merged(torch.tensor([[*ids, *laid.answer[: count - 1].tolist()]])).logits[0, len(ids) - 1 :]
    torch.testing.assert_close(said, trained, atol=1e-3, rtol=1e-3)


def test_users_train_on_their_gold_and_label_with_the_result(tiny: Path, tmp_path: Path) -> None:
    gold = tmp_path / "mine.jsonl"
    rows = [{"text": f"the {w} thing {n}", "mood": m} for n in range(20) for w, m in (("bad", "low"), ("fine", "high"))]
    gold.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "mine"
    done = concord("tune", gold, "--out", out, "--passes", "2", CONCORD_MODEL=str(tiny))
    assert done.returncode == 0, done.stderr
    assert "texts in" in done.stderr
    assert "min left" in done.stderr
    using = {"CONCORD_MODEL": str(tiny), "CONCORD_PROMPT": "line.v2"}
    figures = {}
    for adapter in ("none", str(out)):
        target = tmp_path / "figures.json"
        done = concord("evaluate", gold, "--json", target, CONCORD_ADAPTER=adapter, **using)
        assert done.returncode == 0, done.stderr
        figures[adapter] = json.loads(target.read_text())
    assert figures[str(out)]["recipe"]["engine"]["adapter"] != figures["none"]["recipe"]["engine"]["adapter"] == ""
    assert figures[str(out)]["texts"] == 40


def test_several_sets_are_measured_in_one_command(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x y", "mood": "low"}\n{"text": "z", "mood": "high"}\n' * 5)
    entity = {"start": 0, "end": 3, "label": "PER"}
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "Ada met", "entities": [entity]}) + "\n")
    about = "source: here, licence: none, attribution: us"
    declared = tmp_path / "sets.yaml"
    declared.write_text(f"sets:\n  a: {{{about}, test: a.jsonl}}\n  b: {{{about}, test: b.jsonl}}\n")
    figures, table = tmp_path / "figures.json", tmp_path / "table.md"
    arguments = ["evaluate", declared, "--data", tmp_path, "--limit", "4", "--json", figures, "--markdown", table]
    done = concord(*arguments, CONCORD_MODEL=str(tiny), CONCORD_ADAPTER="none", CONCORD_PROMPT="line.v2")
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())["sets"]
    assert {name: one["texts"] for name, one in found.items()} == {"a": 4, "b": 1}
    assert [line.split("|")[1].strip() for line in table.read_text().splitlines()[2:]] == ["a", "b"]


def test_a_set_of_many_label_sets_has_one_line_for_all(tiny: Path, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"text": f"{word} {number}", f"kind_{number}": label, "meta": {"task": f"task_{number}"}}
        for number in range(9)
        for word, label in (("yes", "good"), ("no", "bad"), ("so", "good"))
    ]
    entity = {"start": 0, "end": 3, "label": "PER"}
    records += [{"text": "Ada met", "entities": [entity], "meta": {"task": "names"}}]
    records += [{"text": "nobody looked for names here", "meta": {"task": "names"}}]
    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, records)))
    declared = tmp_path / "sets.yaml"
    declared.write_text("sets:\n  many: {source: here, licence: none, attribution: us, by: task, test: many.jsonl}\n")
    figures, table = tmp_path / "figures.json", tmp_path / "table.md"
    arguments = ["evaluate", declared, "--data", tmp_path, "--json", figures, "--markdown", table]
    done = concord(*arguments, CONCORD_MODEL=str(tiny), CONCORD_ADAPTER="none", CONCORD_PROMPT="line.v2")
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())["sets"]
    together = found.pop("many")
    assert (together["label_sets"], together["texts"]) == (10, 29)
    choices = [
        one["tasks"][f"kind_{n}"]["exact"]["value"] for n, one in ((n, found[f"many/task_{n}"]) for n in range(9))
    ]
    assert together["choices"]["value"] == pytest.approx(sum(choices) / 9)
    assert together["spans"]["value"] == found["many/names"]["tasks"]["entities"]["f1"]["value"]
    (line,) = table.read_text().splitlines()[2:]
    assert line.startswith("| many, 10 label sets | 29 | ")


def test_a_folder_without_an_adapter_is_named(tmp_path: Path) -> None:
    from service.engine.embedded import prepare

    with pytest.raises(EngineError, match="holds no adapter"):
        prepare(Settings(adapter=str(tmp_path)))


def test_a_yaml_file_declares_a_whole_training_and_gold_files_one_of_their_own(tmp_path: Path) -> None:
    gold = tmp_path / "mine.jsonl"
    gold.write_text('{"text": "a", "mood": "low"}\n{"text": "b", "mood": "high"}\n' * 10)
    how, (part,) = tune.declared([str(gold)], None, tmp_path, 1.5, Settings())
    assert (part.examples, how.prompt) == (30, "line.v2")
    declared = tmp_path / "training.yaml"
    declared.write_text(
        "rank: 8\nsets:\n  a: {source: x, licence: y, attribution: z, train: mine.jsonl, examples: 7}\n"
    )
    how, (part,) = tune.declared([str(declared)], None, tmp_path, 1.5, Settings())
    assert (how.rank, part.examples, part.name) == (8, 7, "a")
    assert isinstance(how, Training)
    assert isinstance(part, sets.Part)
