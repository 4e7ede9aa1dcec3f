"""Who started this process: the command, or a launcher that the project keeps."""

from __future__ import annotations

under_command = False
"""Set by the command. Its options count then, because its preflight has planned with them."""

pooling_ignored = False
"""Whether :func:`pooled_serve.pooling.apply_patch` was called all the same."""
