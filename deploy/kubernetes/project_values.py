#!/usr/bin/env python3
"""project_values.py DIR: a project's files as values of the chart.

    deploy/kubernetes/project_values.py . >project.json
    helm upgrade --install shop deploy/kubernetes/icestream -f project.json -f values.yaml
"""

import json
import sys
from pathlib import Path

PATTERNS = ("icestream.yaml", "catalog/*.yaml", "transforms/*.sql", "sql/gold/*.sql", "sql/audits/*.sql")

if len(sys.argv) != 2:
    sys.exit(__doc__)
folder = Path(sys.argv[1])
if not (folder / "icestream.yaml").is_file():
    sys.exit(f"error: {folder} has no icestream.yaml")
files = sorted(file for pattern in PATTERNS for file in folder.glob(pattern))
texts = {file.relative_to(folder).as_posix(): file.read_text() for file in files}
print(json.dumps({"project": {"files": texts}}, indent=1))
