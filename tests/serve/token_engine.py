"""An engine whose password is a token, asked for at each connect, as clouds have it."""

from pathlib import Path
from typing import Any

from django.db.backends.mysql import base


def current_token(file: str) -> str:
    """Stands in for a call of the cloud's library; what it is asked is written beside it."""
    token = Path(file).read_text()
    with Path(f"{file}.asked").open("a") as asked:
        asked.write(f"{token}\n")
    return token


class DatabaseWrapper(base.DatabaseWrapper):
    def get_connection_params(self) -> dict[str, Any]:
        params = super().get_connection_params()
        params["password"] = current_token(params.pop("token_file"))
        return params
