from pathlib import Path

Path("remote-code-was-run").touch()
