"""How this process was started: by the command, or by a launcher of the project's."""

from __future__ import annotations

under_command = False
"""Set by the command. Then only its options count: its preflight has planned with them."""

pooling_ignored = False
"""Whether :func:`pooled_serve.pooling.apply_patch` was called under the command, in vain."""
