#!/usr/bin/env python
import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")

    # Django's MySQL backend imports a module named MySQLdb; this makes PyMySQL answer to that name.
    # It is here for migrate, seed and test only: pooled-serve does the same for the web server.
    import pymysql

    pymysql.install_as_MySQLdb()

    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
