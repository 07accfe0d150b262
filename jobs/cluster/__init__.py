"""Where a run works: a Ray on this machine, a cluster's nodes, jobs on a cluster's job server."""
