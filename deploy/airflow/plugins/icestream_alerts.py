"""Tells people: what failed for good, and which run is late. It stands in plugins/, where workers and triggerer find it.

`ICESTREAM_AIRFLOW_WEBHOOK` is an address that takes `{"text": …}`, such as an incoming webhook of Slack or Teams. Without
it everything is only logged; Airflow's own notifiers (mail, SNS, PagerDuty) go into the same two places.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import urllib.request

log = logging.getLogger(__name__)


def tell(text: str) -> None:
    log.error(text)
    address = os.environ.get("ICESTREAM_AIRFLOW_WEBHOOK")
    if not address:
        return
    body = json.dumps({"text": text}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method="POST")
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except OSError as error:
        log.warning("nobody was told: %s", error)


def tell_failure(context) -> None:
    """A task failed, and is not tried again."""
    task, run = context["ti"], context["run_id"]
    tell(f"{task.dag_id}.{task.task_id} failed in run {run} at try {task.try_number}: {context.get('exception')}")


async def tell_late(dag_id: str, limit: str, **_context) -> None:
    """A run is not done in the time that it should take."""
    await asyncio.to_thread(tell, f"{dag_id} is not done {limit} after it was queued")
