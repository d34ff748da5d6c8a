"""The folder of the repository, and its README, for tests that read other files."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
