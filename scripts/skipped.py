"""Prints which tests were skipped and why, from pytest's JUnit report, so that it is the last thing seen."""

import sys
from collections import Counter
from pathlib import Path

# Our own test report, written a moment ago by pytest.
from xml.etree import ElementTree


def main() -> None:
    """Print one line a reason, with how many tests it kept from running."""
    report = Path(sys.argv[1])
    if not report.exists():
        print("skipped: unknown, since pytest wrote no report")
        return
    skipped = ElementTree.parse(report).iterfind(".//testcase/skipped")  # noqa: S314
    reasons = Counter(element.get("message") or "no reason given" for element in skipped)
    print(f"skipped: {sum(reasons.values())}" if reasons else "skipped: none")
    for reason, count in reasons.most_common():
        print(f"  {count} x {reason}")


if __name__ == "__main__":
    main()
