"""Where a run is executed: an embedded Ray, the nodes of a cluster, the jobs of a cluster's job server."""
