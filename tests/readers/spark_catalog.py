"""Spark as the foreign writer: another program on the same SQLite catalog.

    spark_catalog.py --name NAME --database FILE --warehouse LOCATION STATEMENTS

STATEMENTS is a JSON list of SQL statements. Prints a JSON list with null for each that went well, and
the error for each that did not. Tables are named
`NAMESPACE.TABLE` in them.
"""

import argparse
import json
import os
from pathlib import Path

from read import spark_session


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--warehouse", required=True)
    parser.add_argument("statements")
    arguments = parser.parse_args()
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    # The catalog's name is the one its rows are stored under.
    session = spark_session(
        arguments.name,
        {"uri": f"jdbc:sqlite:{arguments.database}", "warehouse": arguments.warehouse},
    )
    outcomes = []
    for statement in json.loads(Path(arguments.statements).read_text()):
        try:
            session.sql(statement).collect()
            outcomes.append(None)
        except Exception as error:
            outcomes.append(f"{statement}: {error}")
    with os.fdopen(answer_fd, "w") as stdout:
        stdout.write(json.dumps(outcomes) + "\n")


if __name__ == "__main__":
    main()
