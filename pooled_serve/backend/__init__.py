"""The Django side: the patch, one pooled database per alias, leases, the 503."""
