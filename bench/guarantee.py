"""Whether what is promised of accepted labels holds, on data sets whose truth is known. See bench/README.md.

For each set a recipe labels the texts once. These texts are then the population: calibration sets are drawn from it a
thousand times, a threshold is promised on each, and the true error at that threshold is looked up.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gzip
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from eval.guarantee import rehearse, rehearse_batch
from service import db, evaluation, prompt, sets, standards
from service.annotate import Plan
from service.engine import open_engine
from service.mixture import Training
from service.route import Standard
from service.settings import PROJECT, Settings

console = Console(width=None if Console().is_terminal else 120)
LEVEL = 0.95
Population = tuple[list[float], list[bool]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the declared sets")
    parser.add_argument("--sets", nargs="+", default=["clinc150=intent", "uci_sentences=sentiment", "snips=item"])
    parser.add_argument("--limit", type=int, default=700, help="texts of each set")
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 300])
    parser.add_argument("--errors", nargs="+", type=float, default=[0.03, 0.1])
    parser.add_argument("--trials", type=int, default=1000)
    options = parser.parse_args()
    wanted = dict(one.split("=") for one in options.sets)
    table = Table("population", "texts", "wrong", "gold texts", "stated", "broken, of all trials", "accepted, mean")
    for name, (confidence, right) in asyncio.run(populations(wanted, options.data, options.limit)).items():
        share = right.count(False) / len(right)
        for size in options.sizes:
            for error in options.errors:
                found = rehearse(confidence, right, error, LEVEL, size, trials=options.trials)
                broken = f"{found.broken.value:.1%} ({found.broken.low:.1%} to {found.broken.high:.1%})"
                row = (name, str(len(right)), f"{share:.1%}", str(size), f"{error:.0%}", broken)
                table.add_row(*row, f"{found.coverage:.1%} ({found.promised} trials promise)")
    published = options.data / "pac" / "stance.csv.gz"
    if published.is_file():
        confidence, right = stance(published)
        found = rehearse_batch(confidence, right, 0.05, LEVEL, 500, trials=options.trials)
        told = f"{found.broken.value:.1%} ({found.broken.low:.1%} to {found.broken.high:.1%})"
        wrong = f"{right.count(False) / len(right):.1%}"
        table.add_row("pac, one batch", str(len(right)), wrong, "500", "5%", told, f"{found.coverage:.1%} saved")
    console.print(table)


async def populations(wanted: dict[str, str], data: Path, limit: int) -> dict[str, Population]:
    """Confidence and rightness of the test texts of each set, by the engine and prompt of the settings."""
    settings = Settings()
    declared = sets.parse_declaration(PROJECT / "models" / "annotator" / "training.yaml", Training)
    parts = sets.read_sets(declared, data, ["test"], list(wanted))
    database = db.connect(settings.database_url)
    db.migrate(database)
    engine = open_engine(settings)
    await engine.ready()
    found: dict[str, Population] = {}
    with Progress(console=console) as progress:
        for part in parts:
            plan = Plan(part.schema, prompt.load(settings.prompts, settings.prompt), engine.identity)
            gold = evaluation.sample(part.splits["test"], limit)
            bar = progress.add_task(part.name, total=len(gold))
            made = await evaluation.evaluate(gold, plan, engine, database, lambda bar=bar: progress.advance(bar))
            every = [task.name for task in part.schema.tasks]
            tasks = every if wanted[part.of] == standards.ITEM else [wanted[part.of]]
            name = f"{part.name}, {wanted[part.of]}"
            found[name] = standards.scored(made.gold, made.answers, Standard(), tasks, tasks)
    await engine.close()
    database.dispose()
    return found


def stance(path: Path) -> Population:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [float(row["confidence"]) for row in rows], [row["Y"] == row["Yhat (GPT4o)"] for row in rows]


if __name__ == "__main__":
    main()
