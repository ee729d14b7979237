"""History from files into the tables, once: trigger it with parameters.

arguments -> backfill -> is_done -> build

What the tables hold already does not come again, so a second run, a retry and the other DAG beside it do no harm.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG, Param, task
from icestream_pod import DEFAULT_ARGS, RESULT, IcestreamOperator


def backfill_arguments(params: dict) -> list[str]:
    """The command line that the parameters of a run stand for."""
    arguments = ["backfill", "--files", *params["files"]]
    if params["table"]:
        arguments += ["--table", params["table"]]
    if params["epoch"] is not None:
        arguments += ["--epoch", str(params["epoch"])]
    return [*arguments, "--dry-run"] if params["dry_run"] else [*arguments, *RESULT]


with DAG(
    dag_id="icestream_backfill",
    description=__doc__.splitlines()[0],
    schedule=None,
    start_date=datetime(2025, 1, 1),
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    params={
        "files": Param(
            ["s3://bucket/topics/**/*.json.gz"],
            type="array",
            items={"type": "string", "minLength": 1},
            minItems=1,
            description="Files, folders or patterns, as Kafka Connect's S3 sinks leave them",
        ),
        "table": Param(None, type=["null", "string"], description="Fill this bronze table only"),
        "epoch": Param(
            None, type=["null", "integer"], minimum=0, description="Which life of the topics it is the history of"
        ),
        "dry_run": Param(True, type="boolean", description="Show what would be read, and do nothing"),
    },
    tags=["icestream"],
) as dag:

    @task
    def arguments(params: dict) -> list[str]:
        return backfill_arguments(params)

    @task.short_circuit
    def is_done(params: dict) -> bool:
        """Nothing was read in a dry run, and there is nothing to build."""
        return not params["dry_run"]

    backfill = IcestreamOperator(
        task_id="backfill",
        arguments=arguments(),
        do_xcom_push=True,
        execution_timeout=timedelta(hours=24),
    )
    build = IcestreamOperator(
        task_id="build",
        arguments=["build", *RESULT],
        execution_timeout=timedelta(hours=6),
    )
    backfill >> is_done() >> build
