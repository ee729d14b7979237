"""History into the tables, once, from files or from Kafka again: trigger it with parameters.

arguments -> backfill -> is_done -> build

What the tables hold already does not come again, so a second run, a retry and the other DAG beside it do no harm.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG, Param, task
from icestream_pod import DEFAULT_ARGS, RESULT, IcestreamOperator

OFFSET = {"type": "string", "pattern": r"^[\w.-]+/\d+=\d+$"}


def backfill_arguments(params: dict) -> list[str]:
    """The command line that the parameters of a run stand for."""
    arguments = ["backfill"]
    if params["files"]:
        arguments += ["--files", *params["files"]]
    # With `=`, because a time may begin with a minus: -6h.
    arguments += [f"--from-offset={offset}" for offset in params["from_offset"]]
    arguments += [f"--to-offset={offset}" for offset in params["to_offset"]]
    arguments += [f"--{name.replace('_', '-')}={params[name]}" for name in ("from_time", "to_time") if params[name]]
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
            [],
            type="array",
            items={"type": "string", "minLength": 1},
            description="Files, folders or patterns as Kafka Connect's S3 sinks leave them: s3://bucket/topics/**/*.json.gz",
        ),
        "from_time": Param(None, type=["null", "string"], description="From Kafka: 2026-03-01, 2026-03-01 12:00, -6h"),
        "to_time": Param(None, type=["null", "string"], description="From Kafka, up to this time"),
        "from_offset": Param(
            [], type="array", items=OFFSET, description="From Kafka, for each partition: shop.public.orders/0=4711"
        ),
        "to_offset": Param([], type="array", items=OFFSET, description="From Kafka, up to these offsets"),
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
