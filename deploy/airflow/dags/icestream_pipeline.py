"""Everything in the topics, through to gold, proven and looked after: one task per verb.

check -> ingest -> build -> verify -> maintain
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG, AsyncCallback, DeadlineAlert, DeadlineReference
from icestream_alerts import tell_late
from icestream_pod import DEFAULT_ARGS, LASTING, RESULT, IcestreamOperator

LIMIT = timedelta(hours=1)

with DAG(
    dag_id="icestream",
    description=__doc__.splitlines()[0],
    schedule="*/15 * * * *",
    start_date=datetime(2025, 1, 1),
    # A run reads what is there now. Those that were missed have nothing of their own to do.
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=LIMIT,
        callback=AsyncCallback(tell_late, {"dag_id": "icestream", "limit": str(LIMIT)}),
    ),
    tags=["icestream"],
) as dag:
    check = IcestreamOperator(
        task_id="check",
        arguments=["check"],
        execution_timeout=timedelta(minutes=5),
    )
    ingest = IcestreamOperator(
        task_id="ingest",
        arguments=["ingest", "--drain", *RESULT],
        execution_timeout=timedelta(hours=2),
    )
    build = IcestreamOperator(
        task_id="build",
        arguments=["build", *RESULT],
        execution_timeout=timedelta(hours=2),
    )
    # The proof: every offset, and a sample of the keys.
    verify = IcestreamOperator(
        task_id="verify",
        arguments=["verify", *RESULT],
        execution_timeout=timedelta(hours=1),
        lasting={**LASTING, 1: "something is not what it should be"},
    )
    maintain = IcestreamOperator(
        task_id="maintain",
        arguments=["maintain", "--budget", "20m", *RESULT],
        execution_timeout=timedelta(minutes=40),
    )
    check >> ingest >> build >> verify >> maintain
