"""Known holes in what is installed: `make audit`. pip-audit asks the package index; it is fetched for that, and not a dependency."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

UV = str(Path(sys.executable).with_name("uv"))


def main() -> int:
    """-> 0: none known; 1: some, each named with the version that mends it; 2: nobody knows"""
    installed = subprocess.run([UV, "pip", "freeze", "--quiet", "--python", sys.executable], capture_output=True, text=True, check=True).stdout
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(installed)
        file.flush()
        ask = [UV, "tool", "run", "pip-audit", "-r", file.name, "--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json"]
        asked = subprocess.run(ask, capture_output=True, text=True)
    code, text = judged(asked.stdout, asked.stderr)
    print(text)
    return code


def judged(answer: str, complaint: str) -> tuple[int, str]:
    """Exit code and words for pip-audit's JSON, or for what it said instead. Packages it could not look up are no clean bill."""
    try:
        asked = json.loads(answer)["dependencies"]
    except (ValueError, KeyError):
        why = next((line.strip() for line in reversed(complaint.splitlines()) if line.strip()), "no answer")
        return 2, f"the audit was not made: {why[:200]}"
    known = [d for d in asked if "vulns" in d]
    if not known:
        return 2, f"the audit was not made: the index's vulnerability service told nothing of any of {len(asked)} packages; try from another network"
    holes = [f"{d['name']} {d['version']}: {v['id']}, mended in {', '.join(v['fix_versions']) or 'no release'}" for d in known for v in d["vulns"]]
    missing = f"; {len(asked) - len(known)} could not be looked up" if len(known) < len(asked) else ""
    return (1 if holes else 0), "\n".join([*holes, f"{len(holes)} known holes in {len(known)} packages{missing}"])


if __name__ == "__main__":
    sys.exit(main())
