"""Known vulnerabilities of the tested set: what pip-audit found, and honestly what could not be looked up.

Reads the JSON that `pip-audit --format json` wrote and prints what stands in it. Exit codes: 0 nothing known is wrong,
1 a package has a known vulnerability, 4 the service could not be asked about every package.
"""

import json
import sys
from pathlib import Path


def main(path: Path) -> int:
    """Print the findings of one report, and give the exit code."""
    try:
        packages = json.loads(path.read_text(encoding="utf-8"))["dependencies"]
    except (OSError, ValueError, KeyError):
        print("pip-audit gave no report: its vulnerability service cannot be reached from here, or it failed.")
        print(f"  What it said: {path.with_suffix('.log')}     Run it where there is network: make audit")
        return 4
    asked = [package for package in packages if "vulns" in package]
    vulnerable = [package for package in asked if package["vulns"]]
    for package in vulnerable:
        for fault in package["vulns"]:
            fixed = ", ".join(fault["fix_versions"]) or "none yet"
            print(f"{package['name']} {package['version']}: {fault['id']}, mended in: {fixed}")
    unknown = [package["name"] for package in packages if "vulns" not in package]
    print(f"{len(asked)} of {len(packages)} packages were looked up; {len(vulnerable)} have known vulnerabilities.")
    if vulnerable:
        return 1
    if unknown:
        print(f"  Not looked up: {', '.join(unknown[:8])}{' …' if len(unknown) > 8 else ''}")
        print("  Nothing is known of these: the vulnerability service cannot be reached, or does not know them.")
        return 4
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
