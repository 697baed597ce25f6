"""One of two ranks that train recipes one after the other. Run as a script by test_families.py, which sets LOCAL_RANK.

Takes the repository, and a JSON file with the arguments of each recipe.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    recipe, runs = Path(sys.argv[1]) / "recipes" / "train.py", json.loads(Path(sys.argv[2]).read_text())
    for arguments in runs:
        sys.argv = [str(recipe), *arguments]
        runpy.run_path(str(recipe), run_name="__main__")
