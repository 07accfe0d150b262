"""Intervals, timeouts and grace periods, in seconds: every duration that no setting of the run spec decides."""

from __future__ import annotations

# -- the object store ------------------------------------------------------------------------------------------------

STORE_RETRY_S = 60.0
"""How long an operation that fails with a transient error is retried, unless the run spec says otherwise."""
DRIVER_STORE_RETRY_S = 5.0
"""The same for requests of the driver's loop, which must not stand still."""
STORE_RETRY_LOG_S = 10.0
"""Retries that have lasted this long are logged; then again each time the wait has tripled."""
MODEL_FETCH_LOG_INTERVAL_S = 30.0
FILE_SETTLED_S = 3.0
"""A file changed twice within its disk's clock tick, two seconds at worst, would keep its modification time."""

# -- the lease -------------------------------------------------------------------------------------------------------

LEASE_SETTLE_S = 2.0
"""Where a store ignores conditional writes, the last of several creators holds the lease: how long each waits."""
LEASE_POLL_S = 2.0
FENCE_POLL_S = 0.5
FENCE_TIMEOUT_S = 30.0
"""How long a late commit waits for the process that is raising the fence to decide about it."""

# -- the driver ------------------------------------------------------------------------------------------------------

DRIVER_POLL_S = 0.5
PROGRESS_INTERVAL_S = 0.2
WORKER_PROGRESS_INTERVAL_S = 1.0
SUSPENDED_S = 10.0
"""A driver loop that took longer was suspended, not waiting."""
STORE_PAUSE_S = 5.0
"""How long a worker rests after a store error; doubled for every error in a row."""
MAX_STORE_PAUSE_S = 60.0
START_PAUSE_S = 60.0
"""How long no worker is started after several in a row have failed to, while others work."""
NODE_WAIT_NOTICE_S = 60.0
"""A worker that has been without a node for this long is reported, and no shard is kept back for it."""
CLUSTER_POLL_S = 3.0

# -- stopping --------------------------------------------------------------------------------------------------------

STOP_FILE_POLL_S = 3.0
STOP_FILE_RETRY_S = 2.0
STOP_MARGIN_S = 60
"""On top of a run's `grace_seconds`: to release the lease and to write the run's last documents."""
SERVICE_STOP_MARGIN_S = 30
"""The same for systemd, which waits for one process on one machine."""
STOP_TIMEOUT_S = 180.0
"""How long `stop` waits for a run whose own grace period is unknown."""
STOP_POLL_S = 1.0

# -- what people and machines see --------------------------------------------------------------------------------------

DISPLAY_LINE_INTERVAL_S = 10.0
PROGRESS_LOG_INTERVAL_S = 60.0
RUN_LOG_WRITE_INTERVAL_S = 30.0
WAIT_NOTICE_INTERVAL_S = 60.0
WEBHOOK_TIMEOUT_S = 5.0
WEBHOOK_DEADLINE_S = 20.0
"""No try begins later than this: systemd and Kubernetes wait only so long for a run that they have stopped."""

# -- a cluster's job server --------------------------------------------------------------------------------------------

JOB_SERVER_TIMEOUT_S = 60.0
"""Ray's client itself waits for ever, so a tunnel that broke without notice would hang it."""
JOB_LOG_RETRY_S = 600.0
JOB_LOG_PAUSE_S = 5.0
JOB_LOG_POLL_S = 1.0
JOB_LOG_SILENCE_S = 45.0
"""After this much silence the log is opened anew: a connection may be dead without either side having noticed."""
JOB_SUBMIT_PAUSE_S = 5.0
FINISHED_CLUSTER_TTL_S = 600
"""How long KubeRay keeps a cluster, and so its logs, once its run has ended."""
