#!/usr/bin/env python3
"""check_iam.py CALLS…: whether the pod's policy allows exactly what the program was seen to call.

CALLS are JSON lists of actions, such as tests/e2e writes of everything that its program asked of S3 and Glue. Ends with 1
when a call is not allowed, or a permission was never needed.
"""

import json
import re
import sys
from pathlib import Path

# Calls that the role is not given on purpose.
WITHHELD = {
    "glue:CreateDatabase": "Terraform makes the databases; the program looks first, and finds them",
    "glue:DeleteTable": "only `icestream drop` needs it, which is for people",
}

# Permissions that an undisturbed run does not need.
RARELY = {
    "s3:AbortMultipartUpload": "an upload that failed is given up",
}


def allowed(policy):
    """The actions that a policy allows; the placeholders in its resources stand for text."""
    statements = json.loads(re.sub(r"\$\{\w+\}", "x", policy))["Statement"]
    assert all(statement["Effect"] == "Allow" for statement in statements)
    return {action for statement in statements for action in statement["Action"]}


def compare(policy, calls):
    """What is wrong, as sentences."""
    permitted, called = allowed(policy), set(calls)
    problems = [f"`{action}` has a wildcard" for action in sorted(permitted) if "*" in action]
    problems += [f"`{action}` is called, and not allowed" for action in sorted(called - permitted - set(WITHHELD))]
    problems += [f"`{action}` is allowed, and never called" for action in sorted(permitted - called - set(RARELY))]
    problems += [f"`{action}` is withheld, and allowed" for action in sorted(permitted & set(WITHHELD))]
    return problems


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    calls = [call for file in sys.argv[1:] for call in json.loads(Path(file).read_text())]
    problems = compare((Path(__file__).parent / "pod-policy.json.tftpl").read_text(), calls)
    for problem in problems:
        print(problem)
    if problems:
        sys.exit(1)
    print(f"{len(set(calls))} actions were called; the policy is what they need")


if __name__ == "__main__":
    main()
