from django.core.management.base import BaseCommand, CommandError
from django.db import connection


class Command(BaseCommand):
    help = "Show how many connections to the shop's database the MySQL server has open, and whose."

    def handle(self, *args: object, **options: object) -> None:
        if connection.vendor != "mysql":
            raise CommandError("this needs MySQL or MariaDB; set DATABASE_URL")
        with connection.cursor() as cursor:
            cursor.execute("SHOW PROCESSLIST")
            rows = cursor.fetchall()
            cursor.execute("SELECT CONNECTION_ID(), DATABASE()")
            [(own_id, shop)] = cursor.fetchall()
        # Whoever only counts connections, as load.py does, uses no database.
        users = [row for row in rows if row[0] != own_id and row[3] == shop]
        self.stdout.write(f"{len(users)} connections, without the one that asks")
        for number, user, host, database, state, idle, *_ in users:
            self.stdout.write(f"{number:>6}  {user}@{host}  {database}  {state} {idle} s")
