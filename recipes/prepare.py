"""Prepare a corpus: `python recipes/prepare.py corpus=<name> [corpus.out=<folder> ...]`.

Calls the function that conf/corpus/<name>.yaml names; it writes <split>.jsonl manifests and says what it found.
`speechkit prepare` does the same from the command line, for readers of other toolkits' formats too.
"""

from __future__ import annotations

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from speechkit.training.run import one_line_errors


@hydra.main(version_base="1.3", config_path="../conf", config_name="prepare")
def main(cfg: DictConfig) -> None:
    """Entry point."""
    with one_line_errors():
        print(instantiate(cfg.corpus, _convert_="all"))


if __name__ == "__main__":
    main()
