"""Write the next step from what changed in `service/models.py`: `python -m service.migrations "what changed"`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from alembic import command
from alembic.config import Config

from service.db import MIGRATIONS, connect, migrate


def main(message: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        engine = connect(f"sqlite:///{folder}/empty.db")
        migrate(engine)
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        steps = list(Path(MIGRATIONS, "versions").glob("[0-9]*.py"))
        number = f"{len(steps) + 1:04}"
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.revision(config, message, autogenerate=True, rev_id=number)


if __name__ == "__main__":
    main(sys.argv[1])
